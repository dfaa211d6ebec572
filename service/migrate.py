"""Bring the database to the schema this version knows."""

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

import migrations
from service.db import connect


def upgrade(url: str, revision: str = "head") -> None:
    """Apply every revision that is missing, up to `revision`. Safe to call from several processes at once."""
    command.upgrade(_config(url), revision)


def is_current(url: str) -> bool:
    """Whether the database is at the newest revision this version knows."""
    engine = connect(url, pool_size=1)
    try:
        with engine.connect() as tx:
            return revision(tx) == revisions()[0]
    finally:
        engine.dispose()


def revision(tx: Connection) -> str | None:
    """The revision that the database is at; None before the first."""
    return MigrationContext.configure(tx).get_current_revision()


def revisions() -> list[str]:
    """Every revision this version knows, newest first."""
    return [script.revision for script in ScriptDirectory(migrations.__path__[0]).walk_revisions()]


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", migrations.__path__[0])
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config

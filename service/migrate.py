"""Bring the database to the schema this version knows."""

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import migrations
from service.db import connect


def upgrade(url: str, revision: str = "head") -> None:
    """Apply every revision that is missing, up to `revision`. Safe to call from several processes at once."""
    command.upgrade(_config(url), revision)


def is_current(url: str) -> bool:
    """Whether the database is at the newest revision this version knows."""
    engine = connect(url, pool_size=1)
    try:
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
    return found == ScriptDirectory.from_config(_config(url)).get_current_head()


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", migrations.__path__[0])
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config

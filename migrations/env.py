"""How alembic runs a revision: one at a time in the whole cluster, each in its own transaction, never waiting long."""

from alembic import context
from sqlalchemy import Connection, text

from service.db import connect
from service.models import metadata

ADVISORY_LOCK = 0x4572676F6E
"""Held while migrating, so that two processes that start together do not migrate together."""


def migrate(connection: Connection) -> None:
    connection.execute(text("SET lock_timeout = '10s'"))
    connection.execute(text("SET statement_timeout = '10min'"))
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
    connection.commit()
    try:
        context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
        connection.commit()


url = context.config.get_main_option("sqlalchemy.url")
assert url, "run migrations with `python -P -m service migrate`"
engine = connect(url.replace("%%", "%"))
with engine.connect() as connection:
    migrate(connection)
engine.dispose()

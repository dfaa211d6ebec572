"""A fresh database for every history, as cheap as it can be: nothing in it has to survive."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine
from sqlalchemy.util import LRUCache

from service import migrate
from service.postgres import DATABASE, EmbeddedPostgres
from tests.folders import memory, short_folder

COMPILED: LRUCache[Any, Any] = LRUCache(500)
"""Statements compiled so far, for all histories of a process: every engine's own would be filled anew, and was never
let go, which after 250 histories made the collection of garbage take most of the time."""


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The address of a PostgreSQL whose own database has the schema."""
    with short_folder("ergon-sim-", memory()) as folder, EmbeddedPostgres(folder / "db", durable=False) as postgres:
        migrate.upgrade(postgres.url)
        yield postgres.url


@contextlib.contextmanager
def fresh(url: str) -> Iterator[Engine]:
    """An engine of a database of its own."""
    name = f"sim_{os.getpid()}"
    maintenance = url.replace(f"/{DATABASE}?", "/postgres?")
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {DATABASE} STRATEGY wal_log")
    own = url.replace(f"/{DATABASE}?", f"/{name}?").replace("postgresql://", "postgresql+psycopg://", 1)
    engine = create_engine(
        own,
        pool_size=1,
        max_overflow=0,
        connect_args={"options": "-c timezone=UTC"},
        execution_options={"compiled_cache": COMPILED},
    )
    try:
        yield engine
    finally:
        engine.dispose()

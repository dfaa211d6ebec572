"""Fixtures that several folders share: a real PostgreSQL, and a fresh database with the current schema in it."""

import contextlib
import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import settings
from sqlalchemy import Engine

from service import migrate
from service.db import connect
from service.postgres import DATABASE, EmbeddedPostgres
from tests import podman
from tests.folders import memory, short_folder

_numbers = itertools.count()

settings.register_profile("no-timing", deadline=None)  # how long an example takes says more about the machine
settings.load_profile("no-timing")

# Several processes compute at once in most tests: with a thread for each core each of them is slower. Before numpy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts something in the background lets it ignore these, and so would everything that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def short_dir() -> Iterator[Path]:
    """A folder with a short path that PostgreSQL's user can reach, as pytest's own are not when root runs the tests."""
    with short_folder("ergon-test-") as folder:
        yield folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """One server for all tests of this process; its own database has the schema, and others are copied from it."""
    with short_folder("ergon-test-", memory()) as folder, EmbeddedPostgres(folder / "db", durable=False) as server:
        migrate.upgrade(server.url)
        yield server


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A fresh database with the current schema."""
    with _database(postgres, f"test_{os.getpid()}_{next(_numbers)}", f"TEMPLATE {DATABASE} STRATEGY wal_log") as url:
        yield url


@pytest.fixture
def empty_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database with nothing in it."""
    with _database(postgres, f"empty_{os.getpid()}_{next(_numbers)}") as url:
        yield url


@contextlib.contextmanager
def _database(postgres: EmbeddedPostgres, name: str, like: str = "") -> Iterator[str]:
    maintenance = postgres.url.replace(f"/{DATABASE}?", "/postgres?")
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} {like}")
        yield postgres.url.replace(f"/{DATABASE}?", f"/{name}?")
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url, pool_size=5)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def container_setup() -> Iterator[podman.Setup]:
    """How containers are run here, if they can be."""
    with tempfile.TemporaryDirectory(prefix="ergon-podman-") as name, podman.set_up(Path(name)) as setup:
        yield setup


@pytest.fixture(scope="session")
def container_image(container_setup: podman.Setup) -> str:
    """An image with Python in it, where containers can be run; the test is skipped where not."""
    if container_setup.fault:
        pytest.skip(f"no podman that can start a container: {container_setup.fault}")
    with tempfile.TemporaryDirectory(prefix="ergon-image-") as name:
        return podman.build_image(container_setup, Path(name) / "root")


@pytest.fixture
def containers(container_setup: podman.Setup, container_image: str) -> Iterator[podman.Setup]:
    """A podman that works; after the test it has no container left."""
    yield container_setup
    assert container_setup.run("ps", "--all", "--quiet") == ""

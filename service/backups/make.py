"""Make a backup: the database as one moment saw it, and every blob that it names, in one file. The service goes on."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO

import psycopg
from sqlalchemy import Connection, Engine

from service import migrate
from service.backups.file import DUMP, STORE, BackupWriter, Header
from service.backups.programs import ProgramFailed, dump
from service.blobs import Blobs, NoBlob, open_blobs
from service.db import CONNECT_TIMEOUT_S, connect, snapshot
from service.postgres import EmbeddedPostgres, url_of
from service.refusals import Unavailable
from service.settings import Settings
from service.store import restores as store


class BackupRefused(ValueError):
    """There cannot be a backup here. The message names the fault and the remedy."""


class BackupFailed(RuntimeError):
    """It broke off, and nothing is left of it. The message says what happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What was made: the size of the file in bytes, the schema of the database, and how many blobs it holds."""

    size: int
    schema: str
    blobs: int


def make(settings: Settings, path: Path, *, now: datetime) -> Made:
    """Write the backup to `path`, which appears when it is complete and safe on disk.

    Raises:
        BackupRefused: `path` cannot be written or exists, or the database is not of this version.
        BackupFailed: the disk is full, or the database or the store did not do as told.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with _database(settings) as url:
        file = _open(path, draft)
        try:
            with file:
                schema, blobs = _write(file, url, open_blobs(settings), now)
                os.fsync(file.fileno())
            size = draft.stat().st_size
            draft.rename(path)
            _sync_folder(path.parent)
        except (ProgramFailed, Unavailable) as error:
            raise BackupFailed(f"{error}; no backup was made") from error
        except OSError as error:
            raise BackupFailed(f"{path} cannot be written: {error.strerror or error}; nothing of it is left") from error
        finally:
            draft.unlink(missing_ok=True)
    return Made(size=size, schema=schema, blobs=blobs)


@contextlib.contextmanager
def _database(settings: Settings) -> Iterator[str]:
    """The address of the database. An embedded one that does not run is started for as long as it takes."""
    url = settings.database_url or url_of(settings.data_dir)
    try:
        psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT_S).close()
    except psycopg.OperationalError:
        if settings.database_url:
            raise
    else:
        yield url
        return
    with EmbeddedPostgres(settings.data_dir, system_user=settings.postgres_user) as server:
        yield server.url


def _open(path: Path, draft: Path) -> IO[bytes]:
    """Nobody else may read it: it holds everybody's code and output."""
    if path.exists():
        raise BackupRefused(f"{path} exists already; name another file")
    try:
        return os.fdopen(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b")
    except OSError as error:
        raise BackupRefused(f"{path} cannot be written: {error.strerror}; name a file in a folder of yours") from error


def _write(file: IO[bytes], url: str, blobs: Blobs, now: datetime) -> tuple[str, int]:
    """The schema, and how many blobs were written."""
    engine, count = connect(url, pool_size=2), 0
    try:
        with snapshot(engine) as tx:
            schema = _schema(tx)
            header = Header(schema=schema, version=version("ergon"), made_at=now)
            with BackupWriter(file, header) as writer:
                writer.add(DUMP, dump(url, store.export_snapshot(tx)))
                for name in store.blobs_named(tx):
                    if (blocks := _read(blobs, name, engine)) is not None:
                        writer.add(STORE + name, blocks)
                        count += 1
                writer.finish()
    finally:
        engine.dispose()
    return schema, count


def _read(blobs: Blobs, name: str, engine: Engine) -> Iterator[bytes] | None:
    """A blob that the snapshot names; None if it has made room for newer ones since.

    Raises NoBlob if the database still names it.
    """
    try:
        return blobs.read(name)
    except NoBlob as error:
        with engine.begin() as tx:
            if store.is_named(tx, name):
                raise NoBlob(f"{error}; is ERGON_STORE_URL the one that the service uses?") from error
    return None


def _schema(tx: Connection) -> str:
    found, ours = migrate.revision(tx), migrate.revisions()[0]
    if found != ours:
        raise BackupRefused(
            f"the database has the schema {found}, this version of Ergon {ours}: back up with the version of Ergon "
            "that the service runs"
        )
    return ours


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

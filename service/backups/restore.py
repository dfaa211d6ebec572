"""Restore a backup into an empty database, so that what runs on the nodes since does no harm.

Broken off anywhere, it leaves a mark in the database: the service does not start on it, and the same restore may be
started again.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine

from service import fencing, migrate, verdicts
from service.backups.file import DUMP, STORE, BackupFile, BadBackup
from service.backups.make import BackupFailed
from service.backups.programs import ProgramFailed, load
from service.blobs import Blobs, open_blobs
from service.cycle.leases import MARGIN_S
from service.db import connect
from service.postgres import EmbeddedPostgres
from service.refusals import Unavailable
from service.settings import Settings, SettingsError
from service.store import restores as store


class NotEmpty(ValueError):
    """There is something already. The message names the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was restored. Jobs start again from `not_before` on; `held` of them when somebody releases them."""

    made_at: datetime
    blobs: int
    not_before: datetime
    held: int


def restore(settings: Settings, path: Path, *, clock: Callable[[], datetime]) -> Restored:
    """Restore the backup at `path` into the database and the store that the settings name.

    Raises:
        BadBackup: the file is none, is damaged, or is of a newer version. Nothing was changed.
        NotEmpty: the database holds something. Nothing was changed.
        BackupFailed: the database or the store did not do as told; the restore has to be started again.
        service.postgres.PostgresError: a service runs on the data folder, or it cannot be used.
    """
    with BackupFile(path) as backup:
        _check(backup, path, clock())
        blobs = open_blobs(settings)
        with _target(settings) as url, _emptied(url) as engine:
            try:
                for name in backup.blobs():
                    _copy(blobs, name, backup.read(STORE + name))
                load(url, backup.read(DUMP))
            except (ProgramFailed, Unavailable) as error:
                raise BackupFailed(f"{error}; the restore is not complete: start it again") from error
            migrate.upgrade(url)
            not_before, held = _finish(engine, settings, backup.blobs(), clock())
        return Restored(made_at=backup.header.made_at, blobs=len(backup.blobs()), not_before=not_before, held=held)


def check_complete(url: str) -> None:
    """Raises SettingsError if a restore into this database was broken off."""
    engine = connect(url, pool_size=1)
    try:
        with engine.connect() as tx:
            if store.is_unfinished(tx):
                raise SettingsError(
                    "a restore into this database was broken off: start `ergon restore` again before the service"
                )
    finally:
        engine.dispose()


def _check(backup: BackupFile, path: Path, now: datetime) -> None:
    if backup.header.schema not in migrate.revisions():
        raise BadBackup(
            f"{path} was made by a newer version of Ergon ({backup.header.version}, schema {backup.header.schema}; "
            f"this one knows up to {migrate.revisions()[0]}): upgrade first"
        )
    if backup.header.made_at > now:
        raise BadBackup(f"{path} was made at {backup.header.made_at}, which is yet to come: set this machine's clock")
    backup.check()


@contextlib.contextmanager
def _target(settings: Settings) -> Iterator[str]:
    """The address of the database to restore into. An embedded one is made, and runs for as long as it takes."""
    if settings.database_url:
        yield settings.database_url
        return
    with EmbeddedPostgres(settings.data_dir, system_user=settings.postgres_user) as server:
        yield server.url


@contextlib.contextmanager
def _emptied(url: str) -> Iterator[Engine]:
    """The database, held against other restores, empty but for the mark of one that has begun."""
    engine = connect(url, pool_size=3)
    try:
        with engine.connect() as holder:
            if not store.lock_for_restore(holder):
                raise NotEmpty("another restore into this database is at work; wait for its end")
            holder.commit()  # the lock is the connection's, not the transaction's
            with engine.begin() as tx:
                if store.table_names(tx) and not store.is_unfinished(tx):
                    raise NotEmpty(
                        "the database is not empty, and a restore replaces nothing: name an empty folder in "
                        "ERGON_DATA_DIR, or an empty database in ERGON_DATABASE_URL"
                    )
                store.mark_unfinished(tx)
            yield engine
    finally:
        engine.dispose()


def _copy(blobs: Blobs, name: str, blocks: Iterator[bytes]) -> None:
    file = blobs.create(name)
    try:
        for block in blocks:
            blobs.write(file, block)
    finally:
        blobs.close(file)


def _finish(engine: Engine, settings: Settings, blobs: list[str], now: datetime) -> tuple[datetime, int]:
    """Fence out what the backup does not know of, and let the service start; from when on jobs may, and how many are
    held.

    Agents that heard from the service of before stop what this one does not know of at their next call, or when their
    lease ends: only then may the jobs of the backup start, which may be the very same. Where a lease ends nothing,
    nobody but an administrator can tell when.
    """
    not_before = now + timedelta(seconds=settings.lease_s + settings.stop_grace_s + MARGIN_S)
    reason = verdicts.backing_off("the service was restored from a backup", not_before)
    with engine.begin() as tx:
        store.forget_archives(tx, blobs)
        store.fence(tx, least=fencing.least(now), not_before=not_before, verdict=verdicts.waiting(reason))
        held = store.hold_unheard(tx, verdicts.waiting(verdicts.MAY_RUN_UNHEARD))
        store.mark_finished(tx)
    return not_before, held

"""What backups and restores ask of the database."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    delete,
    func,
    inspect,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.schema import CreateTable, DropTable

from protocol.states import FINAL_JOB_STATES, AttemptState, JobState
from service.models import archive_owners, archives, attempts, jobs, leadership, members, outputs

LOCK = 0x4572676F72
"""Advisory lock of the one restore that may work on a database."""

UNFINISHED = Table("ergon_restore_unfinished", MetaData(), Column("id", Integer, primary_key=True))
"""A mark: there while a restore has begun and not ended. Nothing else may use the database then."""


def export_snapshot(tx: Connection) -> str:
    """A name under which `pg_dump` sees exactly what this transaction sees, for as long as it is open."""
    return tx.execute(select(func.pg_export_snapshot())).scalar_one()


def blobs_named(tx: Connection) -> Sequence[str]:
    """Every blob of the store that a row names."""
    return tx.execute(union_all(select(archives.c.blob), select(outputs.c.blob))).scalars().all()


def is_named(tx: Connection, blob: str) -> bool:
    """Whether a row names this blob."""
    query = union_all(*(select(table.c.blob).where(table.c.blob == blob) for table in (archives, outputs)))
    return tx.execute(query).first() is not None


def lock_for_restore(connection: Connection) -> bool:
    """Keep other restores out for as long as the connection is open. False if one is at work."""
    return connection.execute(select(func.pg_try_advisory_lock(LOCK))).scalar_one()


def table_names(tx: Connection) -> list[str]:
    """Every table there is, the mark of a restore included."""
    return inspect(tx).get_table_names()


def is_unfinished(tx: Connection) -> bool:
    """Whether a restore into this database was broken off."""
    return inspect(tx).has_table(UNFINISHED.name)


def mark_unfinished(tx: Connection) -> None:
    """Mark a database that is empty, but for what a restore that was broken off has left, which goes."""
    found = MetaData()
    found.reflect(tx)
    found.drop_all(tx)
    tx.execute(CreateTable(UNFINISHED))


def mark_finished(tx: Connection) -> None:
    """The restore is complete: the service may start."""
    tx.execute(DropTable(UNFINISHED))


def forget_archives(tx: Connection, kept: Collection[str]) -> None:
    """Forget the archives whose blob is not among `kept`: whoever uploads such a one again will store it anew."""
    lost = select(archives.c.digest).where(archives.c.blob.not_in(kept))
    tx.execute(delete(archive_owners).where(archive_owners.c.digest.in_(lost)))
    tx.execute(delete(archives).where(archives.c.blob.not_in(kept)))


def hold_unheard(tx: Connection, verdict: dict[str, object]) -> int:
    """Keep every job whose ranks outlast their lease from a new start until it is released; how many there are."""
    open_jobs = jobs.c.state.not_in([state.value for state in FINAL_JOB_STATES])
    theirs = update(jobs).where(open_jobs, jobs.c.spec["on_disconnect"].astext == "wait")
    held = tx.execute(theirs.values(hold=True, version=jobs.c.version + 1)).rowcount
    waiting = jobs.c.state.in_([JobState.QUEUED.value, JobState.HELD.value])
    tx.execute(theirs.where(waiting).values(state=JobState.HELD.value, verdict=verdict))
    return held


def fence(tx: Connection, *, least: int, not_before: datetime, verdict: dict[str, object]) -> None:
    """Make sure that nothing the backup does not know of can be taken for what comes now.

    Terms and epochs start at `least`. Jobs that are not over start no attempt before `not_before`; those that wait say
    `verdict`. A member that was only granted may have run since and is not started: its agent must have a record of it.
    """
    row = {"id": 1, "term": least, "holder": "", "renewals": 0, "least_epoch": least}
    statement = upsert(leadership).values(row)
    held_by_nobody = {
        "term": func.greatest(leadership.c.term + 1, least),
        "holder": "",
        "renewals": leadership.c.renewals + 1,
        "least_epoch": least,
    }
    tx.execute(statement.on_conflict_do_update(index_elements=["id"], set_=held_by_nobody))
    open_jobs = jobs.c.state.not_in([state.value for state in FINAL_JOB_STATES])
    tx.execute(
        update(jobs)
        .where(open_jobs)
        .values(not_before=func.greatest(jobs.c.not_before, not_before), version=jobs.c.version + 1)
    )
    tx.execute(update(jobs).where(jobs.c.state == JobState.QUEUED.value).values(verdict=verdict))
    granted, starting = AttemptState.GRANTED.value, AttemptState.STARTING.value
    for table in (members, attempts):
        tx.execute(update(table).where(table.c.state == granted).values(state=starting))

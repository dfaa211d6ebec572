"""Checkpoints that the service keeps: which files each rank has saved, and where they lie."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, exists, func, select, tuple_
from sqlalchemy.dialects.postgresql import insert as upsert

from protocol.states import FINAL_JOB_STATES
from service.db import Record
from service.models import attempts, checkpoint_files, checkpoint_parts, jobs, members
from service.store.attempts import size_of


def find_held(tx: Connection, *, attempt_id: str, node_id: str) -> Record | None:
    """The part of this attempt that the node has and has not released: `member`, `job_id`, `epoch`, and the
    number of the attempt's `nodes`.
    """
    query = (
        select(members.c.member, attempts.c.job_id, attempts.c.epoch, size_of(attempts.c.id).label("nodes"))
        .join(attempts, members.c.attempt_id == attempts.c.id)
        .where(members.c.attempt_id == attempt_id, members.c.node_id == node_id, members.c.released_at.is_(None))
    )
    return tx.execute(query).one_or_none()


def put_part(
    tx: Connection,
    job_id: str,
    *,
    epoch: int,
    step: int,
    rank: int,
    world_size: int,
    files: dict[str, list[object]],
    arrived: bool,
) -> None:
    """Note what a rank has saved, in place of what was noted before. `files`: size and digest by path."""
    values: dict[str, object] = {"world_size": world_size, "files": files, "arrived": arrived}
    statement = upsert(checkpoint_parts).values(job_id=job_id, epoch=epoch, step=step, rank=rank, **values)
    tx.execute(statement.on_conflict_do_update(index_elements=["job_id", "epoch", "step", "rank"], set_=values))


def list_parts(tx: Connection, job_id: str) -> Sequence[Record]:
    """Every part of the job's checkpoints, the newest checkpoint first, by rank."""
    order = (checkpoint_parts.c.epoch.desc(), checkpoint_parts.c.step.desc(), checkpoint_parts.c.rank)
    return tx.execute(select(checkpoint_parts).where(checkpoint_parts.c.job_id == job_id).order_by(*order)).all()


def drop_parts_before(tx: Connection, job_id: str, *, epoch: int, step: int) -> None:
    """Forget the checkpoints of earlier attempts and the earlier ones of this attempt."""
    older = tuple_(checkpoint_parts.c.epoch, checkpoint_parts.c.step) < tuple_(epoch, step)
    tx.execute(delete(checkpoint_parts).where(checkpoint_parts.c.job_id == job_id, older))


def drop_files_but(tx: Connection, job_id: str, digests: Collection[str]) -> list[str]:
    """Forget the job's files but these; their blobs."""
    known = set(tx.execute(select(checkpoint_files.c.digest).where(checkpoint_files.c.job_id == job_id)).scalars())
    doomed = delete(checkpoint_files).where(
        checkpoint_files.c.job_id == job_id, checkpoint_files.c.digest.in_(known - set(digests))
    )
    return list(tx.execute(doomed.returning(checkpoint_files.c.blob)).scalars())


def find_file(tx: Connection, job_id: str, digest: str) -> Record | None:
    query = select(checkpoint_files).where(checkpoint_files.c.job_id == job_id, checkpoint_files.c.digest == digest)
    return tx.execute(query).one_or_none()


def held_of(tx: Connection, job_id: str, digests: Collection[str]) -> set[str]:
    """Which of these files the job has."""
    query = select(checkpoint_files.c.digest).where(
        checkpoint_files.c.job_id == job_id, checkpoint_files.c.digest.in_(digests)
    )
    return set(tx.execute(query).scalars())


def add_file(tx: Connection, job_id: str, *, digest: str, size: int, blob: str) -> None:
    tx.execute(checkpoint_files.insert().values(job_id=job_id, digest=digest, size=size, blob=blob))


def size_of_user(tx: Connection, user_id: str) -> int:
    """Bytes of all checkpoints of the user's jobs."""
    query = select(func.coalesce(func.sum(checkpoint_files.c.size), 0)).join(jobs).where(jobs.c.user_id == user_id)
    return int(tx.execute(query).scalar_one())


def ended_before(tx: Connection, job_ids: Collection[str], before: datetime) -> Sequence[str]:
    """Which of these jobs ended before then and have nothing on any node, as far as is known."""
    held = exists().where(
        attempts.c.job_id == jobs.c.id, members.c.attempt_id == attempts.c.id, members.c.released_at.is_(None)
    )
    final = jobs.c.state.in_([state.value for state in FINAL_JOB_STATES])
    query = select(jobs.c.id).where(jobs.c.id.in_(job_ids), final, jobs.c.ended_at < before, ~held)
    return tx.execute(query.order_by(jobs.c.id)).scalars().all()

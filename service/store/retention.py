"""What is old enough to go. Every statement takes a limited number of rows, so that nobody waits long for a lock."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import Connection, ScalarSelect, Select, Table, delete, exists, select, update

from protocol.states import FINAL_JOB_STATES
from service.db import Record
from service.models import (
    allocations,
    arrays,
    attempts,
    checkpoint_files,
    checkpoint_parts,
    chunks,
    cycles,
    dependencies,
    events,
    idempotency,
    jobs,
    join_tokens,
    members,
    metrics,
    node_sessions,
    nodes,
    outputs,
    power_spells,
    samples,
)

FINAL = [state.value for state in FINAL_JOB_STATES]


def jobs_to_trim(tx: Connection, before: datetime, limit: int) -> Sequence[str]:
    """Jobs that ended before then and still have output, the oldest first."""
    query = select(jobs.c.id).where(jobs.c.ended_at < before, jobs.c.state.in_(FINAL), ~jobs.c.trimmed)
    return tx.execute(query.order_by(jobs.c.ended_at, jobs.c.id).limit(limit)).scalars().all()


def stored_blobs(tx: Connection, job_ids: Collection[str]) -> Sequence[Record]:
    """Blobs of these jobs' outputs and checkpoints: column `blob`."""
    left = select(outputs.c.blob).where(outputs.c.attempt_id.in_(_attempts_of(job_ids)))
    saved = select(checkpoint_files.c.blob).where(checkpoint_files.c.job_id.in_(job_ids))
    return tx.execute(left.union_all(saved)).all()


def trim_jobs(tx: Connection, job_ids: Collection[str]) -> None:
    """Delete what the jobs wrote, reported and left."""
    _delete_bulk(tx, job_ids)
    tx.execute(update(jobs).where(jobs.c.id.in_(job_ids)).values(trimmed=True))


def jobs_to_forget(tx: Connection, before: datetime, limit: int) -> Sequence[str]:
    """Jobs that ended before then and are trimmed, that nobody waits for and that hold nothing; an array's together."""
    held = exists().where(
        attempts.c.job_id == jobs.c.id, members.c.attempt_id == attempts.c.id, members.c.released_at.is_(None)
    )
    awaited = exists().where(dependencies.c.parent_id == jobs.c.id, ~dependencies.c.met)
    others = jobs.alias()
    young = exists().where(others.c.array_id == jobs.c.array_id, ~others.c.trimmed)
    query = select(jobs.c.id).where(jobs.c.ended_at < before, jobs.c.trimmed, ~held, ~awaited, ~young)
    return tx.execute(query.order_by(jobs.c.ended_at, jobs.c.id).limit(limit)).scalars().all()


def forget_jobs(tx: Connection, job_ids: Collection[str]) -> None:
    """Delete trimmed jobs with everything that is known of them."""
    _delete_bulk(tx, job_ids)
    for table in (allocations, members):
        tx.execute(delete(table).where(table.c.attempt_id.in_(_attempts_of(job_ids))))
    for table in (attempts, events, dependencies):
        tx.execute(delete(table).where(table.c.job_id.in_(job_ids)))
    tx.execute(delete(dependencies).where(dependencies.c.parent_id.in_(job_ids)))
    tx.execute(update(jobs).where(jobs.c.origin_id.in_(job_ids)).values(origin_id=None))
    emptied = select(jobs.c.array_id).where(jobs.c.id.in_(job_ids), jobs.c.array_id.is_not(None)).distinct()
    array_ids = tx.execute(emptied).scalars().all()
    tx.execute(delete(jobs).where(jobs.c.id.in_(job_ids)))
    alive = exists().where(jobs.c.array_id == arrays.c.id)
    tx.execute(delete(arrays).where(arrays.c.id.in_(array_ids), ~alive))


def forget_samples(tx: Connection, before: datetime, limit: int) -> int:
    """Delete samples that ended before then; how many went."""
    gone = 0
    for node_id in tx.execute(select(nodes.c.id).order_by(nodes.c.id)).scalars().all():
        old = select(samples.c.seq).where(samples.c.node_id == node_id, samples.c.ended_at < before)
        gone += _delete_some(tx, samples, "seq", old.order_by(samples.c.ended_at), limit - gone)
    return gone


def forget_cycles(tx: Connection, before: datetime, limit: int) -> int:
    """Delete cycles from before then; how many went."""
    return _delete_some(tx, cycles, "id", select(cycles.c.id).where(cycles.c.at < before).order_by(cycles.c.at), limit)


def forget_sessions(tx: Connection, before: datetime, limit: int) -> int:
    """Delete sessions of nodes that ended before then; how many went. The latest of a node stays."""
    later = node_sessions.alias()
    newer = exists().where(later.c.node_id == node_sessions.c.node_id, later.c.id > node_sessions.c.id)
    old = select(node_sessions.c.id).where(node_sessions.c.ended_at < before, newer)
    return _delete_some(tx, node_sessions, "id", old.order_by(node_sessions.c.id), limit)


def forget_spells(tx: Connection, before: datetime, limit: int) -> int:
    """Delete what is known of when nodes were off, as far as it ended before then; how many went."""
    old = select(power_spells.c.id).where(power_spells.c.ended_at < before).order_by(power_spells.c.id)
    return _delete_some(tx, power_spells, "id", old, limit)


def forget_keys(tx: Connection, before: datetime) -> None:
    """Delete answers kept for requests that came before then, and join tokens that were good until then."""
    tx.execute(delete(idempotency).where(idempotency.c.created_at < before))
    tx.execute(delete(join_tokens).where(join_tokens.c.expires_at < before))


def _delete_bulk(tx: Connection, job_ids: Collection[str]) -> None:
    for table in (chunks, outputs):
        tx.execute(delete(table).where(table.c.attempt_id.in_(_attempts_of(job_ids))))
    for table in (metrics, checkpoint_parts, checkpoint_files):
        tx.execute(delete(table).where(table.c.job_id.in_(job_ids)))


def _attempts_of(job_ids: Collection[str]) -> ScalarSelect[str]:
    return select(attempts.c.id).where(attempts.c.job_id.in_(job_ids)).scalar_subquery()


def _delete_some(tx: Connection, table: Table, key: str, old: Select[tuple[int]], limit: int) -> int:
    if limit <= 0:
        return 0
    return tx.execute(delete(table).where(table.c[key].in_(old.limit(limit)))).rowcount

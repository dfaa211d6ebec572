"""Jobs, their events, and the answers kept for repeated requests."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict

from sqlalchemy import (
    ARRAY,
    Boolean,
    Connection,
    Select,
    Text,
    any_,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    tuple_,
    update,
)

from protocol.states import JobState
from service.db import Record
from service.models import arrays, events, idempotency, jobs, users

LIVE = (JobState.STARTING.value, JobState.RUNNING.value)
"""States in which a job counts against the limit of its array."""

WAITING = (JobState.QUEUED.value, JobState.HELD.value)


class Verdict(TypedDict):
    """What a cycle said of a job, and the version of the job it looked at."""

    job: str
    seen: int
    placed: bool
    said: dict[str, object]


def add_jobs(tx: Connection, rows: Sequence[Mapping[str, object]]) -> None:
    """New jobs, in the order of arrival."""
    tx.execute(insert(jobs), rows)


def find_job(tx: Connection, job_id: str, *, user_id: str | None) -> Record | None:
    """One job with its user's name. With `user_id`, only that user's jobs exist."""
    query = _jobs_with_users().where(jobs.c.id == job_id)
    return tx.execute(_owned(query, user_id)).one_or_none()


def find_jobs(tx: Connection, ids: Collection[str]) -> Sequence[Record]:
    """These jobs, as far as they exist, in the order in which they came."""
    query = select(jobs).where(jobs.c.id == any_(literal(list(ids), ARRAY(Text))))
    return tx.execute(query.order_by(jobs.c.seq)).all()


def latest_specs(tx: Connection, limit: int) -> Sequence[dict[str, object]]:
    """Specs of the jobs that came last, the newest first."""
    return tx.execute(select(jobs.c.spec).order_by(jobs.c.seq.desc()).limit(limit)).scalars().all()


def first_job(tx: Connection, array_id: str) -> str:
    """Id of the first job of an array."""
    return tx.execute(select(jobs.c.id).where(jobs.c.array_id == array_id, jobs.c.array_index == 0)).scalar_one()


def verdicts_of(tx: Connection, ids: Sequence[str]) -> dict[str, dict[str, object]]:
    """The verdict on each of these jobs; for the id of an array, on its first job."""
    name = case((jobs.c.array_index == 0, func.coalesce(jobs.c.array_id, jobs.c.id)), else_=jobs.c.id)
    wanted = any_(literal(ids, ARRAY(Text)))
    query = select(name, jobs.c.verdict).where(
        (jobs.c.id == wanted) | ((jobs.c.array_id == wanted) & (jobs.c.array_index == 0))
    )
    return dict(tx.execute(query).all())


def lock_job(tx: Connection, job_id: str) -> Record:
    """The job's row, held until the transaction ends."""
    return tx.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).one()


def list_jobs(
    tx: Connection,
    *,
    user_id: str | None,
    user_name: str | None,
    states: Sequence[str],
    queue: str | None,
    name: str | None,
    array_id: str | None = None,
    folded: bool = False,
    before: int | None,
    limit: int,
) -> Sequence[Record]:
    """Newest first; `before` is the `seq` of the last job of the page before.

    `folded` leaves of each array only the first job that is asked for.
    """
    query = _owned(_jobs_with_users(), user_id).order_by(jobs.c.seq.desc()).limit(limit)
    if user_name is not None:
        query = query.where(users.c.name == user_name)
    if states:
        query = query.where(jobs.c.state.in_(states))
    if queue is not None:
        query = query.where(jobs.c.queue == queue)
    if name is not None:
        query = query.where(jobs.c.name == name)
    if array_id is not None:
        query = query.where(jobs.c.array_id == array_id)
    if folded:
        earlier = jobs.alias("earlier")
        same = (earlier.c.array_id == jobs.c.array_id) & (earlier.c.array_index < jobs.c.array_index)
        query = query.where(~exists().where(same & earlier.c.state.in_(states) if states else same))
    if before is not None:
        query = query.where(jobs.c.seq < before)
    return tx.execute(query).all()


def list_queued(tx: Connection, limit: int, *, now: datetime) -> Sequence[Record]:
    """Jobs that may start, in the planner's order of precedence.

    Left out are those that back off, and those that would exceed the limit of their array if all of it started.
    """
    live = (
        select(jobs.c.array_id, func.count().label("jobs"))
        .where(jobs.c.array_id.is_not(None), jobs.c.state.in_(LIVE))
        .group_by(jobs.c.array_id)
        .subquery()
    )
    place = func.row_number().over(partition_by=jobs.c.array_id, order_by=(jobs.c.priority.desc(), jobs.c.seq))
    ready = (
        select(jobs, arrays.c.limit.label("array_limit"), live.c.jobs.label("array_live"), place.label("place"))
        .join(arrays, jobs.c.array_id == arrays.c.id, isouter=True)
        .join(live, jobs.c.array_id == live.c.array_id, isouter=True)
        .where(jobs.c.state == JobState.QUEUED.value)
        .where(jobs.c.not_before.is_(None) | (jobs.c.not_before <= now))
        .subquery()
    )
    allowed = ready.c.array_limit - func.coalesce(ready.c.array_live, 0)
    query = select(ready).where(ready.c.array_limit.is_(None) | (ready.c.place <= allowed))
    return tx.execute(query.order_by(ready.c.priority.desc(), ready.c.seq).limit(limit)).all()


def list_waiting(tx: Connection, *, user_id: str | None, limit: int) -> Sequence[Record]:
    """Jobs that wait or are held, with their users' names, in the planner's order of precedence."""
    query = _owned(_jobs_with_users(), user_id).where(jobs.c.state.in_(WAITING))
    return tx.execute(query.order_by(jobs.c.priority.desc(), jobs.c.seq).limit(limit)).all()


def change_job(tx: Connection, job_id: str, *, old: JobState, version: int | None = None, **values: object) -> bool:
    """Change a job that is in state `old` (and at `version`, if given). False if somebody else was first."""
    query = update(jobs).where(jobs.c.id == job_id, jobs.c.state == old.value)
    if version is not None:
        query = query.where(jobs.c.version == version)
    return tx.execute(query.values(version=jobs.c.version + 1, **values)).rowcount == 1


def change_jobs(tx: Connection, job_ids: Sequence[str], *, old: JobState, **values: object) -> None:
    """Change jobs that this transaction holds locked in state `old`."""
    query = update(jobs).where(jobs.c.id == any_(literal(job_ids, ARRAY(Text))), jobs.c.state == old.value)
    tx.execute(query.values(version=jobs.c.version + 1, **values))


def request_cancel(tx: Connection, job_id: str) -> None:
    tx.execute(update(jobs).where(jobs.c.id == job_id).values(cancel_requested=True, version=jobs.c.version + 1))


def set_verdicts(tx: Connection, verdicts: Sequence[Verdict]) -> None:
    """Store what a cycle said of each job. No change of state, so the version stays.

    A job that has changed since the cycle looked keeps what the change has said of it.
    """
    if verdicts:
        as_seen = (jobs.c.state == JobState.QUEUED.value) & (jobs.c.version == bindparam("seen"))
        waits = or_(*(jobs.c.state == state for state in WAITING))  # IN cannot be sent for many rows at once
        started = bindparam("placed", type_=Boolean) & not_(waits)
        query = update(jobs).where(jobs.c.id == bindparam("job"), as_seen | started).values(verdict=bindparam("said"))
        tx.execute(query, verdicts)


def set_progress(tx: Connection, job_id: str, progress: dict[str, object], pace: dict[str, Any] | None) -> None:
    tx.execute(update(jobs).where(jobs.c.id == job_id).values(progress=progress, pace=pace))


def advance_checkpoint(
    tx: Connection, job_id: str, *, epoch: int, step: int, now: datetime, stored: bool = False
) -> bool:
    """Note a checkpoint of attempt `epoch` as the job's latest. False, and nothing is changed, if the job has a later
    attempt by now or a later checkpoint is known.

    Args:
        stored: whether the service holds its files.
    """
    later = tuple_(literal(epoch), literal(step)) > tuple_(jobs.c.checkpoint_epoch, jobs.c.checkpoint_step)
    query = update(jobs).where(
        jobs.c.id == job_id, jobs.c.epoch == epoch, or_(jobs.c.checkpoint_epoch.is_(None), later)
    )
    values = {"checkpoint_epoch": epoch, "checkpoint_step": step, "checkpoint_at": now, "checkpoint_stored": stored}
    return tx.execute(query.values(**values)).rowcount == 1


def count_by_state(tx: Connection, *, user_id: str | None = None) -> dict[str, int]:
    """With `user_id`, only that user's jobs count."""
    query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    if user_id is not None:
        query = query.where(jobs.c.user_id == user_id)
    return dict(tx.execute(query).all())


def add_event(tx: Connection, job_id: str, *, kind: str, now: datetime, **data: object) -> None:
    add_events(tx, [job_id], kind=kind, now=now, **data)


def add_events(tx: Connection, job_ids: Sequence[str], *, kind: str, now: datetime, **data: object) -> None:
    """The same event for each job."""
    if job_ids:
        tx.execute(insert(events), [{"job_id": job_id, "at": now, "kind": kind, "data": data} for job_id in job_ids])


def list_events(tx: Connection, job_id: str, *, after: int, limit: int) -> Sequence[Record]:
    """Oldest first."""
    query = select(events).where(events.c.job_id == job_id, events.c.seq > after)
    return tx.execute(query.order_by(events.c.seq).limit(limit)).all()


def find_answer(tx: Connection, *, user_id: str, key: str) -> Record | None:
    """The request that first came with this key: columns `request_hash`, `ids`."""
    query = select(idempotency).where(idempotency.c.user_id == user_id, idempotency.c.key == key)
    return tx.execute(query).one_or_none()


def keep_answer(
    tx: Connection, *, user_id: str, key: str, request_hash: bytes, ids: Sequence[str], now: datetime
) -> None:
    """Raises sqlalchemy.exc.IntegrityError when the same key is being used at this moment."""
    values = {"user_id": user_id, "key": key, "request_hash": request_hash, "ids": list(ids), "created_at": now}
    tx.execute(insert(idempotency).values(**values))


def _jobs_with_users() -> Select[Any]:
    return (
        select(
            jobs,
            users.c.name.label("user_name"),
            arrays.c.count.label("array_count"),
            arrays.c.limit.label("array_limit"),
        )
        .join(users, jobs.c.user_id == users.c.id)
        .join(arrays, jobs.c.array_id == arrays.c.id, isouter=True)
    )


def _owned(query: Select[Any], user_id: str | None) -> Select[Any]:
    return query if user_id is None else query.where(jobs.c.user_id == user_id)

"""Jobs, their events, and the answers kept for repeated requests."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, insert, select, update

from protocol.states import JobState
from service.db import Record
from service.models import events, idempotency, jobs, users


def add_job(tx: Connection, **values: object) -> None:
    tx.execute(insert(jobs).values(**values))


def find_job(tx: Connection, job_id: str, *, user_id: str | None) -> Record | None:
    """One job with its user's name. With `user_id`, only that user's jobs exist."""
    query = _jobs_with_users().where(jobs.c.id == job_id)
    return tx.execute(_owned(query, user_id)).one_or_none()


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
    before: int | None,
    limit: int,
) -> Sequence[Record]:
    """Newest first; `before` is the `seq` of the last job of the page before."""
    query = _owned(_jobs_with_users(), user_id).order_by(jobs.c.seq.desc()).limit(limit)
    if user_name is not None:
        query = query.where(users.c.name == user_name)
    if states:
        query = query.where(jobs.c.state.in_(states))
    if queue is not None:
        query = query.where(jobs.c.queue == queue)
    if name is not None:
        query = query.where(jobs.c.name == name)
    if before is not None:
        query = query.where(jobs.c.seq < before)
    return tx.execute(query).all()


def list_queued(tx: Connection, limit: int) -> Sequence[Record]:
    """Jobs that wait, in the planner's order of precedence."""
    query = select(jobs).where(jobs.c.state == JobState.QUEUED.value)
    return tx.execute(query.order_by(jobs.c.priority.desc(), jobs.c.seq).limit(limit)).all()


def list_waiting(tx: Connection, *, user_id: str | None, limit: int) -> Sequence[Record]:
    """Jobs that wait or are held, with their users' names, in the planner's order of precedence."""
    waiting = (JobState.QUEUED.value, JobState.HELD.value)
    query = _owned(_jobs_with_users(), user_id).where(jobs.c.state.in_(waiting))
    return tx.execute(query.order_by(jobs.c.priority.desc(), jobs.c.seq).limit(limit)).all()


def change_job(tx: Connection, job_id: str, *, old: JobState, version: int | None = None, **values: object) -> bool:
    """Change a job that is in state `old` (and at `version`, if given). False if somebody else was first."""
    query = update(jobs).where(jobs.c.id == job_id, jobs.c.state == old.value)
    if version is not None:
        query = query.where(jobs.c.version == version)
    return tx.execute(query.values(version=jobs.c.version + 1, **values)).rowcount == 1


def request_cancel(tx: Connection, job_id: str) -> None:
    tx.execute(update(jobs).where(jobs.c.id == job_id).values(cancel_requested=True, version=jobs.c.version + 1))


def set_verdicts(tx: Connection, verdicts: Sequence[tuple[str, dict[str, object]]]) -> None:
    """Store what a cycle said of each job. No change of state, so the version stays."""
    if verdicts:
        query = update(jobs).where(jobs.c.id == bindparam("job")).values(verdict=bindparam("said"))
        tx.execute(query, [{"job": job, "said": said} for job, said in verdicts])


def set_progress(tx: Connection, job_id: str, progress: dict[str, object]) -> None:
    tx.execute(update(jobs).where(jobs.c.id == job_id).values(progress=progress))


def count_by_state(tx: Connection, *, user_id: str | None = None) -> dict[str, int]:
    """With `user_id`, only that user's jobs count."""
    query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    if user_id is not None:
        query = query.where(jobs.c.user_id == user_id)
    return dict(tx.execute(query).all())


def add_event(tx: Connection, job_id: str, *, kind: str, now: datetime, **data: object) -> None:
    tx.execute(insert(events).values(job_id=job_id, at=now, kind=kind, data=data))


def list_events(tx: Connection, job_id: str, *, after: int, limit: int) -> Sequence[Record]:
    """Oldest first."""
    query = select(events).where(events.c.job_id == job_id, events.c.seq > after)
    return tx.execute(query.order_by(events.c.seq).limit(limit)).all()


def find_answer(tx: Connection, *, user_id: str, key: str) -> Record | None:
    """The request that first came with this key: columns `request_hash`, `job_id`."""
    query = select(idempotency).where(idempotency.c.user_id == user_id, idempotency.c.key == key)
    return tx.execute(query).one_or_none()


def keep_answer(tx: Connection, *, user_id: str, key: str, request_hash: bytes, job_id: str, now: datetime) -> None:
    """Raises sqlalchemy.exc.IntegrityError when the same key is being used at this moment."""
    values = {"user_id": user_id, "key": key, "request_hash": request_hash, "job_id": job_id, "created_at": now}
    tx.execute(insert(idempotency).values(**values))


def _jobs_with_users() -> Select[Any]:
    return select(jobs, users.c.name.label("user_name")).join(users, jobs.c.user_id == users.c.id)


def _owned(query: Select[Any], user_id: str | None) -> Select[Any]:
    return query if user_id is None else query.where(jobs.c.user_id == user_id)

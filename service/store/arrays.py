"""Arrays: jobs that were submitted as one."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, func, insert, select, update

from protocol.states import AttemptState, JobState
from service.db import Record
from service.models import arrays, attempts, jobs, users
from service.store.jobs import LIVE, WAITING


def add_arrays(tx: Connection, rows: Sequence[Mapping[str, object]]) -> None:
    if rows:
        tx.execute(insert(arrays), rows)


def find_array(tx: Connection, array_id: str, *, user_id: str | None) -> Record | None:
    """An array with its user's name, its `count` as `size`. With `user_id`, only that user's arrays exist."""
    query = select(arrays, arrays.c.count.label("size"), users.c.name.label("user_name")).join(
        users, arrays.c.user_id == users.c.id
    )
    if user_id is not None:
        query = query.where(arrays.c.user_id == user_id)
    return tx.execute(query.where(arrays.c.id == array_id)).one_or_none()


def count_by_state(tx: Connection, array_ids: Collection[str]) -> dict[str, dict[JobState, int]]:
    """Array -> state -> jobs of it in that state."""
    query = select(jobs.c.array_id, jobs.c.state, func.count()).where(jobs.c.array_id.in_(array_ids))
    counts: dict[str, dict[JobState, int]] = {}
    for array_id, state, count in tx.execute(query.group_by(jobs.c.array_id, jobs.c.state)):
        counts.setdefault(array_id, {})[JobState(state)] = count
    return counts


def has_room(tx: Connection, array_id: str) -> bool:
    """Whether one more job of the array may start. Nobody else may ask before this transaction ends."""
    limit = tx.execute(select(arrays.c.limit).where(arrays.c.id == array_id).with_for_update()).scalar_one()
    if limit is None:
        return True
    live = select(func.count()).where(jobs.c.array_id == array_id, jobs.c.state.in_(LIVE))
    return tx.execute(live).scalar_one() < limit


def live_attempts(tx: Connection, array_id: str) -> Sequence[Record]:
    """Attempts of jobs of the array that are not over, always in the same order."""
    query = select(attempts).join(jobs, attempts.c.job_id == jobs.c.id)
    query = query.where(jobs.c.array_id == array_id, attempts.c.state != AttemptState.ENDED.value)
    return tx.execute(query.order_by(attempts.c.id)).all()


def cancel_waiting(tx: Connection, array_id: str, *, reason: str, now: datetime) -> list[str]:
    """Cancel every job of the array that has no devices; their ids."""
    query = (
        update(jobs)
        .where(jobs.c.array_id == array_id, jobs.c.state.in_(WAITING))
        .values(
            state=JobState.CANCELLED.value,
            cancel_requested=True,
            version=jobs.c.version + 1,
            ended_at=now,
            reason=reason,
        )
    )
    return list(tx.execute(query.returning(jobs.c.id)).scalars())


def was_cancelled(tx: Connection, array_id: str) -> bool:
    """Whether somebody has asked for the end of any job of the array."""
    query = select(jobs.c.id).where(jobs.c.array_id == array_id, jobs.c.cancel_requested).limit(1)
    return tx.execute(query).one_or_none() is not None

"""What jobs wait for."""

from collections.abc import Mapping, Sequence

from sqlalchemy import ARRAY, Connection, Text, any_, func, insert, literal, select, update

from service.db import Record
from service.models import dependencies, jobs


def find_parents(tx: Connection, ids: Sequence[str], *, user_id: str | None, lock: bool) -> Sequence[Record]:
    """Jobs with these ids, or of arrays with these ids: columns `id`, `array_id`, `state`.

    With `user_id`, only that user's jobs exist. With `lock`, none of them ends before this transaction does.
    """
    wanted = any_(literal(ids, ARRAY(Text)))
    query = select(jobs.c.id, jobs.c.array_id, jobs.c.state).where((jobs.c.id == wanted) | (jobs.c.array_id == wanted))
    if user_id is not None:
        query = query.where(jobs.c.user_id == user_id)
    query = query.order_by(jobs.c.id)
    return tx.execute(query.with_for_update(read=True) if lock else query).all()


def add_dependencies(tx: Connection, rows: Sequence[Mapping[str, object]]) -> None:
    if rows:
        tx.execute(insert(dependencies), rows)


def lock_dependents(tx: Connection, parent_ids: Sequence[str]) -> Sequence[Record]:
    """Open dependencies on these jobs: columns `parent_id`, `on_success`, and `id`, `state`, `hold` of the job that
    waits, whose row is held until the transaction ends.
    """
    query = (
        select(dependencies.c.parent_id, dependencies.c.on_success, jobs.c.id, jobs.c.state, jobs.c.hold)
        .join(jobs, dependencies.c.job_id == jobs.c.id)
        .where(dependencies.c.parent_id == any_(literal(parent_ids, ARRAY(Text))), ~dependencies.c.met)
        .order_by(jobs.c.id)
        .with_for_update(of=jobs)
    )
    return tx.execute(query).all()


def meet(tx: Connection, *, ended: Sequence[str], succeeded: Sequence[str]) -> None:
    """Note that these jobs have ended, and which of them well."""
    by_end = ~dependencies.c.on_success & (dependencies.c.parent_id == any_(literal(ended, ARRAY(Text))))
    by_success = dependencies.c.on_success & (dependencies.c.parent_id == any_(literal(succeeded, ARRAY(Text))))
    tx.execute(update(dependencies).where(by_end | by_success, ~dependencies.c.met).values(met=True))


def count_open(tx: Connection, job_ids: Sequence[str]) -> Sequence[Record]:
    """For each of these jobs that still waits: columns `job_id`, `open` (how many jobs it waits for), `one` (the id of
    one of them) and `on_success` (whether any of them must succeed).
    """
    query = (
        select(
            dependencies.c.job_id,
            func.count().label("open"),
            func.min(dependencies.c.parent_id).label("one"),
            func.bool_or(dependencies.c.on_success).label("on_success"),
        )
        .where(dependencies.c.job_id == any_(literal(job_ids, ARRAY(Text))), ~dependencies.c.met)
        .group_by(dependencies.c.job_id)
    )
    return tx.execute(query).all()

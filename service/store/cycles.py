"""Recorded cycles, and who leads."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from service.db import Record
from service.models import cycles, leadership


def add_cycle(tx: Connection, **values: object) -> int:
    """The number of the new cycle."""
    return tx.execute(insert(cycles).values(**values).returning(cycles.c.id)).scalar_one()


def list_cycles(tx: Connection, *, before: int | None, limit: int) -> Sequence[Record]:
    """Newest first, without problem and plan."""
    light = [column for column in cycles.c if column.name not in {"problem", "plan"}]
    query = select(*light).order_by(cycles.c.id.desc()).limit(limit)
    return tx.execute(query if before is None else query.where(cycles.c.id < before)).all()


def find_cycle(tx: Connection, cycle_id: int) -> Record | None:
    return tx.execute(select(cycles).where(cycles.c.id == cycle_id)).one_or_none()


def cycles_between(tx: Connection, start: datetime, end: datetime) -> Sequence[Record]:
    """Columns `committed`, `gap`, `solve_s`."""
    query = select(cycles.c.committed, cycles.c.gap, cycles.c.solve_s)
    return tx.execute(query.where(cycles.c.at >= start, cycles.c.at < end)).all()


def read_leadership(tx: Connection) -> Record | None:
    return tx.execute(select(leadership)).one_or_none()


def found_leadership(tx: Connection, holder: str) -> bool:
    """Term 1 for the first process ever. False if another one was first."""
    statement = upsert(leadership).values(id=1, term=1, holder=holder, renewals=0).on_conflict_do_nothing()
    return tx.execute(statement.returning(leadership.c.term)).one_or_none() is not None


def take_leadership(tx: Connection, *, term: int, renewals: int, holder: str) -> bool:
    """Begin term + 1, unless the leader has renewed, or another took over, since `term` and `renewals` were read."""
    query = update(leadership).where(leadership.c.term == term, leadership.c.renewals == renewals)
    return tx.execute(query.values(term=term + 1, holder=holder, renewals=renewals + 1)).rowcount == 1


def renew_leadership(tx: Connection, *, term: int) -> bool:
    """False once another process has taken over."""
    query = update(leadership).where(leadership.c.term == term).values(renewals=leadership.c.renewals + 1)
    return tx.execute(query).rowcount == 1


def resign_leadership(tx: Connection, *, term: int) -> None:
    """Leave the lead free: whoever looks next may begin a new term at once."""
    query = update(leadership).where(leadership.c.term == term)
    tx.execute(query.values(holder="", renewals=leadership.c.renewals + 1))


def guard_term(tx: Connection, term: int) -> int | None:
    """None unless `term` still leads; if so nobody can take over before this transaction ends.

    Returns:
        The least epoch that an attempt may be given.
    """
    query = select(leadership.c.least_epoch).where(leadership.c.term == term).with_for_update(read=True)
    return tx.execute(query).scalar_one_or_none()

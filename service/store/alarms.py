"""What an administrator should look at."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, func, select, tuple_
from sqlalchemy.dialects.postgresql import insert as upsert

from service.db import Record
from service.models import alarms


def put(tx: Connection, kind: str, subject: str, message: str, *, now: datetime) -> None:
    """Raise an alarm. One that is there already keeps its time and gets the message."""
    statement = upsert(alarms).values(kind=kind, subject=subject, message=message, raised_at=now)
    tx.execute(statement.on_conflict_do_update(index_elements=["kind", "subject"], set_={"message": message}))


def drop(tx: Connection, kind: str, subject: str) -> None:
    """Its cause is gone."""
    tx.execute(delete(alarms).where(alarms.c.kind == kind, alarms.c.subject == subject))


def list_alarms(tx: Connection, *, after: tuple[str, str], limit: int) -> Sequence[Record]:
    """By kind and subject."""
    query = select(alarms).where(tuple_(alarms.c.kind, alarms.c.subject) > after)
    return tx.execute(query.order_by(alarms.c.kind, alarms.c.subject).limit(limit)).all()


def count_by_kind(tx: Connection) -> dict[str, int]:
    return dict(tx.execute(select(alarms.c.kind, func.count()).group_by(alarms.c.kind)).all())

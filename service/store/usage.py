"""What reports are made from: who held what, when nodes were on, what was measured."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, or_, select, text
from sqlalchemy.dialects.postgresql import aggregate_order_by

from scheduler.demand import WHOLE_DEVICE
from service.db import Record
from service.models import allocations, attempts, devices, jobs, members, node_sessions, samples, users


def sessions_between(tx: Connection, start: datetime, end: datetime) -> Sequence[Record]:
    """Sessions that overlap the window, by node and time. `ended_at` is None while one lasts."""
    query = select(node_sessions).where(
        node_sessions.c.started_at < end,
        or_(node_sessions.c.ended_at.is_(None), node_sessions.c.ended_at > start),
    )
    return tx.execute(query.order_by(node_sessions.c.node_id, node_sessions.c.started_at)).all()


def holdings_between(tx: Connection, start: datetime, end: datetime) -> Sequence[Record]:
    """Members that held a node inside the window: columns `node_id`, `job_id`, `user_name`, `millicores`,
    `granted_at`, `released_at`, `device_ids`, and `thousandths` held of each: a share that lies in pieces comes as
    several."""
    query = (
        select(
            members.c.node_id,
            jobs.c.id.label("job_id"),
            users.c.name.label("user_name"),
            members.c.millicores,
            members.c.granted_at,
            members.c.released_at,
            _collected(allocations.c.device_id).label("device_ids"),
            _collected(func.upper(allocations.c.span) - func.lower(allocations.c.span)).label("thousandths"),
        )
        .join(attempts, members.c.attempt_id == attempts.c.id)
        .join(jobs, attempts.c.job_id == jobs.c.id)
        .join(users, jobs.c.user_id == users.c.id)
        .outerjoin(
            allocations,
            (allocations.c.attempt_id == members.c.attempt_id) & (allocations.c.member == members.c.member),
        )
        .where(
            members.c.granted_at < end,
            or_(members.c.released_at.is_(None), members.c.released_at > start),
        )
        .group_by(members.c.attempt_id, members.c.member, jobs.c.id, users.c.name)
        .order_by(members.c.node_id, members.c.granted_at, members.c.attempt_id)
    )
    return tx.execute(query).all()


def _collected(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """The column's values over the allocations of a member, in the order of these; empty if it has none."""
    values = func.array_agg(aggregate_order_by(column, allocations.c.id)).filter(allocations.c.id.is_not(None))
    return func.coalesce(values, text("'{}'"))


def device_seconds(tx: Connection, node_ids: Collection[str], start: datetime, end: datetime) -> tuple[float, float]:
    """Device-seconds of these nodes that jobs held in the window, and those for which they were on and heard of."""
    held_s = _overlap_s(allocations.c.granted_at, allocations.c.released_at, start, end)
    thousandths = func.upper(allocations.c.span) - func.lower(allocations.c.span)
    held = (
        select(func.sum(held_s * thousandths / WHOLE_DEVICE))
        .join(devices, allocations.c.device_id == devices.c.id)
        .where(devices.c.node_id.in_(node_ids), allocations.c.granted_at < end)
        .where(or_(allocations.c.released_at.is_(None), allocations.c.released_at > start))
    )
    on_s = _overlap_s(node_sessions.c.started_at, node_sessions.c.ended_at, start, end)
    on = select(func.sum(on_s * node_sessions.c.devices)).where(
        node_sessions.c.node_id.in_(node_ids),
        node_sessions.c.started_at < end,
        or_(node_sessions.c.ended_at.is_(None), node_sessions.c.ended_at > start),
    )
    return float(tx.execute(held).scalar_one() or 0.0), float(tx.execute(on).scalar_one() or 0.0)


def _overlap_s(
    begin: ColumnElement[Any], finish: ColumnElement[Any], start: datetime, end: datetime
) -> ColumnElement[Any]:
    """Length of what the two spans of time have in common, in s, where they overlap. No `finish` means still now."""
    last = func.least(func.coalesce(finish, end), end)
    return func.extract("epoch", last - func.greatest(begin, start))


def samples_between(tx: Connection, start: datetime, end: datetime) -> Sequence[Record]:
    """Measurements that overlap the window, by node and time."""
    query = select(samples).where(samples.c.ended_at > start, samples.c.started_at < end)
    return tx.execute(query.order_by(samples.c.node_id, samples.c.started_at, samples.c.seq)).all()

"""Nodes, their devices, and when they were on."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, case, exists, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from protocol.states import AttemptState, Desired, NodeState, PowerState
from service.db import Record
from service.models import allocations, attempts, devices, members, node_sessions, nodes, samples

_CONDITION = case((nodes.c.power != PowerState.ON.value, nodes.c.power), else_=nodes.c.state)
"""`ready` or `lost`, or how far it is switched off: one that is off is not lost."""


def find_node(tx: Connection, node_id: str, *, lock: bool = False) -> Record | None:
    query = select(nodes).where(nodes.c.id == node_id)
    return tx.execute(query.with_for_update() if lock else query).one_or_none()


def lock_nodes(tx: Connection, node_ids: Sequence[str]) -> Sequence[Record]:
    """The rows of these nodes, held until the transaction ends; always locked in the same order."""
    query = select(nodes).where(nodes.c.id.in_(node_ids)).order_by(nodes.c.id).with_for_update()
    return tx.execute(query).all()


def list_nodes(tx: Connection, *, after: str = "", limit: int | None = None) -> Sequence[Record]:
    """By name."""
    query = select(nodes).where(nodes.c.id > after).order_by(nodes.c.id)
    return tx.execute(query.limit(limit) if limit else query).all()


def add_node(tx: Connection, **values: object) -> None:
    tx.execute(insert(nodes).values(**values))


def change_node(tx: Connection, node_id: str, **values: object) -> None:
    tx.execute(update(nodes).where(nodes.c.id == node_id).values(**values))


def touch_node(tx: Connection, node_id: str, *, incarnation: int, now: datetime) -> Record | None:
    """Note that the agent was heard. None if another incarnation of it has registered since."""
    query = update(nodes).where(nodes.c.id == node_id, nodes.c.incarnation == incarnation)
    return tx.execute(query.values(last_seen_at=now).returning(nodes)).one_or_none()


def mark_lost(tx: Connection, node_id: str, *, last_seen_at: datetime) -> bool:
    """Mark a node lost unless it was heard since. False if it was."""
    query = update(nodes).where(
        nodes.c.id == node_id, nodes.c.last_seen_at == last_seen_at, nodes.c.state == NodeState.READY.value
    )
    return tx.execute(query.values(state=NodeState.LOST.value)).rowcount == 1


def overdue_drains(tx: Connection, now: datetime) -> Sequence[str]:
    """Nodes that should be empty by now and still have an attempt that nobody has told to stop."""
    running = exists().where(
        members.c.node_id == nodes.c.id,
        members.c.attempt_id == attempts.c.id,
        members.c.state != AttemptState.ENDED.value,
        attempts.c.state != AttemptState.ENDED.value,
        attempts.c.desired == Desired.RUN.value,
    )
    return tx.execute(select(nodes.c.id).where(nodes.c.drain_at <= now, running).order_by(nodes.c.id)).scalars().all()


def owners_of_devices(tx: Connection, device_ids: Sequence[str]) -> Sequence[Record]:
    """Who offers these devices: columns `id`, `node_id`, and `state` of the node."""
    query = (
        select(devices.c.id, devices.c.node_id, nodes.c.state)
        .join(nodes, devices.c.node_id == nodes.c.id)
        .where(devices.c.id.in_(device_ids), devices.c.present)
        .order_by(devices.c.id)
    )
    return tx.execute(query).all()


def offer_devices(tx: Connection, node_id: str, offered: Sequence[dict[str, object]]) -> None:
    """Make these the node's devices. A device keeps its number for ever, and moves with whoever offers it."""
    tx.execute(update(devices).where(devices.c.node_id == node_id).values(present=False))
    if offered:
        statement = upsert(devices)
        said = ("kind", "number", "memory_bytes", "power_limit_w", "least_cap_w", "unfit_reason")
        columns = ("node_id", *said, "present")
        statement = statement.on_conflict_do_update(
            index_elements=[devices.c.id], set_={column: statement.excluded[column] for column in columns}
        )
        tx.execute(statement, [{**device, "node_id": node_id, "present": True} for device in offered])


def set_unfit(tx: Connection, node_id: str, unfit: Mapping[str, str]) -> bool:
    """Make these, and no others, the node's devices that must not get work. False if they were that before."""
    ours = update(devices).where(devices.c.node_id == node_id)
    well = ours.where(devices.c.unfit_reason.is_not(None), devices.c.id.not_in(unfit))
    changed = tx.execute(well.values(unfit_reason=None)).rowcount
    for device_id, reason in unfit.items():
        this = ours.where(devices.c.id == device_id, devices.c.unfit_reason.is_distinct_from(reason))
        changed += tx.execute(this.values(unfit_reason=reason)).rowcount
    return changed > 0


def set_caps(tx: Connection, node_id: str, least_w: Mapping[str, float]) -> bool:
    """Make these, and no others, the node's devices whose power limit its agent can set, with the lowest limit of each
    (W). False if they were that before.
    """
    ours = update(devices).where(devices.c.node_id == node_id)
    gone = ours.where(devices.c.least_cap_w.is_not(None), devices.c.id.not_in(least_w))
    changed = tx.execute(gone.values(least_cap_w=None)).rowcount
    for device_id, limit_w in least_w.items():
        this = ours.where(devices.c.id == device_id, devices.c.least_cap_w.is_distinct_from(limit_w))
        changed += tx.execute(this.values(least_cap_w=limit_w)).rowcount
    return changed > 0


def list_devices(tx: Connection, node_id: str | None = None) -> Sequence[Record]:
    """Devices that are offered now, of one node or of all."""
    query = select(devices).where(devices.c.present).order_by(devices.c.node_id, devices.c.number, devices.c.id)
    return tx.execute(query if node_id is None else query.where(devices.c.node_id == node_id)).all()


def count_devices(tx: Connection) -> Sequence[Record]:
    """Devices that are offered now, by kind: columns `kind`, `condition` of the node, `held` and how many (`devices`).

    The condition is as in `count_by_condition`.
    """
    held = exists().where(allocations.c.device_id == devices.c.id, allocations.c.released_at.is_(None))
    condition = _CONDITION.label("condition")
    query = select(devices.c.kind, condition, held.label("held"), func.count().label("devices"))
    query = query.join(nodes, devices.c.node_id == nodes.c.id).where(devices.c.present)
    return tx.execute(query.group_by(devices.c.kind, condition, "held").order_by(devices.c.kind)).all()


def open_session(tx: Connection, *, node_id: str, num_devices: int, base_w: float, now: datetime) -> None:
    """The node is on and heard of from now on. The power of an earlier session stays what it was."""
    tx.execute(insert(node_sessions).values(node_id=node_id, devices=num_devices, base_w=base_w, started_at=now))


def close_session(tx: Connection, node_id: str, *, ended_at: datetime) -> None:
    """The node was last heard of at `ended_at`."""
    query = update(node_sessions).where(node_sessions.c.node_id == node_id, node_sessions.c.ended_at.is_(None))
    tx.execute(query.values(ended_at=func.greatest(ended_at, node_sessions.c.started_at)))


def current_base_w(tx: Connection) -> dict[str, float]:
    """Power at idle of each node in W, as of its latest registration."""
    latest = select(func.max(node_sessions.c.id)).group_by(node_sessions.c.node_id)
    query = select(node_sessions.c.node_id, node_sessions.c.base_w).where(node_sessions.c.id.in_(latest))
    return dict(tx.execute(query).all())


def add_samples(tx: Connection, rows: Sequence[dict[str, object]]) -> None:
    if rows:
        tx.execute(insert(samples), list(rows))


def count_by_condition(tx: Connection) -> dict[str, int]:
    """How many nodes are `ready`, `lost`, `suspending`, `off` or `booting`; those of which there is none are absent."""
    query = select(_CONDITION, func.count()).group_by(_CONDITION)
    return dict(tx.execute(query).all())

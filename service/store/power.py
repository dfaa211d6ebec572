"""Power states of nodes, and what becomes of the commands that switch them."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, and_, func, insert, or_, select, update

from protocol.states import NodeState, PowerState
from service.db import Record
from service.models import members, nodes, power_spells


def change_power(tx: Connection, node_id: str, state: PowerState, *, now: datetime) -> None:
    """The node is in this state from now on, and no command of before counts."""
    query = update(nodes).where(nodes.c.id == node_id)
    tx.execute(query.values(power=state.value, power_since=now, hook_began_at=None, hook_ended_at=None))
    spell = update(power_spells).where(power_spells.c.node_id == node_id, power_spells.c.ended_at.is_(None))
    tx.execute(spell.values(ended_at=func.greatest(now, power_spells.c.began_at)))
    if state is not PowerState.ON:
        tx.execute(insert(power_spells).values(node_id=node_id, state=state.value, began_at=now))


def unsettled(tx: Connection) -> Sequence[Record]:
    """Nodes by name that are on their way off or on, whose state an administrator has decided, or that were lost after
    their `off` command had failed.
    """
    moving = nodes.c.power.in_((PowerState.SUSPENDING.value, PowerState.BOOTING.value))
    gone = and_(nodes.c.power == PowerState.ON.value, nodes.c.state == NodeState.LOST.value, nodes.c.hook_failures > 0)
    query = select(nodes).where(or_(moving, nodes.c.power_kept.is_not(None), gone))
    return tx.execute(query.order_by(nodes.c.id)).all()


def boots_since(tx: Connection, since: datetime) -> dict[str, int]:
    """How often each node began to boot since then; nodes that did not are absent."""
    query = select(power_spells.c.node_id, func.count()).where(
        power_spells.c.began_at > since, power_spells.c.state == PowerState.BOOTING.value
    )
    return dict(tx.execute(query.group_by(power_spells.c.node_id)).all())


def last_releases(tx: Connection, since: datetime) -> dict[str, datetime]:
    """When the last member left each node, where that was since then."""
    query = select(members.c.node_id, func.max(members.c.released_at)).where(members.c.released_at > since)
    return dict(tx.execute(query.group_by(members.c.node_id)).all())


def spells_between(tx: Connection, start: datetime, end: datetime) -> Sequence[Record]:
    """When nodes were not on, as far as it overlaps the window, by node and time. `ended_at` is None while it lasts."""
    query = select(power_spells).where(
        power_spells.c.began_at < end, or_(power_spells.c.ended_at.is_(None), power_spells.c.ended_at > start)
    )
    return tx.execute(query.order_by(power_spells.c.node_id, power_spells.c.began_at)).all()

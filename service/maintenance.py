"""Taking nodes out of use and back: cordon keeps new work away, drain also ends what runs there by a deadline.

And an administrator's word that a node which is not heard of is down, or is to be switched off or on.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection

from protocol.nodes import NodeView
from protocol.states import Desired, EndReason, NodeState, PowerState
from service import attempts, nodes, power
from service.alarms import Alarm
from service.auth import Person
from service.cycle.leases import QUIET_S
from service.db import Record, notify
from service.power_pools import PowerPool, pool_of
from service.power_states import Event
from service.refusals import NodeHeard, NotSwitchable, UnknownNode
from service.store import alarms as alarm_store
from service.store import attempts as attempt_store
from service.store import nodes as store


def cordon(tx: Connection, person: Person, name: str) -> NodeView:
    """Nothing new goes to the node; what runs there goes on. A drain that was asked for is called off.

    Raises:
        UnknownNode: there is none of this name.
    """
    return _change(tx, person, name, cordoned=True, drain_at=None)


def uncordon(tx: Connection, person: Person, name: str) -> NodeView:
    """The node takes work again, and nothing is stopped there any more that was not yet. Raises UnknownNode."""
    view = _change(tx, person, name, cordoned=False, drain_at=None, closed_because=None)
    alarm_store.drop(tx, Alarm.NODE_CLOSED, name)
    return view


def drain(tx: Connection, person: Person, name: str, *, deadline_s: float, now: datetime) -> NodeView:
    """Nothing new goes to the node; what still runs there after the deadline is stopped and requeued.

    Asking again sets the deadline anew. Raises UnknownNode.
    """
    view = _change(tx, person, name, cordoned=True, drain_at=now + timedelta(seconds=deadline_s))
    if deadline_s == 0:
        stop_drained(tx, name, now=now)
    return view


def stop_drained(tx: Connection, node_id: str, *, now: datetime) -> bool:
    """Stop what runs on a node whose drain is past its deadline, whole gangs. False if there was nothing to stop.

    The deadline and `now` are both the service's own: no agent's clock has a part in it.
    """
    [node] = store.lock_nodes(tx, [node_id])
    if node.drain_at is None or node.drain_at > now:
        return False
    live = [row for row in attempt_store.live_attempts_on_node(tx, node_id) if row.desired == Desired.RUN.value]
    for row in live:
        attempt = attempt_store.lock_attempt(tx, row.id)
        if attempt is not None and attempt.desired == Desired.RUN.value:
            attempts.stop(tx, attempt, EndReason.DRAINED, now=now)
    return bool(live)


def confirm_down(tx: Connection, person: Person, name: str, *, max_attempts: int, now: datetime) -> NodeView:
    """Somebody has seen that the machine is off: what it held is free at once, and its jobs run again elsewhere.

    Nothing of the kind is done to a node that was heard lately. If the word was wrong and the node comes back, its
    agent ends what is not its own any more before it starts anything.

    Raises:
        UnknownNode: there is none of this name.
        NodeHeard: it is not down.
    """
    node = _locked(tx, name)
    silent_s = (now - node.last_seen_at).total_seconds()
    if node.state == NodeState.READY.value and silent_s < QUIET_S:
        raise NodeHeard(f"node {name!r} was heard {max(0, silent_s):.0f} s ago; `ergon node drain {name}` empties it")
    nodes.lose(tx, name, last_seen_at=node.last_seen_at, max_attempts=max_attempts, now=now)
    attempts.lose_node(tx, name, release=True, max_attempts=max_attempts, now=now)
    return nodes.get(tx, person, name)


def switch_on(
    tx: Connection, person: Person, name: str, *, pools: Sequence[PowerPool], keep: bool, now: datetime
) -> NodeView:
    """Switch the node on if it is off or lost. With `keep` no plan switches it off again; without, plans may.

    Raises:
        UnknownNode: there is none of this name.
        NotSwitchable: it belongs to no pool, or is just going off.
    """
    node = _switchable(tx, name, pools)
    if node.power == PowerState.SUSPENDING.value:
        raise NotSwitchable(f"node {name!r} is just going off; say it again when it is off")
    store.change_node(tx, name, power_kept=PowerState.ON.value if keep else None, hook_retry_at=None)
    if node.power == PowerState.OFF.value or node.state == NodeState.LOST.value:
        power.happen(tx, node, Event.CALL, now=now)
    notify(tx, "cycle")
    return nodes.get(tx, person, name)


def switch_off(tx: Connection, person: Person, name: str, *, pools: Sequence[PowerPool]) -> NodeView:
    """Keep new work away from the node, have it switched off when nothing runs there any more, and leave it off.

    Raises:
        UnknownNode: there is none of this name.
        NotSwitchable: it belongs to no pool.
    """
    _switchable(tx, name, pools)
    store.change_node(tx, name, power_kept=PowerState.OFF.value, hook_retry_at=None)
    notify(tx, "cycle")
    return nodes.get(tx, person, name)


def _switchable(tx: Connection, name: str, pools: Sequence[PowerPool]) -> Record:
    node = _locked(tx, name)
    if pool_of(pools, name) is None:
        raise NotSwitchable(f"node {name!r} is in no pool of ERGON_POWER_POOLS, so nothing says how to switch it")
    return node


def _locked(tx: Connection, name: str) -> Record:
    node = store.find_node(tx, name, lock=True)
    if node is None:
        raise UnknownNode(f"there is no node {name!r}; `ergon nodes` lists them")
    return node


def _change(tx: Connection, person: Person, name: str, **values: object) -> NodeView:
    nodes.get(tx, person, name)
    store.change_node(tx, name, **values)
    notify(tx, "cycle")
    return nodes.get(tx, person, name)

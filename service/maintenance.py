"""Taking nodes out of use and back: cordon keeps new work away, drain also ends what runs there by a deadline."""

from datetime import datetime, timedelta

from sqlalchemy import Connection

from protocol.nodes import NodeView
from protocol.states import Desired, EndReason
from service import attempts, nodes
from service.auth import Person
from service.db import notify
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
    return _change(tx, person, name, cordoned=False, drain_at=None)


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


def _change(tx: Connection, person: Person, name: str, **values: object) -> NodeView:
    nodes.get(tx, person, name)
    store.change_node(tx, name, **values)
    notify(tx, "cycle")
    return nodes.get(tx, person, name)

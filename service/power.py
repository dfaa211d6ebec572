"""The one place where a node's power state changes."""

from datetime import datetime, timedelta

from sqlalchemy import Connection

from protocol.states import PowerState
from service.alarms import Alarm
from service.db import Record, notify
from service.power_states import CHANGES, Event, back_off_s
from service.store import alarms as alarm_store
from service.store import nodes as node_store
from service.store import power as store

SETTLED = (Event.BOOTED, Event.HEARD, Event.WENT)
"""What shows that the node can be switched after all."""


def happen(tx: Connection, node: Record, event: Event, *, now: datetime) -> bool:
    """The event happens to the node, whose row is locked. False if it changes nothing in its present state."""
    state = CHANGES.get((PowerState(node.power), event))
    if state is None:
        return False
    store.change_power(tx, node.id, state, now=now)
    if event in SETTLED:
        # One that was only heard counts as one whose command failed: if it is lost next, it may have been off.
        failures = int(event is Event.HEARD)
        node_store.change_node(tx, node.id, hook_failures=failures, hook_error=None, hook_retry_at=None)
        alarm_store.drop(tx, Alarm.HOOK_FAILED, node.id)
    notify(tx, "cycle")
    return True


def note_failure(tx: Connection, node: Record, why: str, *, now: datetime) -> None:
    """The command that switches the node, whose row is locked, failed or had no effect; it is tried again later."""
    failures = node.hook_failures + 1
    again_s = back_off_s(failures)
    node_store.change_node(
        tx,
        node.id,
        hook_began_at=None,
        hook_failures=failures,
        hook_error=why,
        hook_retry_at=now + timedelta(seconds=again_s),
    )
    message = (
        f"{node.id} cannot be switched: {why} (failure {failures}); it is tried again, look at its pool's commands"
    )
    alarm_store.put(tx, Alarm.HOOK_FAILED, node.id, message, now=now)

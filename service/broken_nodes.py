"""A node on which nothing starts would take one job after another: it is closed, and an administrator is told."""

from datetime import datetime

from sqlalchemy import Connection

from protocol.states import EndReason
from service.alarms import Alarm
from service.db import notify
from service.store import alarms as alarm_store
from service.store import attempts as attempt_store
from service.store import nodes as node_store

IN_A_ROW = 3
"""So many attempts that could not start on a node, and none in between that could, close it. A job has more tries than
that (`ERGON_MAX_ATTEMPTS`), so no job fails by one broken node."""


def consider(tx: Connection, node_id: str, *, now: datetime) -> None:
    """Close the node if the latest attempts there ended without anybody knowing whether they ran."""
    latest = attempt_store.latest_ends_on_node(tx, node_id, IN_A_ROW)
    if len(latest) < IN_A_ROW or any(reason != EndReason.UNKNOWN_START.value for reason, _ in latest):
        return
    why = f"the last {IN_A_ROW} attempts could not start there; the latest: {latest[0][1] or 'it did not say why'}"
    node_store.change_node(tx, node_id, cordoned=True, closed_because=why)
    message = f"{node_id} gets nothing new: {why}; mend it, then `ergon node uncordon {node_id}`"
    alarm_store.put(tx, Alarm.NODE_CLOSED, node_id, message, now=now)
    notify(tx, "cycle")

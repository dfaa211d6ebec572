"""What an administrator should look at: raised where it is found, dropped where its cause is gone."""

from enum import StrEnum

from sqlalchemy import Connection

from protocol.alarms import AlarmPage, AlarmView
from service.store import alarms as store


class Alarm(StrEnum):
    """Kinds of alarms."""

    NODES_SILENT = "nodes_silent"  # most nodes are silent at once, so none is given up
    NODE_CLOSED = "node_closed"  # attempts could not start on the node, or it did not boot, so it gets no more
    TARIFF_UNREADABLE = "tariff_unreadable"  # ERGON_TARIFF cannot be read; what was known stays
    HOOK_FAILED = "hook_failed"  # the command that switches a node off or on fails


def list_page(tx: Connection, *, after: str, limit: int) -> AlarmPage:
    """One page. `after` is the `next` of the page before."""
    kind, _, subject = after.partition("/")
    rows = store.list_alarms(tx, after=(kind, subject), limit=limit + 1)
    items = [AlarmView.model_validate(row._asdict()) for row in rows[:limit]]
    more = f"{items[-1].kind}/{items[-1].subject}" if len(rows) > limit else None
    return AlarmPage(items=items, next=more)

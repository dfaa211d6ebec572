"""Looking back at planning cycles."""

import json
import zlib

from sqlalchemy import Connection

from protocol.cycles import CycleDetail, CyclePage
from service import views
from service.refusals import UnknownCycle
from service.store import cycles as store


def list_page(tx: Connection, *, before: int | None, limit: int) -> CyclePage:
    """One page of cycles, newest first."""
    rows = store.list_cycles(tx, before=before, limit=limit + 1)
    items = [views.cycle(row) for row in rows[:limit]]
    return CyclePage(items=items, next=str(items[-1].id) if len(rows) > limit else None)


def get(tx: Connection, cycle_id: int) -> CycleDetail:
    """One cycle with its problem and plan.

    Raises:
        UnknownCycle: there is none of this number.
    """
    row = store.find_cycle(tx, cycle_id)
    if row is None:
        raise UnknownCycle(f"there is no cycle {cycle_id}; `ergon plans` lists them")
    columns = row._asdict()
    for name in ("problem", "plan"):
        columns[name] = json.loads(zlib.decompress(columns[name]))
    return CycleDetail.model_validate(columns)

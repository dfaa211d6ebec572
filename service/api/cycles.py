"""Routes under /v1/cycles. Plans show every user's jobs: administrators only."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from protocol.cycles import CycleDetail, CyclePage
from service import cycles
from service.api.deps import AdminDep, PartsDep
from service.api.errors import RESPONSES, refused
from service.refusals import UnknownCycle

router = APIRouter(prefix="/v1/cycles", tags=["cycles"], responses=RESPONSES)


@router.get("")
def list_cycles(
    parts: PartsDep,
    person: AdminDep,
    limit: Annotated[int, Query(ge=1, le=500, description="Items on a page.")] = 50,
    cursor: Annotated[int | None, Query(ge=0, le=2**62, description="`next` of the page before.")] = None,
) -> CyclePage:
    """Planning cycles, newest first."""
    with parts.engine.begin() as tx:
        return cycles.list_page(tx, before=cursor, limit=limit)


@router.get("/{cycle_id}", responses=refused(UnknownCycle))
def get_cycle(cycle_id: Annotated[int, Path(ge=0, le=2**62)], parts: PartsDep, person: AdminDep) -> CycleDetail:
    """One cycle with everything it saw and decided: solving its problem again gives its plan."""
    with parts.engine.begin() as tx:
        return cycles.get(tx, cycle_id)

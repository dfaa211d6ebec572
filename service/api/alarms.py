"""Routes under /v1/alarms."""

from typing import Annotated

from fastapi import APIRouter, Query

from protocol.alarms import AlarmPage
from service import alarms
from service.api.deps import PartsDep, PersonDep
from service.api.errors import RESPONSES

router = APIRouter(prefix="/v1/alarms", tags=["service"], responses=RESPONSES)

CURSOR = r"^[a-z_]*(/[A-Za-z0-9._-]*)?$"


@router.get("")
def list_alarms(
    parts: PartsDep,
    person: PersonDep,
    limit: Annotated[int, Query(ge=1, le=500, description="Items on a page.")] = 100,
    cursor: Annotated[str, Query(max_length=200, pattern=CURSOR, description="`next` of the page before.")] = "",
) -> AlarmPage:
    """What an administrator should look at, as long as it lasts."""
    with parts.engine.begin() as tx:
        return alarms.list_page(tx, after=cursor, limit=limit)

"""Routes under /v1/reports."""

from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic import AwareDatetime, BeforeValidator

from protocol.errors import FieldError
from protocol.reports import AllocationReport
from service.api.deps import PartsDep, PersonDep
from service.api.errors import RESPONSES
from service.db import snapshot
from service.refusals import Invalid
from service.reports.allocation import report
from service.reports.table import to_csv

router = APIRouter(prefix="/v1/reports", tags=["reports"], responses=RESPONSES)

DEFAULT_WINDOW = timedelta(days=1)
LONGEST_WINDOW = timedelta(days=366)


def _written_out(value: object) -> object:
    """A bare number would pass for the seconds of some epoch."""
    if isinstance(value, str) and "-" not in value[1:]:
        raise ValueError("write date and time out, with the offset to UTC, such as 2026-01-31T00:00:00Z")
    return value


Moment = Annotated[
    AwareDatetime | None,
    BeforeValidator(_written_out),
    Query(description="With its offset to UTC, such as 2026-01-31T00:00:00Z."),
]


@router.get(
    "/allocation",
    response_model=AllocationReport,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
def allocation(
    parts: PartsDep,
    person: PersonDep,
    start: Moment = None,
    end: Moment = None,
    format: Annotated[Literal["json", "csv"], Query()] = "json",
) -> Response | AllocationReport:
    """Device-hours, energy and idleness over [start, end); the last day if neither is given."""
    begin, finish = window(start, end, parts.now())
    with snapshot(parts.engine) as tx:
        found = report(tx, person, start=begin, end=finish, tariff=parts.tariffs.current())
    return Response(to_csv(found), media_type="text/csv") if format == "csv" else found


def window(start: datetime | None, end: datetime | None, now: datetime) -> tuple[datetime, datetime]:
    """The window that is asked for, ending now at the latest.

    Raises:
        Invalid: it is empty, or longer than LONGEST_WINDOW.
    """
    finish = min(end or now, now)
    try:
        begin = start or finish - DEFAULT_WINDOW
    except OverflowError:
        begin = finish
    if begin >= finish:
        message = "must be before `end`, and in the past"
        raise Invalid(f"start {message}", errors=[FieldError(field="query.start", message=message)])
    if finish - begin > LONGEST_WINDOW:
        message = f"the window is longer than {LONGEST_WINDOW.days} days; ask for less at a time"
        raise Invalid(message, errors=[FieldError(field="query.start", message=message)])
    return begin, finish

"""Addresses of the pages. Each reads what the visitor may see in one transaction, and renders it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from pydantic import BeforeValidator

from protocol.base import Name
from protocol.jobs import JobView
from protocol.states import FINAL_JOB_STATES, JobState
from service import auth, cycles, jobs
from service.api.deps import PartsDep
from service.api.hub import ANY
from service.api.jobs import Cursor, JobId
from service.api.nodes import Cursor as NodeCursor
from service.api.reports import window
from service.db import snapshot
from service.nodes import OTHER_USER
from service.refusals import Forbidden, Unauthorised
from service.reports.allocation import report
from service.reports.table import to_csv
from service.store import logs as log_store
from service.store import usage
from service.web import charts, output, session
from service.web.overview import overview
from service.web.page_route import PageRoute
from service.web.paging import cut
from service.web.render import ASSETS, page
from service.web.session import FormDep, VisitingAdminDep, VisitorDep, same_origin

router = APIRouter(include_in_schema=False, route_class=PageRoute)

JOBS = 50
CYCLES = 50
EVENTS = 100
LINES = 50
"""Lines of a table that is held whole in memory: nodes and users of a report, verdicts of a plan."""

MAX_CURVES = 12
MAX_POINTS = 300

KEEP_ALIVE_S = 15.0
"""A stream says at least this often that it is still there."""

QUIET_S = 0.25
"""A stream tells of changes four times a second at most."""

LAST = {"1h": timedelta(hours=1), "24h": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30)}


def _none_if_empty(value: object) -> object:
    """A field of a form that was left empty."""
    return None if value == "" else value


NameOrNone = Annotated[Name | None, BeforeValidator(_none_if_empty)]
Moment = Annotated[datetime | None, BeforeValidator(_none_if_empty)]
PageNumber = Annotated[int, Query(ge=1, le=10**6)]


@router.get("/")
def show_overview(parts: PartsDep, person: VisitorDep, after: NodeCursor = "") -> Response:
    """What stands idle, what runs, what waits and why, and the nodes."""
    with snapshot(parts.engine) as tx:
        view = overview(tx, person, after=after, power=parts.settings.power, now=parts.now())
    return page("overview.html", now=parts.now(), person=person, view=view, after=after, other_user=OTHER_USER)


@router.get("/jobs")
def list_jobs(
    parts: PartsDep,
    person: VisitorDep,
    state: Annotated[list[JobState], Query(max_length=10)] = [],  # noqa: B006
    user: NameOrNone = None,
    queue: NameOrNone = None,
    name: NameOrNone = None,
    cursor: Cursor = None,
) -> Response:
    """Jobs, newest first."""
    with snapshot(parts.engine) as tx:
        view = jobs.list_page(tx, person, user=user, states=state, queue=queue, name=name, before=cursor, limit=JOBS)
    filters = {"state": state, "user": user or "", "queue": queue or "", "name": name or ""}
    kept = {key: value for key, value in filters.items() if value}
    return page(
        "jobs.html",
        now=parts.now(),
        person=person,
        view=view,
        states=list(JobState),
        chosen={**filters, "cursor": cursor},
        filtered=bool(kept),
        newest=_address("/jobs", kept),
        older=_address("/jobs", {**kept, "cursor": view.next}) if view.next else None,
    )


@router.get("/jobs/{job_id}")
def show_job(
    job_id: JobId,
    parts: PartsDep,
    person: VisitorDep,
    attempt: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    rank: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    events: Cursor = None,
) -> Response:
    """One job: why it waits or ended, its attempts, the curves and the end of the output of one rank, its events."""
    with snapshot(parts.engine) as tx:
        job = jobs.look(tx, person, job_id, now=parts.now())
        epoch = attempt or job.epoch
        happened = jobs.list_events(tx, person, job_id, after=events or 0, limit=EVENTS)
        points = log_store.curves(tx, job_id, epoch=epoch, rank=rank, max_names=MAX_CURVES + 1, max_points=MAX_POINTS)
        chunks = log_store.last_chunks(
            tx, job_id, epoch=epoch, rank=rank, limit=output.MAX_CHUNKS, max_bytes=output.MAX_BYTES
        )
    drawn = charts.curves(points)
    return page(
        "job.html",
        now=parts.now(),
        person=person,
        job=job,
        final=job.state in FINAL_JOB_STATES,
        attempt=epoch,
        rank=rank,
        ranks=_size_of(job, epoch) * job.spec.ranks,
        curves=drawn[:MAX_CURVES],
        more_curves=len(drawn) > MAX_CURVES,
        output=output.tail(chunks),
        events=happened,
        later=events is not None,
    )


@router.post("/jobs/{job_id}/cancel", dependencies=[Depends(same_origin)])
def cancel_job(job_id: JobId, parts: PartsDep, person: VisitorDep) -> Response:
    """Ask for the job to end, and look at it again."""
    with parts.engine.begin() as tx:
        jobs.cancel(tx, person, job_id, now=parts.now())
    return RedirectResponse(f"/jobs/{job_id}", 303)


@router.get("/report")
def show_report(
    parts: PartsDep,
    person: VisitorDep,
    last: Literal["1h", "24h", "7d", "30d"] = "24h",
    start: Moment = None,
    end: Moment = None,
    nodes: PageNumber = 1,
    users: PageNumber = 1,
) -> Response:
    """Allocation and energy over [start, end), or over the time up to now that `last` names."""
    now = parts.now()
    begin, finish = window(_in_utc(start) if start or end else now - LAST[last], _in_utc(end), now)
    with snapshot(parts.engine) as tx:
        found = report(tx, person, start=begin, end=finish, tariff=parts.tariffs.current())
        node_lines, user_lines = cut(found.nodes, nodes, LINES), cut(found.users, users, LINES)
        shown = {line.node: line.devices for line in node_lines.items}
        sessions = usage.sessions_between(tx, begin, finish) if shown else []
        holdings = usage.holdings_between(tx, begin, finish) if shown else []
    colours = {name: number % charts.COLOURS for number, name in enumerate(sorted({row.user_name for row in holdings}))}
    kept = {"start": start.isoformat() if start else "", "end": end.isoformat() if end else "", "last": last}
    return page(
        "report.html",
        now=now,
        person=person,
        report=found,
        shows_carbon=any(line.carbon_kg is not None for line in found.users),
        last=None if start or end else last,
        nodes=node_lines,
        users=user_lines,
        address=_address("/report", {key: value for key, value in kept.items() if value}),
        available_hours=sum(line.available_device_hours for line in found.nodes),
        allocated_hours=sum(line.allocated_device_hours for line in found.nodes),
        strips=charts.strips(
            list(shown),
            (row for row in sessions if row.node_id in shown),
            (row for row in holdings if row.node_id in shown),
            shown,
            colours,
            start=begin,
            end=finish,
        ),
        colours=colours,
        marks=charts.round_moments(begin, finish),
        short=finish - begin <= timedelta(days=2),
    )


@router.get("/report.csv")
def download_report(parts: PartsDep, person: VisitorDep, start: Moment = None, end: Moment = None) -> Response:
    """The report as a file: what `GET /v1/reports/allocation?format=csv` answers."""
    begin, finish = window(_in_utc(start), _in_utc(end), parts.now())
    with snapshot(parts.engine) as tx:
        found = report(tx, person, start=begin, end=finish, tariff=parts.tariffs.current())
    name = f"ergon-{begin:%Y%m%dT%H%M%SZ}-{finish:%Y%m%dT%H%M%SZ}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(to_csv(found), media_type="text/csv", headers=headers)


@router.get("/plans")
def list_plans(parts: PartsDep, person: VisitingAdminDep, cursor: Cursor = None) -> Response:
    """Planning cycles, newest first."""
    with snapshot(parts.engine) as tx:
        view = cycles.list_page(tx, before=cursor, limit=CYCLES)
    return page("plans.html", now=parts.now(), person=person, view=view, cursor=cursor)


@router.get("/plans/{cycle_id}")
def show_plan(
    cycle_id: Annotated[int, Path(ge=0, le=2**62)],
    parts: PartsDep,
    person: VisitingAdminDep,
    verdicts: PageNumber = 1,
    placements: PageNumber = 1,
) -> Response:
    """One cycle: what it placed, what it said of every job, and what its objective is made of."""
    with snapshot(parts.engine) as tx:
        cycle = cycles.get(tx, cycle_id)
    plan: Any = cycle.plan
    return page(
        "plan.html",
        now=parts.now(),
        person=person,
        cycle=cycle,
        cost=plan["cost"],
        power_steps=plan["power_steps"],
        placements=cut(plan["placements"], placements, LINES),
        verdicts=cut(plan["verdicts"], verdicts, LINES),
    )


@router.get("/sign-in")
def ask_for_token(next: str = "/") -> Response:
    """The form."""
    return page("sign_in.html", next=session.own_path(next), error=None)


@router.post("/sign-in", dependencies=[Depends(same_origin)])
def sign_in(request: Request, parts: PartsDep, form: FormDep) -> Response:
    """Keep the token in the browser if it is a person's, and go where the visitor wanted to go."""
    token, wanted = form.get("token", "").strip(), session.own_path(form.get("next", "/"))
    try:
        with parts.engine.begin() as tx:
            auth.identify_person(tx, f"Bearer {token}")
    except (Unauthorised, Forbidden) as refusal:
        return page("sign_in.html", status=refusal.status, next=wanted, error=refusal.detail)
    response = RedirectResponse(wanted, 303)
    session.begin(response, token, secure=request.url.scheme == "https")
    return response


@router.post("/sign-out", dependencies=[Depends(same_origin)])
def sign_out() -> Response:
    """Make this browser forget the token. It stays valid elsewhere."""
    response = RedirectResponse("/sign-in", 303)
    session.end(response)
    return response


@router.get("/web/events")
async def stream_changes(parts: PartsDep, person: VisitorDep) -> Response:
    """Says `changed` whenever something may have changed, and not what: the page reads itself again."""

    async def stream() -> AsyncIterator[str]:
        ticket = parts.hub.ticket(ANY)
        yield ": here\n\n"
        while not parts.hub.closed:
            await parts.hub.wait(ANY, ticket, KEEP_ALIVE_S)
            seen = parts.hub.ticket(ANY)
            yield ": still here\n\n" if seen == ticket else "data: changed\n\n"
            ticket = seen
            await asyncio.sleep(QUIET_S)

    return StreamingResponse(stream(), media_type="text/event-stream")


@router.get("/web/static/{name}")
def read_asset(name: str) -> Response:
    """A file of the pages. Its address changes with its content."""
    if name not in ASSETS:
        raise HTTPException(404, f"there is no file {name!r}")
    content, media_type = ASSETS[name]
    return Response(content, media_type=media_type, headers={"Cache-Control": "public, max-age=31536000, immutable"})


def _size_of(job: JobView, epoch: int) -> int:
    """How many nodes an attempt of the job has; without one the most that it may get."""
    found = next((attempt for attempt in job.attempts if attempt.epoch == epoch), None)
    return len(found.members) if found else job.spec.sizes[-1]


def _in_utc(value: datetime | None) -> datetime | None:
    """The picker of a browser gives no offset; the page says that it means UTC."""
    return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def _address(path: str, query: Mapping[str, object]) -> str:
    return f"{path}?{urlencode(query, doseq=True)}" if query else path

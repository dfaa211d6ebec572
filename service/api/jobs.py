"""Routes under /v1/jobs."""

from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Path, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from protocol.base import Name
from protocol.jobs import EventPage, JobPage, JobView, LogView, MetricPage
from protocol.states import FINAL_JOB_STATES, JobState
from service import auth, jobs, views
from service.api.deps import PartsDep, PersonDep
from service.api.errors import LINES_MEDIA_TYPE, RESPONSES, refused
from service.db import Record
from service.refusals import JobEnded, Unauthorised, UnknownJob
from service.store import logs as log_store

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=RESPONSES)

JobId = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9-]+$", description="The job's id.")]
Limit = Annotated[int, Query(ge=1, le=500, description="Items on a page.")]
Cursor = Annotated[
    int | None, Query(ge=0, le=2**62, description="`next` of the page before; the first page without it.")
]
Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=200, description="Send the same to repeat a request."),
]

PAGE = 100
CHUNKS_AT_ONCE = 64
KEEP_ALIVE_S = 15.0
LINES = {"model": LogView, "content": {LINES_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/LogView"}}}}


@router.get("")
def list_jobs(
    parts: PartsDep,
    person: PersonDep,
    state: Annotated[list[JobState], Query(max_length=10, description="May be given several times.")] = [],  # noqa: B006
    user: Name | None = None,
    queue: Name | None = None,
    name: Name | None = None,
    array: Annotated[str | None, Query(max_length=64, description="Only jobs of this array.")] = None,
    folded: Annotated[bool, Query(description="Show an array as its first job, with the states of all.")] = False,
    limit: Limit = PAGE,
    cursor: Cursor = None,
) -> JobPage:
    """Jobs, newest first. A user sees own jobs only. Attempts are left out; get a job to see them."""
    with parts.engine.begin() as tx:
        return jobs.list_page(
            tx,
            person,
            user=user,
            states=state,
            queue=queue,
            name=name,
            array_id=array,
            folded=folded,
            before=cursor,
            limit=limit,
        )


@router.get("/{job_id}", responses=refused(UnknownJob))
def get_job(job_id: JobId, parts: PartsDep, person: PersonDep) -> JobView:
    """One job with all its attempts, and how long it is expected to run."""
    with parts.engine.begin() as tx:
        return jobs.look(tx, person, job_id, now=parts.now())


@router.post("/{job_id}/cancel", responses=refused(UnknownJob, JobEnded))
def cancel_job(job_id: JobId, parts: PartsDep, person: PersonDep) -> JobView:
    """Ask for the job to end. Asking again changes nothing."""
    with parts.engine.begin() as tx:
        return jobs.cancel(tx, person, job_id, now=parts.now())


@router.get("/{job_id}/events", responses=refused(UnknownJob))
def list_events(
    job_id: JobId, parts: PartsDep, person: PersonDep, limit: Limit = PAGE, cursor: Cursor = None
) -> EventPage:
    """What happened to the job, oldest first."""
    with parts.engine.begin() as tx:
        return jobs.list_events(tx, person, job_id, after=cursor or 0, limit=limit)


@router.get("/{job_id}/metrics", responses=refused(UnknownJob))
def list_metrics(
    job_id: JobId,
    parts: PartsDep,
    person: PersonDep,
    name: Annotated[str | None, Query(max_length=200)] = None,
    rank: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    limit: Annotated[int, Query(ge=1, le=5_000, description="Items on a page.")] = 1_000,
    cursor: Cursor = None,
) -> MetricPage:
    """Values the ranks reported, oldest first."""
    with parts.engine.begin() as tx:
        return jobs.list_metrics(tx, person, job_id, name=name, rank=rank, after=cursor or 0, limit=limit)


@router.get(
    "/{job_id}/logs",
    responses=refused(UnknownJob) | {200: LINES},
    response_class=StreamingResponse,
)
async def read_logs(
    job_id: JobId,
    parts: PartsDep,
    person: PersonDep,
    epoch: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="Only this attempt.")] = None,
    rank: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    stream: Literal["stdout", "stderr"] | None = None,
    follow: Annotated[bool, Query(description="Stay until the job has ended.")] = False,
) -> StreamingResponse:
    """Output of the ranks as JSON lines, in order of arrival. While following, an empty line means: still there."""

    def read(after: int) -> tuple[JobView, list[Record]]:
        with parts.engine.begin() as tx:
            job = jobs.get(tx, auth.identify_again(tx, person), job_id)
            streams = [stream] if stream else ["stdout", "stderr"]
            rows = log_store.read_chunks(
                tx, job_id, epoch=epoch, rank=rank, streams=streams, after=after, limit=CHUNKS_AT_ONCE
            )
            return job, list(rows)

    async def lines(ticket: tuple[int, int], job: JobView, rows: list[Record]) -> AsyncIterator[str]:
        after, topic = 0, f"job:{job_id}"
        while True:
            for row in rows:
                after = row.seq
                yield views.log(row).model_dump_json() + "\n"
            if len(rows) < CHUNKS_AT_ONCE:
                if not follow or job.state in FINAL_JOB_STATES or parts.hub.closed:
                    return
                await parts.hub.wait(topic, ticket, KEEP_ALIVE_S)
                yield "\n"
            ticket = parts.hub.ticket(topic)
            try:
                job, rows = await run_in_threadpool(read, after)
            except (Unauthorised, UnknownJob):  # the token was revoked meanwhile, or its person's role changed
                return

    ticket = parts.hub.ticket(f"job:{job_id}")
    job, rows = await run_in_threadpool(read, 0)
    return StreamingResponse(lines(ticket, job, rows), media_type=LINES_MEDIA_TYPE)

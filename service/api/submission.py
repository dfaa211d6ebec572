"""Routes that take jobs in."""

from collections.abc import Callable
from typing import TypeVar

from fastapi import APIRouter, Response

from protocol.batch import BatchRequest, BatchView, DryRunRequest, DryRunView
from protocol.jobs import JobSpec, JobView
from service import dry_run, submission
from service.api.deps import Parts, PartsDep, PersonDep
from service.api.errors import RESPONSES, refused
from service.api.jobs import JobId, Key
from service.db import snapshot
from service.refusals import IdempotencyMismatch, Impossible, NotEnded, UnknownJob
from service.submission import KeyInUse

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=RESPONSES)

Taken = TypeVar("Taken")


@router.post("", status_code=201, responses=refused(Impossible, IdempotencyMismatch) | {200: {"model": JobView}})
def submit(spec: JobSpec, parts: PartsDep, person: PersonDep, response: Response, key: Key = None) -> JobView:
    """Submit a job. The answer comes once the job is stored for good, and carries the first verdict.

    With an `Idempotency-Key` the request may be sent again: 200 and the same job. Of an array the answer is the first
    job; its `array.id` names the whole.
    """
    view, new = _take(parts, submission.submit, person, spec, key)
    response.status_code = 201 if new else 200
    return view


@router.post(
    "/batch", status_code=201, responses=refused(Impossible, IdempotencyMismatch) | {200: {"model": BatchView}}
)
def submit_batch(
    batch: BatchRequest, parts: PartsDep, person: PersonDep, response: Response, key: Key = None
) -> BatchView:
    """Submit up to 10,000 jobs, the jobs of arrays counted one by one. All are stored, or none.

    With an `Idempotency-Key` the request may be sent again: 200 and the same jobs.
    """
    view, new = _take(parts, submission.submit_many, person, batch.jobs, key)
    response.status_code = 201 if new else 200
    return view


@router.post("/dry-run")
def try_out(request: DryRunRequest, parts: PartsDep, person: PersonDep) -> DryRunView:
    """What would become of jobs if they were submitted now. Nothing is stored."""
    with snapshot(parts.engine) as tx:
        run = dry_run.read(
            tx,
            person,
            request.jobs,
            queues=parts.settings.queues,
            pue=parts.settings.pue,
            overtaken_s=parts.settings.overtaken_s,
            power=parts.settings.power,
            tariff=parts.tariffs.current(),
            now=parts.now(),
        )
    return dry_run.weigh(run)


@router.post(
    "/{job_id}/resubmit",
    status_code=201,
    responses=refused(UnknownJob, NotEnded, Impossible, IdempotencyMismatch) | {200: {"model": JobView}},
)
def resubmit_job(job_id: JobId, parts: PartsDep, person: PersonDep, response: Response, key: Key = None) -> JobView:
    """Run a job that has ended once more, as a new job. With an `Idempotency-Key` the request may be sent again."""
    view, new = _take(parts, submission.resubmit, person, job_id, key)
    response.status_code = 201 if new else 200
    return view


def _take(
    parts: Parts, use_case: Callable[..., tuple[Taken, bool]], person: PersonDep, what: object, key: str | None
) -> tuple[Taken, bool]:
    """Call a use case that takes jobs in; once more if the same key was in use by a twin of the request."""

    def once() -> tuple[Taken, bool]:
        with parts.engine.begin() as tx:
            return use_case(
                tx,
                person,
                what,
                key=key,
                queues=parts.settings.queues,
                power=parts.settings.power,
                now=parts.now(),
                new_id=parts.new_id,
            )

    try:
        return once()
    except KeyInUse:
        return once()

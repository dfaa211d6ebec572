"""Routes that change jobs which are there, and those under /v1/arrays."""

from typing import Annotated

from fastapi import APIRouter, Path

from protocol.jobs import ArrayView, JobView, PriorityChange
from service import control
from service.api.deps import AdminDep, PartsDep, PersonDep
from service.api.errors import RESPONSES, refused
from service.api.jobs import JobId
from service.refusals import JobEnded, JobStarted, JobWaits, UnknownArray, UnknownJob

router = APIRouter(prefix="/v1", tags=["jobs"], responses=RESPONSES)

ArrayId = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9-]+$", description="The array's id.")]


@router.post("/jobs/{job_id}/hold", responses=refused(UnknownJob, JobEnded, JobStarted))
def hold_job(job_id: JobId, parts: PartsDep, person: PersonDep) -> JobView:
    """Keep a waiting job from starting until it is released. Asking again changes nothing."""
    with parts.engine.begin() as tx:
        return control.hold(tx, person, job_id, now=parts.now())


@router.post("/jobs/{job_id}/release", responses=refused(UnknownJob, JobEnded))
def release_job(job_id: JobId, parts: PartsDep, person: PersonDep) -> JobView:
    """Take back a hold. A job that waits for other jobs stays `held` until they have ended."""
    with parts.engine.begin() as tx:
        return control.release(tx, person, job_id, now=parts.now())


@router.post("/jobs/{job_id}/preempt", responses=refused(UnknownJob, JobEnded, JobWaits))
def preempt_job(job_id: JobId, parts: PartsDep, admin: AdminDep) -> JobView:
    """Take a job's devices away: it saves what it can, goes back to the queue and continues later from its latest
    checkpoint, without losing one of its tries. Asking again changes nothing. Administrators only."""
    with parts.engine.begin() as tx:
        return control.preempt(tx, admin, job_id, now=parts.now())


@router.patch("/jobs/{job_id}", responses=refused(UnknownJob, JobEnded))
def change_job(job_id: JobId, change: PriorityChange, parts: PartsDep, person: PersonDep) -> JobView:
    """Change the priority of a job that has not ended."""
    with parts.engine.begin() as tx:
        return control.set_priority(tx, person, job_id, change.priority, now=parts.now())


@router.get("/arrays/{array_id}", responses=refused(UnknownArray))
def get_array(array_id: ArrayId, parts: PartsDep, person: PersonDep) -> ArrayView:
    """One array with the states of its jobs; `/v1/jobs?array=ID` lists these."""
    with parts.engine.begin() as tx:
        return control.get_array(tx, person, array_id)


@router.post("/arrays/{array_id}/cancel", responses=refused(UnknownArray, JobEnded))
def cancel_array(array_id: ArrayId, parts: PartsDep, person: PersonDep) -> ArrayView:
    """Ask for every job of the array to end. Asking again changes nothing."""
    with parts.engine.begin() as tx:
        return control.cancel_array(tx, person, array_id, now=parts.now())

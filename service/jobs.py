"""What a person can do with jobs: submit, look, list, cancel. One function, one transaction's work."""

import hashlib
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from protocol.errors import FieldError
from protocol.jobs import EventPage, JobPage, JobSpec, JobView, MetricPage
from protocol.states import FINAL_JOB_STATES, EndReason, JobState
from service import attempts, views
from service.auth import Person
from service.cycle.problem import feasibility_now
from service.db import notify
from service.ids import NewId
from service.lifecycle import check_job_change
from service.refusals import IdempotencyMismatch, Impossible, Invalid, JobEnded, UnknownJob
from service.store import attempts as attempt_store
from service.store import jobs as store
from service.store import logs as log_store


def submit(
    tx: Connection,
    person: Person,
    spec: JobSpec,
    *,
    key: str | None,
    queues: Sequence[str],
    now: datetime,
    new_id: NewId,
) -> tuple[JobView, bool]:
    """Take a job into its queue. The same request with the same key gets the same job back.

    Returns:
        The job, and whether it is new.

    Raises:
        IdempotencyMismatch: the key came before with another spec.
        Invalid: there is no such queue.
        Impossible: the spec asks to be refused if no present node could run it, and none could.
    """
    request_hash = hashlib.sha256(spec.model_dump_json().encode()).digest()
    if key is not None and (known := store.find_answer(tx, user_id=person.id, key=key)):
        if known.request_hash != request_hash:
            raise IdempotencyMismatch(
                f"the idempotency key {key!r} was used for job {known.job_id} with another spec; use a fresh key"
            )
        return get(tx, person, known.job_id), False
    if spec.queue not in queues:
        message = f"there is no queue {spec.queue!r}; there are: {', '.join(queues)}"
        raise Invalid(message, errors=[FieldError(field="queue", message=message)])
    verdict = feasibility_now(tx, spec)
    if verdict.outcome == "impossible" and spec.require_feasible:
        raise Impossible("; ".join(reason.message for reason in verdict.reasons))
    job_id = new_id("job")
    store.add_job(
        tx,
        id=job_id,
        user_id=person.id,
        name=spec.name,
        queue=spec.queue,
        priority=spec.priority,
        spec=spec.model_dump(mode="json"),
        state=JobState.QUEUED.value,
        epoch=0,
        version=1,
        cancel_requested=False,
        verdict=verdict.model_dump(mode="json"),
        submitted_at=now,
    )
    if key is not None:
        try:
            store.keep_answer(tx, user_id=person.id, key=key, request_hash=request_hash, job_id=job_id, now=now)
        except IntegrityError as error:
            raise KeyInUse from error
    store.add_event(tx, job_id, kind="submitted", now=now, user=person.name)
    notify(tx, "cycle")
    return get(tx, person, job_id), True


class KeyInUse(Exception):
    """The same request arrived twice at this very moment. Call `submit` again in a new transaction."""


def get(tx: Connection, person: Person, job_id: str) -> JobView:
    """One job with all its attempts.

    Raises:
        UnknownJob: there is none of this id, or it is another user's.
    """
    row = store.find_job(tx, job_id, user_id=person.only_jobs_of)
    if row is None:
        raise UnknownJob(f"there is no job {job_id!r} that you may see; `ergon jobs` lists them")
    return views.job(row, attempt_store.list_attempts(tx, job_id), attempt_store.members_of_job(tx, job_id))


def list_page(
    tx: Connection,
    person: Person,
    *,
    user: str | None,
    states: Sequence[JobState],
    queue: str | None,
    name: str | None,
    before: int | None,
    limit: int,
) -> JobPage:
    """One page of jobs, newest first, without their attempts."""
    rows = store.list_jobs(
        tx,
        user_id=person.only_jobs_of,
        user_name=user,
        states=[state.value for state in states],
        queue=queue,
        name=name,
        before=before,
        limit=limit + 1,
    )
    items = [views.job(row, (), ()) for row in rows[:limit]]
    return JobPage(items=items, next=str(rows[limit - 1].seq) if len(rows) > limit else None)


def cancel(tx: Connection, person: Person, job_id: str, *, now: datetime) -> JobView:
    """Ask for the job to end. A waiting job ends at once, a running one when its ranks are gone.

    Asking again changes nothing.

    Raises:
        UnknownJob: there is none of this id, or it is another user's.
        JobEnded: it ended before.
    """
    get(tx, person, job_id)
    attempt = attempt_store.live_attempt(tx, job_id)
    if attempt is not None:
        attempt_store.lock_attempt(tx, attempt.id)  # always before the job, as when an agent reports
    job = store.lock_job(tx, job_id)
    state = JobState(job.state)
    if state in FINAL_JOB_STATES and not (state == JobState.CANCELLED and job.cancel_requested):
        raise JobEnded(f"job {job_id} has already {state}")
    if job.cancel_requested:
        return get(tx, person, job_id)
    store.request_cancel(tx, job_id)
    store.add_event(tx, job_id, kind="cancel_requested", now=now, user=person.name)
    attempt = attempt_store.live_attempt(tx, job_id)
    if attempt is not None:
        attempts.stop(tx, attempt, EndReason.CANCELLED, now=now)
    else:
        check_job_change(state, JobState.CANCELLED)
        store.change_job(tx, job_id, old=state, state=JobState.CANCELLED.value, ended_at=now, reason="it was cancelled")
        store.add_event(tx, job_id, kind="ended", now=now, state="cancelled")
        notify(tx, f"job:{job_id}")
    return get(tx, person, job_id)


def list_events(tx: Connection, person: Person, job_id: str, *, after: int, limit: int) -> EventPage:
    """One page of what happened to a job, oldest first. Raises UnknownJob."""
    get(tx, person, job_id)
    rows = store.list_events(tx, job_id, after=after, limit=limit + 1)
    items = [views.event(row) for row in rows[:limit]]
    return EventPage(items=items, next=str(items[-1].seq) if len(rows) > limit else None)


def list_metrics(
    tx: Connection, person: Person, job_id: str, *, name: str | None, rank: int | None, after: int, limit: int
) -> MetricPage:
    """One page of values the ranks reported, oldest first. Raises UnknownJob."""
    get(tx, person, job_id)
    rows = log_store.list_metrics(tx, job_id, name=name, rank=rank, after=after, limit=limit + 1)
    items = [views.metric(row) for row in rows[:limit]]
    return MetricPage(items=items, next=str(items[-1].seq) if len(rows) > limit else None)

"""What a person can do with jobs that are there: hold, release, preempt, move in line; and with a whole array.

Asking for what is so already changes nothing: a request may arrive twice.
"""

from datetime import datetime

from sqlalchemy import Connection

from protocol.jobs import ArrayView, JobView
from protocol.states import FINAL_JOB_STATES, AttemptState, Desired, EndReason, JobState
from service import attempts, dependencies, jobs, verdicts
from service.auth import Person
from service.db import Record, notify
from service.lifecycle import SENTENCES, check_job_change
from service.refusals import JobEnded, JobStarted, JobWaits, UnknownArray
from service.store import arrays as array_store
from service.store import attempts as attempt_store
from service.store import jobs as store


def hold(tx: Connection, person: Person, job_id: str, *, now: datetime) -> JobView:
    """Keep a waiting job from starting until it is released.

    Raises:
        UnknownJob: there is none of this id, or it is another user's.
        JobEnded: it has ended.
        JobStarted: it has devices already.
    """
    job, state = _lock(tx, person, job_id)
    if state in (JobState.STARTING, JobState.RUNNING):
        raise JobStarted(f"job {job_id} is {state} and cannot be held any more; `ergon cancel {job_id}` ends it")
    if not job.hold:
        if state == JobState.QUEUED:
            check_job_change(state, JobState.HELD)
        reasons = [verdicts.HELD, *dependencies.why_held(tx, [job_id]).values()]
        store.change_job(
            tx, job_id, old=state, state=JobState.HELD.value, hold=True, verdict=verdicts.waiting(*reasons)
        )
        store.add_event(tx, job_id, kind="held", now=now, user=person.name)
        notify(tx, f"job:{job_id}")
    return jobs.get(tx, person, job_id)


def release(tx: Connection, person: Person, job_id: str, *, now: datetime) -> JobView:
    """Take back a `hold`. A job that waits for other jobs stays `held` until they have ended.

    Raises:
        UnknownJob: there is none of this id, or it is another user's.
        JobEnded: it has ended.
    """
    job, state = _lock(tx, person, job_id)
    if job.hold and state in (JobState.STARTING, JobState.RUNNING):  # it would be held when it goes back to the queue
        store.change_job(tx, job_id, old=state, hold=False)
    elif job.hold:
        still = list(dependencies.why_held(tx, [job_id]).values())
        new = JobState.HELD if still else JobState.QUEUED
        if not still:
            check_job_change(state, new)
        said = verdicts.waiting(*(still or [verdicts.NOT_WEIGHED_YET]))
        store.change_job(tx, job_id, old=state, state=new.value, hold=False, verdict=said)
        store.add_event(tx, job_id, kind="released", now=now, user=person.name)
        notify(tx, f"job:{job_id}")
        notify(tx, "cycle")
    return jobs.get(tx, person, job_id)


def preempt(tx: Connection, person: Person, job_id: str, *, now: datetime) -> JobView:
    """Take a job's devices away: its ranks are asked to stop, and it goes back to the queue at no one's expense.

    Raises:
        UnknownJob: there is none of this id.
        JobEnded: it has ended.
        JobWaits: it has no devices.
    """
    jobs.find(tx, person, job_id)
    attempt = attempt_store.live_attempt(tx, job_id)
    if attempt is not None:
        attempt = attempt_store.lock_attempt(tx, attempt.id)  # always before the job, as when an agent reports
    _, state = _lock(tx, person, job_id)
    if attempt is None or attempt.state == AttemptState.ENDED.value:
        raise JobWaits(f"job {job_id} is {state} and has no devices that could be taken; `ergon hold` keeps it waiting")
    if attempt.desired == Desired.RUN.value:
        store.add_event(tx, job_id, kind="preempted", now=now, user=person.name)
        attempts.stop(tx, attempt, EndReason.PREEMPTED, now=now)
    return jobs.get(tx, person, job_id)


def set_priority(tx: Connection, person: Person, job_id: str, priority: int, *, now: datetime) -> JobView:
    """Move a job in line. One that has started keeps its devices; the new place counts if it comes back to the queue.

    Raises:
        UnknownJob: there is none of this id, or it is another user's.
        JobEnded: it has ended.
    """
    job, state = _lock(tx, person, job_id)
    if job.priority != priority:
        store.change_job(tx, job_id, old=state, priority=priority)
        store.add_event(tx, job_id, kind="priority", now=now, user=person.name, old=job.priority, new=priority)
        notify(tx, f"job:{job_id}")
        notify(tx, "cycle")
    return jobs.get(tx, person, job_id)


def get_array(tx: Connection, person: Person, array_id: str) -> ArrayView:
    """One array with the states of its jobs.

    Raises:
        UnknownArray: there is none of this id, or it is another user's.
    """
    row = array_store.find_array(tx, array_id, user_id=person.only_jobs_of)
    if row is None:
        raise UnknownArray(f"there is no array {array_id!r} that you may see; `ergon jobs` lists them")
    return ArrayView(
        id=row.id,
        user=row.user_name,
        count=row.size,
        limit=row.limit,
        states=array_store.count_by_state(tx, [array_id])[array_id],
        submitted_at=row.submitted_at,
    )


def cancel_array(tx: Connection, person: Person, array_id: str, *, now: datetime) -> ArrayView:
    """Ask for every job of an array to end that has not. Those that wait end at once.

    Raises:
        UnknownArray: there is none of this id, or it is another user's.
        JobEnded: all its jobs have ended by themselves.
    """
    get_array(tx, person, array_id)
    # Attempts before jobs, and always in one order, as when agents report.
    attempt_store.lock_attempts(tx, [attempt.id for attempt in array_store.live_attempts(tx, array_id)])
    waiting = array_store.cancel_waiting(tx, array_id, reason=SENTENCES[EndReason.CANCELLED], now=now)
    store.add_events(tx, waiting, kind="cancel_requested", now=now, user=person.name)
    store.add_events(tx, waiting, kind="ended", now=now, state=JobState.CANCELLED.value)
    for job_id in waiting:
        notify(tx, f"job:{job_id}")
    dependencies.follow(tx, dict.fromkeys(waiting, JobState.CANCELLED), now=now)
    # Looked for again: until its row was locked, a job that waited might still start.
    live = array_store.live_attempts(tx, array_id)
    for attempt in live:
        job = store.lock_job(tx, attempt.job_id)
        if not job.cancel_requested:
            store.request_cancel(tx, job.id)
            store.add_event(tx, job.id, kind="cancel_requested", now=now, user=person.name)
            attempts.stop(tx, attempt, EndReason.CANCELLED, now=now)
    if not (waiting or live or array_store.was_cancelled(tx, array_id)):
        raise JobEnded(f"every job of array {array_id} has already ended")
    return get_array(tx, person, array_id)


def _lock(tx: Connection, person: Person, job_id: str) -> tuple[Record, JobState]:
    """The job's row, held until the transaction ends, and its state. Raises UnknownJob, JobEnded."""
    jobs.find(tx, person, job_id)
    job = store.lock_job(tx, job_id)
    state = JobState(job.state)
    if state in FINAL_JOB_STATES:
        raise JobEnded(f"job {job_id} has already {'been ' if state == JobState.CANCELLED else ''}{state}")
    return job, state

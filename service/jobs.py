"""What a person can do with jobs: look, list, cancel. One function, one transaction's work."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from protocol.jobs import EventPage, JobPage, JobView, MetricPage
from protocol.states import FINAL_JOB_STATES, EndReason, JobState
from service import attempts, dependencies, run_times, sample_energy, staging, views
from service.auth import Person
from service.db import Record, notify
from service.lifecycle import check_job_change
from service.refusals import JobEnded, UnknownJob
from service.store import arrays as array_store
from service.store import attempts as attempt_store
from service.store import jobs as store
from service.store import logs as log_store


def get(tx: Connection, person: Person, job_id: str) -> JobView:
    """One job with all its attempts.

    Raises:
        UnknownJob: there is none of this id, or it is another user's.
    """
    row = find(tx, person, job_id)
    return views.job(row, attempt_store.list_attempts(tx, job_id), attempt_store.members_of_job(tx, job_id))


def look(tx: Connection, person: Person, job_id: str, *, now: datetime) -> JobView:
    """One job with all its attempts, how long it is expected to run, and what each example takes. Raises UnknownJob as
    `get` does.
    """
    row = find(tx, person, job_id)
    tries, members = attempt_store.list_attempts(tx, job_id), attempt_store.members_of_job(tx, job_id)
    view = views.job(row, tries, members)
    kind = attempt_store.kind_held(tx, tries[-1].id) if tries else ""
    view = view.model_copy(update={"sample_energy": sample_energy.view(view, members, kind)})
    if view.state in FINAL_JOB_STATES:
        return view
    times = run_times.read(tx, [(row.user_id, row.signature)])
    # An attempt that has ended may hold its nodes while the job waits again.
    held = attempt_store.held_work(tx, job_id) if view.state in (JobState.STARTING, JobState.RUNNING) else ()
    running = next((member for member in held if member.epoch == view.epoch), None)
    kind, time = (running.kind, times.left(running, now)) if running else times.best_known(row, view.spec)
    nodes = running.nodes if running else view.spec.sizes[0]
    draw = times.draw((row.user_id, row.signature), kind)
    expected = run_times.view(time, kind, nodes, draw)
    inputs = None
    if view.state != JobState.RUNNING:
        given = [member for member in held if member.epoch == view.epoch]
        inputs = staging.view(staging.read(tx, [staging.wants_of(view.spec)]), view.spec, given, now)
    return view.model_copy(update={"expected": expected, "inputs": inputs})


def find(tx: Connection, person: Person, job_id: str) -> Record:
    """The row of a job. Raises UnknownJob as `get` does."""
    row = store.find_job(tx, job_id, user_id=person.only_jobs_of)
    if row is None:
        raise UnknownJob(f"there is no job {job_id!r} that you may see; `ergon jobs` lists them")
    return row


def list_page(
    tx: Connection,
    person: Person,
    *,
    user: str | None,
    states: Sequence[JobState],
    queue: str | None,
    name: str | None,
    array_id: str | None = None,
    folded: bool = False,
    before: int | None,
    limit: int,
) -> JobPage:
    """One page of jobs, newest first, without their attempts.

    `folded` shows of each array one job, the first in any of `states`, with the states of all.
    """
    rows = store.list_jobs(
        tx,
        user_id=person.only_jobs_of,
        user_name=user,
        states=[state.value for state in states],
        queue=queue,
        name=name,
        array_id=array_id,
        folded=folded,
        before=before,
        limit=limit + 1,
    )
    arrays = {row.array_id for row in rows if row.array_id} if folded else set()
    counts = array_store.count_by_state(tx, arrays) if arrays else {}
    items = [views.job(row, (), (), array_states=counts.get(row.array_id)) for row in rows[:limit]]
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
        dependencies.follow(tx, {job_id: JobState.CANCELLED}, now=now)
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

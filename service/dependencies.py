"""Jobs that wait for jobs: what a spec's `after` means today, and what follows when a job ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from protocol.errors import FieldError
from protocol.jobs import JobSpec, Reason
from protocol.states import FINAL_JOB_STATES, JobState
from service import verdicts
from service.auth import Person
from service.db import notify
from service.lifecycle import check_job_change
from service.store import dependencies as store
from service.store import jobs as job_store

MAX_DEPENDENCIES = 100_000
"""Rows that one request may add: jobs times the jobs each of them waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """What a job waits for: the jobs that have not ended, and whether each must succeed."""

    open: Mapping[str, bool]

    @property
    def reason(self) -> Reason:
        """Why the job is held; only for a job that does wait."""
        return _reason(len(self.open), min(self.open), on_success=any(self.open.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A field of one spec that cannot be accepted."""

    spec: int
    error: FieldError


def resolve(tx: Connection, person: Person, specs: Sequence[JobSpec], *, lock: bool) -> tuple[list[Waits], list[Fault]]:
    """What each of these specs would wait for now.

    Args:
        lock: keep the jobs they name from ending before the transaction does.

    Returns:
        One entry for each spec, and what is at fault: a job that does not exist or is another user's, one that was to
        succeed and did not, too many of them.
    """
    states = _states(tx, person, specs, lock=lock)
    waits: list[Waits] = []
    faults: list[Fault] = []
    for index, spec in enumerate(specs):
        still_open: dict[str, bool] = {}
        for place, dependency in enumerate(spec.after):
            on_success = dependency.on == "success"
            parents = states.get(dependency.job, {})
            message = None if parents else f"there is no job or array {dependency.job!r} that you may see"
            for parent, state in parents.items():
                if state not in FINAL_JOB_STATES:
                    still_open[parent] = on_success or still_open.get(parent, False)
                elif on_success and state != JobState.SUCCEEDED:
                    message = f"job {parent} should have succeeded, but {state}; wait for its `end`, or resubmit it"
            if message:
                faults.append(Fault(spec=index, error=FieldError(field=f"after.{place}.job", message=message)))
        waits.append(Waits(open=still_open))
    copies = [spec.array.count if spec.array else 1 for spec in specs]
    total = sum(len(wait.open) * count for wait, count in zip(waits, copies, strict=True))
    if total > MAX_DEPENDENCIES:
        message = (
            f"the request makes {total} dependencies between jobs, and {MAX_DEPENDENCIES} are allowed; "
            "let one job wait for the many, and the others for that one"
        )
        widest = max(range(len(specs)), key=lambda index: len(waits[index].open) * copies[index])
        faults.append(Fault(spec=widest, error=FieldError(field="after", message=message)))
    return waits, faults


def follow(tx: Connection, ended: Mapping[str, JobState], *, now: datetime) -> None:
    """Release or cancel what waited for these jobs, which this transaction has just ended; then what waited for those
    that this cancels, and so on.
    """
    wave = dict(ended)
    while wave:
        # Locked first: of two parents that end at the same moment, the later one sees what the earlier one has met.
        rows = store.lock_dependents(tx, list(wave))
        succeeded = [job for job, state in wave.items() if state == JobState.SUCCEEDED]
        held = [row for row in rows if row.state == JobState.HELD.value]
        broken = {row.id: row.parent_id for row in held if row.on_success and row.parent_id not in succeeded}
        store.meet(tx, ended=list(wave), succeeded=succeeded)
        for parent in sorted(set(broken.values())):
            _cancel(tx, [job for job, by in broken.items() if by == parent], parent, wave[parent], now=now)
        _let_go(tx, {row.id: row.hold for row in held if row.id not in broken}, now=now)
        wave = dict.fromkeys(broken, JobState.CANCELLED)


def ended_parents(tx: Connection, spec: JobSpec) -> set[str]:
    """Of the jobs and arrays the spec waits for: those that have ended."""
    wanted = [dependency.job for dependency in spec.after]
    rows = store.find_parents(tx, wanted, user_id=None, lock=False) if wanted else ()
    going_on = {name for row in rows if row.state not in FINAL_JOB_STATES for name in (row.id, row.array_id)}
    return set(wanted) - going_on


def why_held(tx: Connection, job_ids: Sequence[str]) -> dict[str, Reason]:
    """For each of these jobs that waits for a job: why."""
    return {row.job_id: _reason(row.open, row.one, on_success=row.on_success) for row in store.count_open(tx, job_ids)}


def _states(tx: Connection, person: Person, specs: Sequence[JobSpec], *, lock: bool) -> dict[str, dict[str, JobState]]:
    """Each job and array that the specs name -> the jobs it stands for -> their states."""
    wanted = sorted({dependency.job for spec in specs for dependency in spec.after})
    states: dict[str, dict[str, JobState]] = {}
    rows = store.find_parents(tx, wanted, user_id=person.only_jobs_of, lock=lock) if wanted else ()
    for row in rows:
        for name in (row.id, row.array_id):
            states.setdefault(name, {})[row.id] = JobState(row.state)
    return states


def _cancel(tx: Connection, jobs: list[str], parent: str, state: JobState, *, now: datetime) -> None:
    check_job_change(JobState.HELD, JobState.CANCELLED)
    reason = f"it was to wait for the success of job {parent}, which {_ENDS[state]}"
    job_store.change_jobs(tx, jobs, old=JobState.HELD, state=JobState.CANCELLED.value, ended_at=now, reason=reason)
    job_store.add_events(tx, jobs, kind="ended", now=now, state=JobState.CANCELLED.value, after=parent)
    for job in jobs:
        notify(tx, f"job:{job}")


def _let_go(tx: Connection, holds: Mapping[str, bool], *, now: datetime) -> None:
    """Release the jobs that wait for no job any more; `holds` tells which of them somebody holds besides."""
    reasons = why_held(tx, list(holds))
    for job, reason in reasons.items():
        said = verdicts.waiting(*([verdicts.HELD] if holds[job] else []), reason)
        job_store.change_jobs(tx, [job], old=JobState.HELD, verdict=said)
    kept = [job for job, hold in holds.items() if job not in reasons and hold]
    job_store.change_jobs(tx, kept, old=JobState.HELD, verdict=verdicts.waiting(verdicts.HELD))
    free = [job for job, hold in holds.items() if job not in reasons and not hold]
    if free:
        check_job_change(JobState.HELD, JobState.QUEUED)
        said = verdicts.waiting(verdicts.NOT_WEIGHED_YET)
        job_store.change_jobs(tx, free, old=JobState.HELD, state=JobState.QUEUED.value, verdict=said)
        job_store.add_events(tx, free, kind="released", now=now)
        notify(tx, "cycle")


_ENDS = {JobState.FAILED: "failed", JobState.CANCELLED: "was cancelled"}


def _reason(count: int, one: str, *, on_success: bool) -> Reason:
    what = "success" if on_success else "end"
    if count == 1:
        return Reason(code="after", message=f"it waits for the {what} of job {one}")
    return Reason(code="after", message=f"it waits for {count} jobs, job {one} among them")

"""`ergon hold`, `release`, `preempt`, `resubmit` and `priority`."""

from collections.abc import Callable
from typing import Annotated

import typer

from ergon.cli.output import Json, complain, line, write_json
from ergon.client import Client
from ergon.errors import ErgonError
from protocol.jobs import JobView

JobIds = Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids of the jobs.")]


def hold(job_ids: JobIds, as_json: Json = False) -> int:
    """Keep waiting jobs from starting until they are released."""
    with Client() as client:
        return _each(job_ids, client.hold, _say_state, as_json=as_json)


def release(job_ids: JobIds, as_json: Json = False) -> int:
    """Let held jobs go on. One that waits for other jobs stays held until they have ended."""
    with Client() as client:
        return _each(job_ids, client.release, _say_state, as_json=as_json)


def preempt(job_ids: JobIds, as_json: Json = False) -> int:
    """Take running jobs' devices away: each saves what it can, goes back to the queue and continues later from its
    latest checkpoint. Administrators only.
    """
    with Client() as client:
        return _each(job_ids, client.preempt, lambda job: line(f"{job.id} is being stopped"), as_json=as_json)


def resubmit(job_ids: JobIds, as_json: Json = False) -> int:
    """Run ended jobs once more, each as a new job with the same spec. The new ids go to standard output."""
    with Client() as client:
        return _each(job_ids, client.resubmit, lambda job: line(job.id), as_json=as_json)


def priority(
    value: Annotated[int, typer.Argument(metavar="PRIORITY", min=-1_000, max=1_000, help="A higher one goes first.")],
    job_ids: JobIds,
    as_json: Json = False,
) -> int:
    """Change the priority of jobs that have not ended."""
    with Client() as client:
        return _each(
            job_ids,
            lambda job_id: client.set_priority(job_id, value),
            lambda job: line(f"{job.id} {job.state}, priority {job.priority}"),
            as_json=as_json,
        )


def _each(job_ids: list[str], ask: Callable[[str], JobView], say: Callable[[JobView], None], *, as_json: bool) -> int:
    """Ask for each job. One that is refused does not keep the others; the exit code then is not 0."""
    worst = 0
    for job_id in dict.fromkeys(job_ids):
        try:
            job = ask(job_id)
        except ErgonError as error:
            complain(f"{job_id}: {error}")
            worst = max(worst, error.exit_code)
        else:
            write_json(job) if as_json else say(job)
    return worst


def _say_state(job: JobView) -> None:
    reasons = "; ".join(reason.message for reason in job.verdict.reasons) if job.verdict else ""
    line(f"{job.id} {job.state}" + (f": {reasons}" if reasons else ""))

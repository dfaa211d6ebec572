"""`ergon demo`: the whole path on this machine, from an empty folder to the energy report, and all stopped again."""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ergon.cli.cluster import print_report
from ergon.cli.jobs import describe_progress, loss_curve
from ergon.cli.local import LocalCluster, LocalSettings, local_cluster
from ergon.cli.output import clean_line, console, line
from ergon.cli.processes import leave_on_signals
from ergon.cli.units import show_duration
from ergon.cli.watch import board_on
from ergon.client import Client
from ergon.errors import ErgonError
from protocol.environment import PREFIX
from protocol.jobs import JobSpec, JobView, Recipe
from protocol.reports import AllocationReport
from protocol.states import FINAL_JOB_STATES, JobState, Role

AGENTS, SLOTS = 2, 2
MIN_ACCURACY = 0.95
POLL_S = 0.5
DEADLINE_S = 600.0
KEPT_VARIABLES = frozenset({"ERGON_POSTGRES_USER"})
"""The demonstration is the same everywhere: of our variables only this one, which the machine may need, has a say."""

DISTRIBUTED = JobSpec(
    name="digits-mlp", nodes=2, recipe=Recipe(name="digits-mlp", options={"min_accuracy": MIN_ACCURACY})
)
SINGLE = JobSpec(name="linear-regression", recipe=Recipe(name="linear-regression"))
IMPOSSIBLE = JobSpec(
    name="too-large", nodes=64, devices_per_node=8, device_kinds=["h100"], recipe=Recipe(name="digits-mlp")
)
SMALL = [
    JobSpec(name=f"{recipe}-{seed}", recipe=Recipe(name=recipe, options={"seed": seed}))
    for seed in (1, 2)
    for recipe in ("digits-mlp", "linear-regression")
]


@dataclass(slots=True, kw_only=True)
class Story:
    """What happened, as far as it got."""

    began: datetime
    impossible: JobView | None = None
    jobs: dict[str, JobView] = field(default_factory=dict)
    waited: set[str] = field(default_factory=set)
    curve: list[str] = field(default_factory=list)
    report: AllocationReport | None = None


class DemoFailed(ErgonError):
    """Something that the demonstration promises did not happen."""

    exit_code = 1

    def __init__(self, message: str, details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.details = details


def demo(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False) -> None:
    """Run the whole path here: start a cluster, train on two nodes, wait in line, report the energy, stop everything.

    It uses a folder of its own, which it removes; after a failure the folder stays, with the logs.
    """
    screen = console(stderr=as_json)
    with own_folder() as folder:
        settings = LocalSettings(
            data_dir=folder, port=0, agents=AGENTS, slots_per_agent=SLOTS, environment=_environment(os.environ)
        )
        started = time.monotonic()
        screen.print(f"starting a cluster in {folder}: database, API, planning cycle, {AGENTS} agents")
        story = Story(began=datetime.now(UTC))
        with leave_on_signals(), local_cluster(settings) as cluster:
            screen.print(f"ready after {show_duration(time.monotonic() - started)} at {cluster.url}/")
            _run(cluster, story, screen)
        failed = list(faults(story))
        if as_json:
            line(json.dumps(_as_json(story)))
        else:
            _tell(story)
        if failed:
            raise DemoFailed("; ".join(failed))


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A fresh folder, removed unless something goes wrong; open for passing through, as the database may need it."""
    folder = Path(tempfile.mkdtemp(prefix="ergon-demo-"))
    folder.chmod(0o711)
    try:
        yield folder
    except ErgonError as error:
        message = f"the demonstration failed: {error}; its logs are kept in {folder / 'log'}"
        raise DemoFailed(message, error.details) from error
    except Exception:
        typer.echo(f"the logs are kept in {folder / 'log'}", err=True)
        raise
    except BaseException:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(PREFIX) or name in KEPT_VARIABLES}


def _run(cluster: LocalCluster, story: Story, screen: Console) -> None:
    with contextlib.ExitStack() as stack:
        admin, alice, bob = (
            stack.enter_context(Client(cluster.url, cluster.user_token(user, role)))
            for user, role in (("admin", Role.ADMIN), ("alice", Role.USER), ("bob", Role.USER))
        )
        distributed = alice.submit(DISTRIBUTED)
        submitted = [distributed, bob.submit(SINGLE)]
        story.impossible = alice.submit(IMPOSSIBLE)
        submitted += [(alice, bob)[number % 2].submit(spec) for number, spec in enumerate(SMALL)]
        story.jobs = {job.id: job for job in submitted}
        screen.print(clean_line(f"{IMPOSSIBLE.name} is answered at once: {_answer(story.impossible)}"))
        _watch(cluster, admin, story, screen)
        admin.cancel(story.impossible.id)
        story.curve = loss_curve(admin, story.jobs[distributed.id])
        story.report = admin.report(start=story.began)


def _watch(cluster: LocalCluster, admin: Client, story: Story, screen: Console) -> None:
    """Show the jobs until all have ended.

    Raises ProcessFailed if a process of the cluster dies, DemoFailed when it takes too long.
    """
    deadline = time.monotonic() + DEADLINE_S
    with board_on(screen) as board:
        while True:
            cluster.check()
            for job_id, job in story.jobs.items():
                if job.state not in FINAL_JOB_STATES:
                    story.jobs[job_id] = admin.job(job_id)
            board.show(story.jobs.values())
            story.waited |= {job.id for job in story.jobs.values() if _waits(job)}
            if all(job.state in FINAL_JOB_STATES for job in story.jobs.values()):
                return
            if time.monotonic() > deadline:
                raise DemoFailed(f"the jobs had not ended after {show_duration(DEADLINE_S)}")
            time.sleep(POLL_S)


def _waits(job: JobView) -> bool:
    """A cycle weighed the job and left it in line."""
    return job.verdict is not None and job.verdict.outcome == "waiting" and job.verdict.cycle is not None


def faults(story: Story) -> Iterator[str]:
    """What was promised and did not happen, one sentence each."""
    for job in story.jobs.values():
        if job.state is not JobState.SUCCEEDED:
            yield f"{job.spec.name} {job.state}: {job.reason or 'no reason given'}"
    verdict = story.impossible and story.impossible.verdict
    if not verdict or verdict.outcome != "impossible" or not verdict.reasons:
        yield f"{IMPOSSIBLE.name} was not called impossible"
    accuracy = _accuracy(story)
    if accuracy is None or accuracy < MIN_ACCURACY:
        yield f"{DISTRIBUTED.name} reached an accuracy of {accuracy}, not {MIN_ACCURACY}"
    if not story.waited:
        yield "no job had to wait"
    if len(story.curve) == 0:
        yield f"{DISTRIBUTED.name} reported no loss"
    if story.report is None or story.report.plans.gap_max is None:
        yield "the report holds no solver gap"
    elif not {"alice", "bob"} <= {user.user for user in story.report.users}:
        yield "the report does not hold both users"
    elif not story.report.total_energy_kwh:
        yield "the report holds no energy"


def _distributed(story: Story) -> JobView:
    return next(job for job in story.jobs.values() if job.spec.name == DISTRIBUTED.name)


def _accuracy(story: Story) -> float | None:
    progress = _distributed(story).progress
    return progress.metrics.get("accuracy") if progress else None


def _seconds(job: JobView) -> float | None:
    return (job.ended_at - job.started_at).total_seconds() if job.started_at and job.ended_at else None


def _answer(job: JobView) -> str:
    if job.verdict is None:
        return "without a verdict"
    return f"{job.verdict.outcome}: " + "; ".join(reason.message for reason in job.verdict.reasons)


def _tell(story: Story) -> None:
    job = _distributed(story)
    nodes = ", ".join(member.node for member in job.attempts[-1].members) if job.attempts else "no node"
    line()
    line(f"{job.spec.name} on {nodes}: the loss")
    for row in story.curve:
        line(row)
    if job.progress:
        line(f"the end: {describe_progress(job.progress)}")
    accuracy, seconds = _accuracy(story), _seconds(job)
    if accuracy is not None and seconds is not None:
        line(f"validation accuracy {accuracy:.4f} after {show_duration(seconds)}")
    line(f"{len(story.waited)} of {len(story.jobs)} jobs had to wait in line")
    if story.report:
        line()
        print_report(story.report)


def _as_json(story: Story) -> dict[str, object]:
    """Views as the API gives them, and what only the demonstration knows."""
    return {
        "accuracy": _accuracy(story),
        "distributed_s": _seconds(_distributed(story)),
        "waited": sorted(story.waited),
        "impossible": story.impossible.model_dump(mode="json") if story.impossible else None,
        "jobs": [job.model_dump(mode="json") for job in story.jobs.values()],
        "report": story.report.model_dump(mode="json") if story.report else None,
    }

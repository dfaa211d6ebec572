"""Several jobs at once on the screen: bars on a terminal, a line for each change elsewhere."""

from collections.abc import Iterable
from types import TracebackType
from typing import Protocol, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ergon.cli.output import clean_line
from protocol.jobs import JobView, ProgressView
from protocol.states import FINAL_JOB_STATES, JobState


class Board(Protocol):
    """Shows jobs while its `with` block runs; `show` takes the latest state of all of them."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def show(self, jobs: Iterable[JobView]) -> None: ...


def board_on(console: Console) -> Board:
    """Bars where they can move, lines where they cannot."""
    return BarBoard(console) if console.is_terminal else LineBoard(to_stderr=console.stderr)


class LineBoard:
    """A line whenever a job enters another state."""

    def __init__(self, *, to_stderr: bool) -> None:
        self._to_stderr = to_stderr
        self._said: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, jobs: Iterable[JobView]) -> None:
        for job in jobs:
            text = f"{job.user}/{job.spec.name}: {_standing(job)}"
            if job.state in FINAL_JOB_STATES and job.progress:
                text += f" ({_reached(job.progress)})"
            if self._said.get(job.id) != text:
                self._said[job.id] = text
                typer.echo(clean_line(text), err=self._to_stderr)


class BarBoard:
    """A bar for each job, that fills with its training."""

    def __init__(self, console: Console) -> None:
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.fields[job]}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[standing]}", markup=False),
            TextColumn("{task.fields[reached]}", markup=False),
            console=console,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, jobs: Iterable[JobView]) -> None:
        for job in jobs:
            if job.id not in self._bars:
                name = clean_line(f"{job.user}/{job.spec.name}")
                self._bars[job.id] = self._progress.add_task("", total=1.0, job=name, standing="", reached="")
            self._progress.update(
                self._bars[job.id],
                completed=_share_done(job),
                standing=clean_line(_standing(job)),
                reached=clean_line(_reached(job.progress)),
            )


def _standing(job: JobView) -> str:
    """The state with what belongs to it: why it waits, where it runs, how it ended."""
    if job.state in FINAL_JOB_STATES:
        return f"{job.state}: {job.reason}" if job.reason and job.state is not JobState.SUCCEEDED else job.state.value
    if job.attempts and job.state in (JobState.STARTING, JobState.RUNNING):
        return f"{job.state} on {', '.join(member.node for member in job.attempts[-1].members)}"
    if job.verdict and job.verdict.outcome != "placed":
        return f"{job.state}, {job.verdict.outcome}"
    return job.state.value


def _share_done(job: JobView) -> float:
    """From 0 to 1, by epochs if the job counts them, else by steps."""
    if job.state is JobState.SUCCEEDED:
        return 1.0
    progress = job.progress or ProgressView()
    for done, total in ((progress.epoch, progress.total_epochs), (progress.step, progress.total_steps)):
        if done is not None and total:
            return min(1.0, done / total)
    return 0.0


def _reached(progress: ProgressView | None) -> str:
    if progress is None:
        return ""
    words = [
        f"{what} {done}/{total}"
        for what, done, total in (
            ("epoch", progress.epoch, progress.total_epochs),
            ("step", progress.step, progress.total_steps),
        )
        if done is not None and total
    ][:1]
    loss = progress.metrics.get("loss")
    return " ".join(words + ([f"loss {loss:.4g}"] if loss is not None else []))

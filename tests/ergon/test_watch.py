"""What is on the screen while jobs run."""

import io

import pytest
from rich.console import Console

from ergon.cli.watch import BarBoard, LineBoard, board_on
from protocol.jobs import JobSpec, JobView, ProgressView, VerdictView
from protocol.states import JobState
from tests.ergon.builders import a_job

WAITING = VerdictView(outcome="waiting", reasons=[])


def test_without_a_terminal_every_change_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    board = LineBoard(to_stderr=False)
    states = [
        [a_job(verdict=WAITING)],
        [a_job(verdict=WAITING)],
        [a_job(state=JobState.RUNNING, node="node-1", verdict=WAITING)],
        [a_job(state=JobState.RUNNING, node="node-1", progress=ProgressView(epoch=1))],
        [
            a_job(
                state=JobState.FAILED, node="node-1", reason="exit code 3", progress=ProgressView(metrics={"loss": 2.0})
            )
        ],
    ]
    with board:
        for jobs in states:
            board.show(jobs)
    assert capsys.readouterr().out.splitlines() == [
        "alice/train: queued, waiting",
        "alice/train: running on node-1",
        "alice/train: failed: exit code 3 (loss 2)",
    ]


def test_lines_go_to_stderr_when_stdout_is_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    with board_on(Console(stderr=True)) as board:
        board.show([a_job()])
    assert capsys.readouterr() == ("", "alice/train: queued\n")


def bars(*jobs: JobView) -> str:
    screen = io.StringIO()
    with board_on(Console(file=screen, force_terminal=True, width=120, color_system=None)) as board:
        assert isinstance(board, BarBoard)
        board.show(jobs)
    return screen.getvalue()


def test_a_bar_fills_with_the_epochs_and_shows_the_loss() -> None:
    progress = ProgressView(step=7, total_steps=8, epoch=1, total_epochs=4, metrics={"loss": 0.1234567})
    shown = bars(a_job(state=JobState.RUNNING, node="node-1", progress=progress))
    assert "alice/train" in shown
    assert "running on node-1" in shown
    assert "epoch 1/4 loss 0.1235" in shown
    assert "step" not in shown


@pytest.mark.parametrize(
    ("job", "filled"),
    [
        (a_job(), 0),
        (a_job(state=JobState.RUNNING, progress=ProgressView(epoch=1, total_epochs=4)), 5),
        (a_job(state=JobState.RUNNING, progress=ProgressView(step=15, total_steps=20)), 15),
        (a_job(state=JobState.RUNNING, progress=ProgressView(epoch=9, total_epochs=4)), 20),
        (a_job(state=JobState.SUCCEEDED, progress=ProgressView(step=1, total_steps=100)), 20),
        (a_job(state=JobState.RUNNING, progress=ProgressView(epoch=0, total_epochs=0)), 0),
    ],
)
def test_the_bar_tells_the_share(job: JobView, filled: int) -> None:
    last = [row for row in bars(job).splitlines() if "alice/train" in row][-1]
    assert last.count("━") == filled


def test_names_cannot_steer_the_terminal_or_its_markup() -> None:
    job = a_job(spec=JobSpec(command=["x"]), reason="\x1b[2J[red]x", state=JobState.FAILED)
    shown = bars(job)
    assert "\x1b[2J" not in shown
    assert "[red]x" in shown

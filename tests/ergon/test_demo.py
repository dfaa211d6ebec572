"""What the demonstration promises, and its folder; the demonstration itself is run as a whole with the real service."""

import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ergon.cli.demo import DISTRIBUTED, IMPOSSIBLE, DemoFailed, Story, faults, own_folder
from ergon.errors import ErgonError
from protocol.jobs import ProgressView, Reason, VerdictView
from protocol.reports import AllocationReport
from protocol.states import JobState
from tests.ergon.builders import NOON, a_job, a_report

IMPOSSIBLE_VERDICT = VerdictView(outcome="impossible", reasons=[Reason(code="too_few_nodes", message="64 asked for")])


def a_report_of_both() -> AllocationReport:
    report = a_report()
    bob = report.users[0].model_copy(update={"user": "bob"})
    return report.model_copy(update={"users": [*report.users, bob]})


def a_good_story(*, accuracy: float = 0.97) -> Story:
    progress = ProgressView(metrics={"accuracy": accuracy})
    job = a_job("d1", spec=DISTRIBUTED, state=JobState.SUCCEEDED, node="node-1", progress=progress)
    return Story(
        began=NOON,
        impossible=a_job(spec=IMPOSSIBLE, verdict=IMPOSSIBLE_VERDICT),
        jobs={job.id: job},
        waited={"d1"},
        curve=["*"],
        report=a_report_of_both(),
    )


def test_a_story_in_which_everything_happened_has_no_fault() -> None:
    assert list(faults(a_good_story())) == []


def fail_a_job(story: Story) -> None:
    story.jobs["j2"] = a_job("j2", state=JobState.FAILED, reason="exit code 3")


def without_gap(story: Story) -> None:
    report = a_report_of_both()
    story.report = report.model_copy(update={"plans": report.plans.model_copy(update={"gap_max": None})})


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (fail_a_job, "train failed: exit code 3"),
        (lambda story: setattr(story, "impossible", a_job()), "too-large was not called impossible"),
        (lambda story: story.jobs.update(a_good_story(accuracy=0.9).jobs), "accuracy of 0.9, not 0.95"),
        (lambda story: story.waited.clear(), "no job had to wait"),
        (lambda story: story.curve.clear(), "reported no loss"),
        (without_gap, "no solver gap"),
        (lambda story: setattr(story, "report", a_report()), "not hold both users"),
        (
            lambda story: setattr(story, "report", story.report.model_copy(update={"total_energy_kwh": 0.0})),
            "no energy",
        ),
    ],
)
def test_whatever_did_not_happen_is_named(spoil: Callable[[Story], None], fault: str) -> None:
    story = a_good_story()
    spoil(story)
    [found] = faults(story)
    assert fault in found


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def enter(error: BaseException | None) -> None:
    with own_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o711
        (folder / "log").mkdir()
        if error:
            raise error


def test_the_folder_is_gone_afterwards(temporary: Path) -> None:
    enter(None)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_the_folder_is_gone_when_a_person_stops_it(temporary: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        enter(error)
    assert list(temporary.iterdir()) == []


def test_after_a_failure_the_folder_is_kept_and_named(temporary: Path) -> None:
    with pytest.raises(DemoFailed, match="too bad; its logs are kept in ") as caught:
        enter(ErgonError("too bad"))
    [kept] = temporary.iterdir()
    assert caught.value.exit_code == 1
    assert str(caught.value).endswith(str(kept / "log"))

"""The commands that switch nodes: what they said is known, none outlives its limit, and none sees our settings."""

import os
from collections.abc import Iterator

import pytest

from service.cycle.hooks import Ended, HookProcesses


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hooks(clock: Clock) -> Iterator[HookProcesses]:
    hooks = HookProcesses(clock)
    yield hooks
    hooks.stop()


def outcome(hooks: HookProcesses, *command: str) -> Ended:
    """What becomes of the command, which ends by itself."""
    hooks.start("n1", command, 30.0)
    while not (ended := hooks.ended()):
        assert hooks.runs("n1")
    assert not hooks.runs("n1")
    return ended[0]


def test_a_command_that_works_says_nothing(hooks: HookProcesses) -> None:
    assert outcome(hooks, "sh", "-c", "echo fine") == Ended(node="n1", fault=None)


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (("sh", "-c", "echo no answer; echo from it >&2; exit 3"), "ended with code 3: no answer from it"),
        (("sh", "-c", "kill -9 $$"), "ended with code -9"),
        (("/nowhere/ipmitool",), "`/nowhere/ipmitool` cannot be started: No such file or directory"),
    ],
)
def test_a_command_that_fails_says_why(hooks: HookProcesses, command: tuple[str, ...], fault: str) -> None:
    said = outcome(hooks, *command).fault
    assert said is not None
    assert said.endswith(fault)


def test_a_command_that_hangs_is_killed(hooks: HookProcesses, clock: Clock) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as told:
        hooks.start("n1", ("sh", "-c", f"echo begun > /proc/{os.getpid()}/fd/{writing}; exec tail -f /dev/null"), 30.0)
        assert told.readline() == b"begun\n"
        os.close(writing)
        clock.now_s = 29.0
        assert hooks.ended() == []
        clock.now_s = 30.0
        assert [end.fault for end in hooks.ended()] == ["its command did not end within 30 s"]
        assert not hooks.runs("n1")
        assert told.read() == b"", "nothing of it is left that holds the pipe"


def test_a_command_does_not_see_our_settings(hooks: HookProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERGON_DATABASE_URL", "postgresql://me:secret@db/ergon")
    assert outcome(hooks, "sh", "-c", 'test -z "$ERGON_DATABASE_URL"').fault is None

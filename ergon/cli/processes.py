"""Processes of our own: started, waited for until they are ready, stopped for certain.

Each prints one JSON line such as `{"ready": "api"}` on standard output when it can serve, logs to standard error, and
ends on SIGTERM. Use from the main thread only: it handles signals.
"""

import contextlib
import ctypes
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Protocol, Self, cast

from ergon.errors import ErgonError

TAIL_LINES = 10
TAIL_BYTES = 16_384
CLOSING_S = 10.0
"""From closing its output to the end of a process."""
POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


class HasFileno(Protocol):
    """What can be waited for."""

    def fileno(self) -> int: ...


class ProcessFailed(ErgonError):
    """A process of ours ended by itself, or was not ready in time. `details` are the last lines of its log."""

    exit_code = 1

    def __init__(self, what: str, log: Path) -> None:
        super().__init__(f"{what}; its log is {log}")
        self.details = _tail(log)


class Child:
    """One process in a session of its own, so that Ctrl-C reaches it through us and in our order."""

    def __init__(
        self, name: str, arguments: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path
    ) -> None:
        """Start `arguments` in `folder`; its standard error goes to `log`, the former log to `log` with `.1`.

        Raises OSError if it cannot be started.
        """
        self.name = name
        self.log = log
        if log.exists():
            log.replace(log.with_name(f"{log.name}.1"))
        with log.open("wb") as errors, _interrupts_after():
            self._process = subprocess.Popen(
                arguments,
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - safe as long as we start children before any thread
            )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)

    def fileno(self) -> int:
        """A descriptor that is readable once the process has ended."""
        return self._pidfd

    def wait_ready(self, timeout_s: float) -> dict[str, object]:
        """The ready line, as soon as it is there.

        Raises ProcessFailed if the process ends first, says something else, or takes longer than `timeout_s`.
        """
        line = self._first_line(time.monotonic() + timeout_s)
        if line is None:
            raise ProcessFailed(f"{self.name} was not ready after {timeout_s:g} s", self.log)
        if not line.endswith(b"\n"):
            raise self.death()
        try:
            ready: object = json.loads(line)
        except ValueError:
            ready = None
        if not isinstance(ready, dict) or "ready" not in ready:
            raise ProcessFailed(f"{self.name} should say that it is ready and said {line[:200]!r}", self.log)
        return cast("dict[str, object]", ready)

    def _first_line(self, deadline: float) -> bytes | None:
        """Up to the newline, or to the end of the output; None when the time is over."""
        assert self._process.stdout is not None
        read = b""
        while b"\n" not in read:
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            block = os.read(self._process.stdout.fileno(), 65_536)
            if not block:
                return read
            read += block
        return read[: read.index(b"\n") + 1]

    def check(self) -> None:
        """Raises ProcessFailed if the process has ended."""
        if self._has_ended(0.0):
            raise self.death()

    def death(self) -> ProcessFailed:
        """The error for a process that has ended, or has closed its output to end."""
        if not self._has_ended(CLOSING_S):
            return ProcessFailed(f"{self.name} closed its output before it was ready", self.log)
        # It is not reaped before `stop`: until then its id, and its group's, cannot come to mean another process.
        end = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert end is not None, "only WNOHANG gives None"
        if end.si_code == os.CLD_EXITED:
            return ProcessFailed(f"{self.name} ended with code {end.si_status}", self.log)
        return ProcessFailed(f"{self.name} was killed by {signal.Signals(end.si_status).name}", self.log)

    def ask_to_stop(self) -> None:
        """SIGTERM, unless it has ended."""
        if not self._has_ended(0.0):
            os.kill(self.pid, signal.SIGTERM)

    def stop(self, grace_s: float) -> None:
        """SIGTERM, then after `grace_s` SIGKILL for what is left of its process group. Returns when it is gone."""
        self.ask_to_stop()
        self._has_ended(grace_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._pidfd)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _has_ended(self, within_s: float) -> bool:
        return bool(select.select([self], [], [], within_s)[0])


class Family:
    """Several children that live and end together. Leaving the `with` block stops what runs, the last started first."""

    def __init__(self, *, environment: Mapping[str, str], folder: Path, logs: Path, grace_s: float) -> None:
        """`grace_s` is what each child gets between SIGTERM and SIGKILL."""
        self.environment = environment
        self.folder = folder
        self.logs = logs
        self._grace_s = grace_s
        self._generations: list[list[Child]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _undisturbed():
            for generation in reversed(self._generations):
                for child in generation:
                    child.ask_to_stop()
                for child in generation:
                    child.stop(self._grace_s)

    def start(self, commands: Mapping[str, Sequence[str]]) -> list[Child]:
        """Start a generation of children, which are stopped together; each log is the child's name with `.log`."""
        generation: list[Child] = []
        self._generations.append(generation)
        for name, arguments in commands.items():
            log = self.logs / f"{name}.log"
            generation.append(Child(name, arguments, environment=self.environment, folder=self.folder, log=log))
        return generation

    def stop(self, child: Child) -> None:
        """Stop one of the children, so that it may end. Returns when it is gone."""
        child.stop(self._grace_s)
        for generation in self._generations:
            if child in generation:
                generation.remove(child)

    def check(self) -> None:
        """Raises ProcessFailed if one of the children has ended."""
        for child in itertools.chain(*self._generations):
            child.check()

    def wait_for_a_death(self, *others: HasFileno) -> None:
        """Block as long as all children live. Raises ProcessFailed when one ends.

        Returns when one of `others` can be read.
        """
        select.select([*itertools.chain(*self._generations), *others], [], [])
        self.check()


@contextlib.contextmanager
def leave_on_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP (a closed terminal) unwind the stack as Ctrl-C does; the exit code is 128 + signal."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Inside, a second Ctrl-C does not break off the clearing up. What is inside must end by itself."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in POLITE}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


_libc = ctypes.CDLL(None)


@contextlib.contextmanager
def _interrupts_after() -> Iterator[None]:
    """Ctrl-C inside is heard at the end: in the middle of a fork it may hit a hook of Python's, which drops it."""
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        signal.raise_signal(signal.SIGINT)


def _die_with_parent() -> None:
    """In the child: be told to stop should our process be killed in a way that no clearing up survives."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _tail(log: Path) -> tuple[str, ...]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            return tuple(file.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:])
    except OSError:
        return ()

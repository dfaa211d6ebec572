"""The commands that switch nodes, as processes of the leader: started, looked after, ended. No step waits for one."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from protocol.environment import PREFIX

TAIL_BYTES = 400
"""What is kept of what a command said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The command of a node has ended. `fault` is why it failed, None if it did its work."""

    node: str
    fault: str | None


class Hooks(Protocol):
    """Runs commands of nodes, one at a time for each."""

    def start(self, node: str, command: Sequence[str], limit_s: float) -> None: ...

    def runs(self, node: str) -> bool: ...

    def ended(self) -> list[Ended]: ...

    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    limit_s: float
    until_s: float


class HookProcesses:
    """Each command in a process group of its own, without our settings, which hold the database's password.

    Args:
        clock_s: a clock that never goes back, in s.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._runs: dict[str, _Run] = {}
        self._failed: list[Ended] = []

    def start(self, node: str, command: Sequence[str], limit_s: float) -> None:
        """Start the command; `ended` tells what came of it. It is killed after `limit_s`."""
        said = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the command has ended
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        try:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            said.close()
            self._failed.append(Ended(node=node, fault=f"`{command[0]}` cannot be started: {error.strerror}"))
            return
        self._runs[node] = _Run(process=process, said=said, limit_s=limit_s, until_s=self._clock_s() + limit_s)

    def runs(self, node: str) -> bool:
        """Whether a command of this node runs."""
        return node in self._runs

    def ended(self) -> list[Ended]:
        """What has ended since the last call, or had to be."""
        found, self._failed = self._failed, []
        for node, run in list(self._runs.items()):
            code = run.process.poll()
            if code is None and self._clock_s() < run.until_s:
                continue
            del self._runs[node]
            _kill(run.process)
            why = f"did not end within {run.limit_s:g} s" if code is None else f"ended with code {code}"
            found.append(Ended(node=node, fault=None if code == 0 else f"its command {why}{_tail(run.said)}"))
            run.said.close()
        return found

    def stop(self) -> None:
        """Kill what runs: whoever leads next runs it again."""
        for run in self._runs.values():
            _kill(run.process)
            run.said.close()
        self._runs, self._failed = {}, []


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a command that has not, and whatever it left in its group if it has been ended here."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(said: IO[bytes]) -> str:
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - TAIL_BYTES))
    text = " ".join(said.read().decode("utf-8", "replace").replace("\0", "").split())
    return f": {text}" if text else ""

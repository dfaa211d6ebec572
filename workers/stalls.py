"""Ranks that live and do nothing: how that is noticed, and where they hang. Standard library only: the supervisor uses
it."""

import os
import signal
from collections.abc import Iterable

from workers import procfs

STOPPED_LIMIT_S = 5.0
"""How long a rank may stand still that somebody has stopped (SIGSTOP, SIGTSTP): its gang waits for it and would never
be told."""
DUMP_SIGNAL = signal.SIGRTMIN + 13
"""`ergon.runtime` answers it with the stacks of all threads; the ranks learn of it as `$ERGON_DUMP_SIGNAL`."""
DUMP_S = 0.5
"""How long the ranks get for that, in s."""
MOST_PROCESSES = 50
MOST_FRAMES = 8


class Silence:
    """How long ranks have said nothing: no output, no progress. Times in s, on any one clock."""

    def __init__(self, limit_s: float, progress: Iterable[str], now_s: float) -> None:
        """`progress` are the files that ranks append progress to; they may not exist yet."""
        self._limit_s = limit_s
        self._progress = list(progress)
        self._sizes = self._look()
        self._heard_s = now_s

    def hear(self, now_s: float) -> None:
        """There was output."""
        self._heard_s = now_s

    def due_s(self) -> float:
        """When it will have been too long, if nothing is heard until then."""
        return self._heard_s + self._limit_s

    def is_too_long(self, now_s: float) -> bool:
        """Whether nothing was said for the limit. What was appended since the last call counts as said now."""
        sizes = self._look()
        if sizes != self._sizes:
            self._sizes, self._heard_s = sizes, now_s
        return now_s >= self.due_s()

    def _look(self) -> list[int]:
        return [_size(path) for path in self._progress]


def ask_for_stacks(pid: int) -> None:
    """Have the process write where it is, if it is one that knows DUMP_SIGNAL: any other would die of it."""
    for line in _read(f"/proc/{pid}/status").splitlines():
        name, _colon, value = line.partition(":")
        if name == "SigCgt" and int(value, 16) & 1 << (DUMP_SIGNAL - 1):
            os.kill(pid, DUMP_SIGNAL)


def describe(pid: int) -> str:
    """What the kernel knows of a process and of all below it (proc(5)): a line for each, and its frames inside the
    kernel where we may read them."""
    table = procfs.read_processes()
    family = [table[pid]] if pid in table else []
    lines: list[str] = []
    for process in (family + procfs.descendants(pid, table))[:MOST_PROCESSES]:
        folder = f"/proc/{process.pid}"
        where = _read(f"{folder}/wchan").strip("0\n") or "nothing in the kernel"
        name = _read(f"{folder}/comm").strip()
        lines.append(f"[ergon] process {process.pid} ({name}) is in state {process.state}, waiting for {where}\n")
        lines += [f"[ergon]     {frame}\n" for frame in _read(f"{folder}/stack").splitlines()[:MOST_FRAMES]]
    return "".join(lines)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _read(path: str) -> str:
    """Empty if it may not be read or is gone."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""

"""Processes that are stopped in their tracks and go on again: by SIGSTOP, or so that even SIGKILL has to wait."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil

from workers.cgroups import Group, own_group


def freeze(pid: int) -> list[psutil.Process]:
    """Stop a process and all that it has started; what to hand to `thaw`."""
    first = psutil.Process(pid)
    os.kill(pid, signal.SIGSTOP)  # before its children, of which it would start more
    stopped = [first, *first.children(recursive=True)]
    for process in stopped[1:]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGSTOP)
    return stopped


def thaw(stopped: list[psutil.Process]) -> None:
    for process in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Inside, neither the process nor what it started runs."""
    stopped = freeze(pid)
    try:
        yield
    finally:
        thaw(stopped)


@contextlib.contextmanager
def unkillable(pid: int) -> Iterator[None]:
    """The process stands still in a freezer of v1, whatever it is sent, and takes it in afterwards. Root only."""
    group = Group(f"{own_group(unified=False)}/ergon-frozen-{pid}")
    group.make()
    try:
        Path(group.path, "cgroup.procs").write_text(str(pid))
        Path(group.path, "freezer.state").write_text("FROZEN")
        while Path(group.path, "freezer.state").read_text() != "FROZEN\n":
            os.sched_yield()
        yield
    finally:
        Path(group.path, "freezer.state").write_text("THAWED")
        while not group.is_empty():
            os.sched_yield()
        group.remove()

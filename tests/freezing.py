"""Processes that are stopped in their tracks (SIGSTOP) and go on again."""

import contextlib
import os
import signal
from collections.abc import Iterator

import psutil


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

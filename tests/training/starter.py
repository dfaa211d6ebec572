"""Forks ranks from one process that has imported torch, which takes each of them seconds otherwise.

Run as a module with the number of a socket. Each message there is a JSON object with `words`, `folder` and
`environment`, and the files for stdout, for stderr and for the end. Into the last one go the rank's process id and,
when it has ended, its return code.
"""

import ctypes
import importlib
import json
import os
import signal
import socket
import sys

from ergon import runtime
from training.__main__ import leave, main
from training.recipes import MODULES
from training.strategies import KINDS

LATE = ("torch._dynamo", *(where.partition(":")[0] for where in KINDS.values()))
"""What the first optimiser and the strategy of a gang import, most of what a short run takes otherwise."""

LONGEST = 65_536
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def serve(requests: socket.socket) -> None:
    """Start what is asked for until the other end is closed."""
    while True:
        data, files, _, _ = socket.recv_fds(requests, LONGEST, 3)
        if not data:
            return
        # The process in between waits for the rank, so that this one need not.
        if os.fork() == 0:
            requests.close()
            watch(json.loads(data), *files)
        for file in files:
            os.close(file)


def watch(request: dict, stdout: int, stderr: int, end: int) -> None:
    """Fork the rank, and tell of its beginning and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with_parent()
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        os.close(end)
        rank(request, stdout, stderr)
    os.close(stdout)
    os.close(stderr)
    os.write(end, f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    os.write(end, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends, so that a test that is broken off leaves nothing behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def rank(request: dict, stdout: int, stderr: int) -> None:
    """Run the recipe as `python -m training` does, in this process."""
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    runtime.watch_for_stop()
    try:
        code = main(request["words"])
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    leave(code)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the processes in between need nobody to wait for them
    for module in (*MODULES.values(), *LATE):
        importlib.import_module(module)
    serve(socket.socket(fileno=int(sys.argv[1])))

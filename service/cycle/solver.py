"""The solver in a process of its own: warm, because importing it takes longer than most solves, and apart, so that a
solver that hangs, dies or eats memory costs one child and nothing else.

Parent and child exchange frames over pipes: eight bytes of length, then the codec's bytes.
"""

import contextlib
import logging
import os
import selectors
import struct
import subprocess
import sys
from typing import IO

from scheduler import codec
from scheduler.plan import Plan
from scheduler.problem import Budget, Problem
from scheduler.solve import solve, solve_greedily

log = logging.getLogger(__name__)

LENGTH = struct.Struct(">Q")
GRACE_S = 5.0
"""On top of the budget's own watchdog, for coding and for a machine under load."""
START_S = 60.0
"""How long a fresh child may take to import the solver."""


class SolverFailed(Exception):
    """The child hung, died or answered nonsense."""


class SolverProcess:
    """A warm child that solves. Use from one thread."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the child and let it warm up in the background."""
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "service.cycle.solver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )

    def stop(self) -> None:
        if self._child:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def solve(self, problem: Problem, budget: Budget) -> Plan:
        """The child's plan; the greedy plan, marked as `fallback`, if the child fails."""
        try:
            return self._ask(problem, budget)
        except SolverFailed as failure:
            log.error("the solver failed and is replaced; the greedy plan is used: %s", failure)
            self.stop()
            self.start()
            return solve_greedily(problem)

    def _ask(self, problem: Problem, budget: Budget) -> Plan:
        if self._child is None or self._child.poll() is not None:
            self.stop()
            self.start()
        assert self._child
        assert self._child.stdin
        assert self._child.stdout
        deadline_s = budget.watchdog_s + GRACE_S + START_S
        try:
            _write(self._child.stdin, codec.encode_problem(problem))
            if answer := _read_within(self._child.stdout, deadline_s):
                return codec.decode_plan(answer)
        except (OSError, ValueError) as error:
            raise SolverFailed(str(error)) from error
        raise SolverFailed("the child ended")


def _read_within(pipe: IO[bytes], timeout_s: float) -> bytes | None:
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        if not selector.select(timeout_s):
            raise SolverFailed(f"no answer within {timeout_s:g} s")
    return _read(pipe)


def _write(pipe: IO[bytes], frame: bytes) -> None:
    pipe.write(LENGTH.pack(len(frame)) + frame)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes | None:
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return pipe.read(LENGTH.unpack(head)[0])


def serve() -> None:
    """The child: solve whatever comes in until the parent closes the pipe."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the frames
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        while frame := _read(requests):
            _write(answers, codec.encode_plan(solve(codec.decode_problem(frame))))


if __name__ == "__main__":
    serve()

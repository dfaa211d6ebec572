"""The solver in a process of its own: warm, because importing it takes longer than most solves, and apart, so that a
solver that hangs, dies or eats memory costs one child and nothing else.

Parent and child exchange frames over pipes: eight bytes of length, then the budget or the codec's bytes.
"""

import contextlib
import json
import logging
import os
import struct
import subprocess
import sys
import threading
from dataclasses import asdict
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
        self._warm = False

    def start(self) -> None:
        """Start the child and let it warm up in the background."""
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "service.cycle.solver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
        self._warm = False

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
        # A child that hangs may stop reading as well as answering: only its end surely frees whoever waits for it.
        limit_s = budget.watchdog_s + GRACE_S + (0.0 if self._warm else START_S)
        watchdog = threading.Timer(limit_s, self._child.kill)
        watchdog.start()
        try:
            _write(self._child.stdin, json.dumps(asdict(budget)).encode())
            _write(self._child.stdin, codec.encode_problem(problem))
            if answer := _read(self._child.stdout):
                self._warm = True
                return codec.decode_plan(answer)
        except (OSError, ValueError) as error:
            raise SolverFailed(str(error)) from error
        finally:
            watchdog.cancel()
        raise SolverFailed(f"the child ended, by itself or because it took longer than {limit_s:g} s")


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
        while (budget := _read(requests)) and (problem := _read(requests)):
            _write(answers, codec.encode_plan(solve(codec.decode_problem(problem), Budget(**json.loads(budget)))))


if __name__ == "__main__":
    serve()

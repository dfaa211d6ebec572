"""The solver in a process of its own: warm, because importing it takes longer than most solves, and apart, so that a
solver that hangs, dies or eats memory costs one child and nothing else.

Parent and child exchange frames over pipes: eight bytes of length, then what is asked or the codec's bytes.
"""

import json
import logging
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO

from scheduler import codec
from scheduler.demand import Outlook
from scheduler.plan import Plan
from scheduler.problem import Budget, Problem

log = logging.getLogger(__name__)

LENGTH = struct.Struct(">Q")
GRACE_S = 5.0
"""On top of the budget's own watchdog, for coding and for a machine under load."""
LEARN_S = 60.0
"""How long learning from past jobs may take; about 5 s on a thousand nodes of 15 classes."""
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
            [sys.executable, "-P", "-m", "service.cycle.solver_child"],
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
            return codec.decode_plan(self._ask(asdict(budget), problem, budget.watchdog_s))
        except (SolverFailed, codec.CodecError) as failure:
            log.error("the solver failed and is replaced; the greedy plan is used: %s", failure)
            self.stop()
            self.start()
            from scheduler.solve import solve_greedily  # noqa: PLC0415 - loads OR-Tools, which is the child's to do

            return solve_greedily(problem)

    def learn(self, problem: Problem, periods: Sequence[Sequence[int]]) -> tuple[Outlook, ...]:
        """What the child expects after this past (`scheduler.learning.outlook_of_past`); nothing if the child fails."""
        try:
            answer = self._ask({"periods": periods}, problem, LEARN_S)
            return codec.decode_problem(answer).outlook
        except SolverFailed as failure:
            log.error("the solver failed to learn from past jobs and is replaced; none are expected: %s", failure)
            self.stop()
            self.start()
            return ()

    def _ask(self, asked: dict[str, object], problem: Problem, limit_s: float) -> bytes:
        if self._child is None or self._child.poll() is not None:
            self.stop()
            self.start()
        assert self._child
        assert self._child.stdin
        assert self._child.stdout
        # A child that hangs may stop reading as well as answering: only its end surely frees whoever waits for it.
        limit_s += GRACE_S + (0.0 if self._warm else START_S)
        watchdog = threading.Timer(limit_s, self._child.kill)
        watchdog.start()
        try:
            write(self._child.stdin, json.dumps(asked).encode())
            write(self._child.stdin, codec.encode_problem(problem))
            if answer := read(self._child.stdout):
                self._warm = True
                return answer
        except (OSError, ValueError) as error:
            raise SolverFailed(str(error)) from error
        finally:
            watchdog.cancel()
        raise SolverFailed(f"the child ended, by itself or because it took longer than {limit_s:g} s")


def write(pipe: IO[bytes], frame: bytes) -> None:
    """Send a frame. Raises OSError if nobody reads."""
    pipe.write(LENGTH.pack(len(frame)) + frame)
    pipe.flush()


def read(pipe: IO[bytes]) -> bytes | None:
    """The next frame; None when the pipe is closed."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return pipe.read(LENGTH.unpack(head)[0])

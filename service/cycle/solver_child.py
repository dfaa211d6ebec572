"""The solver's process: it answers what `service.cycle.solver` asks, until that closes the pipe."""

import contextlib
import json
import os
import sys
from typing import Any

from scheduler import codec
from scheduler.learning import outlook_of_past
from scheduler.problem import Budget, Problem
from scheduler.solve import solve
from service.cycle.solver import read, write


def serve() -> None:
    """Solve whatever comes in until the parent closes the pipe."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the frames
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        while (asked := read(requests)) and (problem := read(requests)):
            write(answers, _answer(json.loads(asked), codec.decode_problem(problem)))


def _answer(asked: dict[str, Any], problem: Problem) -> bytes:
    if "periods" in asked:
        outlook = outlook_of_past(problem, asked["periods"])
        return codec.encode_problem(Problem(nodes=(), jobs=(), outlook=outlook))
    return codec.encode_plan(solve(problem, Budget(**asked)))


if __name__ == "__main__":
    serve()

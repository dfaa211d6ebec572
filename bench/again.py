"""Solves a recorded cycle again: `ergon plans CYCLE --json | python -m bench.again`. Exit code 1 for another plan."""

import json
import sys

from scheduler import codec
from scheduler.solve import solve


def main() -> int:
    """Reads the cycle from standard input and says whether its problem leads to its plan."""
    recorded = json.load(sys.stdin)
    problem = codec.decode_problem(json.dumps(recorded["problem"]).encode())
    before = codec.decode_plan(json.dumps(recorded["plan"]).encode())
    after = solve(problem)
    same = "the same plan" if after == before else "ANOTHER PLAN"
    print(
        f"{len(problem.nodes)} nodes, {len(problem.jobs)} jobs, {len(after.placements)} placed by {after.method}, "
        f"{after.objective_j:.0f} J: {same}"
    )
    return 0 if after == before else 1


if __name__ == "__main__":
    sys.exit(main())

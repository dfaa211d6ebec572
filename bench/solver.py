"""How well and how fast the planner plans: 200 jobs on 64 nodes, 20 problems.

    python -m bench.solver [--seeds 20] [--jobs 200] [--nodes 64]

Drives `scheduler.solve.solve` with its shipped default budget in this process, after one solve to warm up, as the
service's solver process is warm. Each problem is solved twice, the second time to see that the plan is the same.

Fails when the 95th percentile of the wall time is above 2 s, the median solver gap is above 2 %, a plan is worse than
the greedy one (waiting tier by tier, then cost), or two solves of one problem differ. Wall time counts whatever else
the machine does meanwhile; CPU time is the planner's own.
"""

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from bench.problems import draw_problem
from bench.record import keep, quantile, table
from scheduler.objective import evaluate, waiting
from scheduler.plan import Plan
from scheduler.problem import Problem
from scheduler.solve import DEFAULT_BUDGET, solve, solve_greedily

BUDGET_P95_S = 2.0
BUDGET_GAP = 0.02
WARM_UP_SEED = 1_000_000

HEADER = (
    "seed",
    "started, greedy",
    "started",
    "greedy GJ",
    "plan GJ",
    "bound GJ",
    "gap",
    "open gap",
    "wall s",
    "CPU s",
    "same again",
    "status",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One problem solved.

    `gap` is the plan's solver gap. `open_gap` has the same numerator over the part of the objective that a plan can
    change (waits, boots, longer on-time, dearer shapes), which is the harder measure: most of the objective is fixed.
    `worse` tells whether the plan is worse than the greedy one.
    """

    seed: int
    greedy_started: int
    started: int
    greedy_j: float
    plan_j: float
    bound_j: float
    gap: float
    open_gap: float
    wall_s: float
    cpu_s: float
    worse: bool
    same_again: bool
    method: str
    status: str


def run(seed: int, jobs: int, nodes: int) -> Run:
    """Draws the problem of the seed and solves it."""
    problem = draw_problem(np.random.default_rng(seed), jobs=jobs, nodes=nodes)
    greedy = solve_greedily(problem)
    wall, cpu = time.perf_counter(), time.process_time()
    plan = solve(problem)
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    idle = evaluate(problem, ())
    decided_j = plan.objective_j - (idle.off_j + idle.on_j + idle.deferred_j)
    return Run(
        seed=seed,
        greedy_started=len(greedy.placements),
        started=len(plan.placements),
        greedy_j=greedy.objective_j,
        plan_j=plan.objective_j,
        bound_j=plan.bound_j,
        gap=plan.gap,
        open_gap=(plan.objective_j - plan.bound_j) / decided_j if decided_j > 0 else 0.0,
        wall_s=wall_s,
        cpu_s=cpu_s,
        worse=_rank(problem, plan) > _rank(problem, greedy),
        same_again=solve(problem) == plan,
        method=plan.method,
        status=plan.status,
    )


def _rank(problem: Problem, plan: Plan) -> tuple[tuple[int, ...], float]:
    return waiting(problem, plan.placements), plan.objective_j


def row(one: Run) -> tuple[str, ...]:
    """One line of the table."""
    return (
        str(one.seed),
        str(one.greedy_started),
        str(one.started),
        f"{one.greedy_j / 1e9:.4f}",
        f"{one.plan_j / 1e9:.4f}",
        f"{one.bound_j / 1e9:.4f}",
        f"{one.gap:.2%}",
        f"{one.open_gap:.2%}",
        f"{one.wall_s:.2f}",
        f"{one.cpu_s:.2f}",
        "yes" if one.same_again else "NO",
        one.status,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="problems to solve, seeds from 0")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=64)
    options = parser.parse_args()

    load = os.getloadavg()[0]
    run(WARM_UP_SEED, options.jobs, options.nodes)
    runs: list[Run] = []
    for seed in range(options.seeds):
        runs.append(run(seed, options.jobs, options.nodes))
        print(" ".join(row(runs[-1])), file=sys.stderr, flush=True)

    walls = [one.wall_s for one in runs]
    figures: dict[str, object] = {
        "jobs": options.jobs,
        "nodes": options.nodes,
        "ortools": version("ortools"),
        "deterministic_s": DEFAULT_BUDGET.deterministic_s,
        "workers": DEFAULT_BUDGET.workers,
        "load_before": load,
        "wall_p50_s": quantile(walls, 0.50),
        "wall_p95_s": quantile(walls, 0.95),
        "cpu_p50_s": quantile([one.cpu_s for one in runs], 0.50),
        "cpu_p95_s": quantile([one.cpu_s for one in runs], 0.95),
        "gap_median": statistics.median(one.gap for one in runs),
        "gap_max": max(one.gap for one in runs),
        "open_gap_median": statistics.median(one.open_gap for one in runs),
        "worse_than_greedy": sum(one.worse for one in runs),
        "not_the_same_again": sum(not one.same_again for one in runs),
        "runs": [{name: getattr(one, name) for name in Run.__slots__} for one in runs],
    }
    passed = (
        quantile(walls, 0.95) <= BUDGET_P95_S
        and statistics.median(one.gap for one in runs) <= BUDGET_GAP
        and not any(one.worse or not one.same_again for one in runs)
    )
    summary = (
        f"Wall time p50 {figures['wall_p50_s']:.2f} s, p95 {figures['wall_p95_s']:.2f} s (budget {BUDGET_P95_S:g} s); "
        f"CPU time p50 {figures['cpu_p50_s']:.2f} s, p95 {figures['cpu_p95_s']:.2f} s. "
        f"Solver gap median {figures['gap_median']:.2%} (budget {BUDGET_GAP:.0%}), largest {figures['gap_max']:.2%}; "
        f"of the part that a plan can change, median {figures['open_gap_median']:.2%}. "
        f"Worse than greedy: {figures['worse_than_greedy']}. Not the same again: {figures['not_the_same_again']}. "
        f"One worker, OR-Tools {figures['ortools']}, load average before the start {load:.1f}. "
        f"{'Passed' if passed else 'FAILED'}."
    )
    text = f"{summary}\n\n{table(HEADER, [row(one) for one in runs])}"
    print(text)
    command = f"python -m bench.solver --seeds {options.seeds} --jobs {options.jobs} --nodes {options.nodes}"
    keep("solver", command=command, text=text, figures=figures)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

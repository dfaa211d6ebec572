"""Energy and waits over days: our planner beside what is usual, on the same arrivals.

    python -m bench.time [--setting mixed|elastic|philly|caps|moves] [--loads .25,.5,.75,.95] [--seeds 5] [--days 3]
                         [--data DIR]

`caps` and `moves` are `mixed` once more: ours beside itself with jobs that a power cap may slow down by a twentieth, or
that may be moved while they run.

Every policy runs the same jobs to their end, and every window ends with the slowest policy's. Nothing of a policy knows
how long a job really runs. Runs that are finished are kept in `build/time`, by everything that they depend on but the
code of the policies, and are not run again: delete it to start anew.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

from bench.record import keep, quantile, table
from bench.time import policies
from bench.time.workload import DAY_S, ESTIMATE_SIGMA, may_slow, mixed_cluster, philly, synthetic
from scheduler.power import BOOT_S
from scheduler.problem import Node, Problem
from scheduler.simulate import Arrival, Decision, Gap, Moving, Planner, Run, Switching, Window, energy_gap, simulate

PUE = 1.2
IDLE_S = 900.0
"""How long empty nodes stay on, for ours and for all with an idle timer: 15 minutes, as sites with power saving do."""

REFERENCE = "EASY backfill, best fit, timer"
OURS = "Ergon"
CAPPED = "Ergon, 5 % slower allowed"
AS_ASKED = "Ergon, sizes as asked"
MOVING = "Ergon, jobs may move"
MOVES = Moving(per_job=1.0)
"""As the service moves them by default; restart and checkpoints as usual for jobs of hours."""
MAY_SLOW = 0.05
BUILD = Path("build/time")

POLICIES: dict[str, Callable[[], Planner]] = {
    "FIFO, spread, always on": lambda: policies.fifo(policies.spread),
    "FIFO, best fit, timer": lambda: policies.fifo(policies.best_fit),
    REFERENCE: lambda: policies.easy,
    "Shortest first, best fit, timer": lambda: policies.shortest_first,
    "Gavel's LP, best fit, timer": lambda: policies.gavel,
    "PWR+FGD, timer": lambda: policies.pwr_fgd(0.1),
    OURS: lambda: policies.ours,
    MOVING: lambda: policies.ours,
    CAPPED: lambda: policies.ours,
    AS_ASKED: lambda: policies.as_asked,
}
"""How to begin with each of them: one that learns what arrives must not know the window before."""
ALWAYS_ON = "FIFO, spread, always on"


BESIDE = {"caps": CAPPED, "moves": MOVING}
"""Settings that show what ours does with one thing more."""


def compared(setting: str) -> list[str]:
    """The policies that a setting compares."""
    if setting in BESIDE:
        return [REFERENCE, OURS, BESIDE[setting]]
    others = {CAPPED} if setting == "elastic" else {CAPPED, AS_ASKED, MOVING}
    return [policy for policy in POLICIES if policy not in others]


HEADER = (
    "load",
    "policy",
    "kWh",
    "vs EASY",
    "energy gap",
    "idle",
    "boot energy",
    "shapes",
    "idle device-h",
    "boots",
    "wait mean s",
    "p50",
    "p95",
    "p99",
    "slowdown",
    "longer",
    "makespan h",
    "cycle p95 ms",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One policy on one window."""

    setting: str
    load: float
    days: float
    seed: int
    policy: str
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A window and how long the planner took for 95 % of its cycles, in s of CPU time."""

    window: Window
    cycle_p95_s: float


def arrivals_of(task: Task) -> tuple[Arrival, ...]:
    """What comes in the task's window."""
    if task.setting == "philly":
        return philly(Path(task.data), task.seed, task.load, task.days)
    arrivals = synthetic(task.seed, task.load, task.days, elastic=task.setting == "elastic")
    return may_slow(arrivals, MAY_SLOW) if task.policy == CAPPED else arrivals


def nodes_of(task: Task) -> tuple[Node, ...]:
    """The cluster as the task's policy runs it."""
    nodes = mixed_cluster()
    return tuple(replace(node, on=True, can_switch=False) for node in nodes) if task.policy == ALWAYS_ON else nodes


def run(task: Task) -> Outcome:
    """The task's window, from `build/time` if it is there."""
    arrivals = arrivals_of(task)
    facts = repr((task.policy, arrivals, nodes_of(task), IDLE_S, PUE))
    path = BUILD / f"{sha256(facts.encode()).hexdigest()[:24]}.json"
    if path.exists():
        kept = json.loads(path.read_text())
        runs = tuple(Run(**one | {"nodes": tuple(one["nodes"])}) for one in kept["window"].pop("runs"))
        return Outcome(window=Window(runs=runs, **kept["window"]), cycle_p95_s=kept["cycle_p95_s"])
    times: list[float] = []
    policy = POLICIES[task.policy]()

    def timed(problem: Problem) -> Decision:
        begin = time.process_time()
        decision = policy(problem)
        if problem.jobs:
            times.append(time.process_time() - begin)
        return decision

    moving = MOVES if task.policy == MOVING else None
    window = simulate(nodes_of(task), arrivals, timed, Switching(idle_s=IDLE_S), pue=PUE, moving=moving)
    outcome = Outcome(window=window, cycle_p95_s=quantile(times, 0.95))
    BUILD.mkdir(parents=True, exist_ok=True)
    path.with_suffix(f".{os.getpid()}").write_text(json.dumps(asdict(outcome)))
    path.with_suffix(f".{os.getpid()}").rename(path)
    return outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One line of the table: means over the seeds."""

    load: float
    policy: str
    kwh: float
    gap: float
    idle: float
    boot: float
    shape: float
    idle_device_h: float
    boots: float
    wait_mean_s: float
    wait_p50_s: float
    wait_p95_s: float
    wait_p99_s: float
    slowdown: float
    longer: float
    makespan_h: float
    cycle_p95_s: float


def figures(load: float, policy: str, windows: Sequence[tuple[Window, Gap, float, float, float]]) -> Figures:
    """Means over the seeds of a policy's windows, each with its gap, its makespan (s), its cycle time (s) and how much
    longer its jobs ran for caps, as a fraction.

    Slowdown is bounded: (wait + run) / max(run, 60 s), at least 1.
    """

    def mean(values: Iterator[float]) -> float:
        return sum(values) / len(windows)

    waits = [sorted(run.wait_s for run in window.runs) for window, *_ in windows]
    return Figures(
        load=load,
        policy=policy,
        kwh=mean(window.total_j / 3.6e6 for window, *_ in windows),
        gap=mean(gap.share for _, gap, *_ in windows),
        idle=mean(gap.idle_j / gap.bound_j for _, gap, *_ in windows),
        boot=mean(gap.boot_j / gap.bound_j for _, gap, *_ in windows),
        shape=mean(gap.shape_j / gap.bound_j for _, gap, *_ in windows),
        idle_device_h=mean(window.idle_device_s / 3600 for window, *_ in windows),
        boots=mean(window.boots for window, *_ in windows),
        wait_mean_s=mean(sum(one) / len(one) for one in waits),
        wait_p50_s=mean(quantile(one, 0.5) for one in waits),
        wait_p95_s=mean(quantile(one, 0.95) for one in waits),
        wait_p99_s=mean(quantile(one, 0.99) for one in waits),
        slowdown=mean(sum(map(_slowdown, window.runs)) / len(window.runs) for window, *_ in windows),
        longer=mean(longer for *_, longer in windows),
        makespan_h=mean(makespan_s / 3600 for _, _, makespan_s, *_ in windows),
        cycle_p95_s=mean(cycle_s for *_, cycle_s, _ in windows),
    )


def _slowdown(run: Run) -> float:
    ran_s = run.ended_s - run.began_s
    return max(1.0, (run.wait_s + ran_s) / max(ran_s, 60.0))


def _longer(arrivals: Sequence[Arrival], window: Window) -> float:
    """How much longer the jobs ran than on the same devices without caps, by device-seconds, as a fraction."""
    came = {arrival.job.id: arrival for arrival in arrivals}
    free_s = ran_s = 0.0
    for run in window.runs:
        arrival = came[run.job]
        kind = arrival.job.shapes[run.shape].kind
        shapes = zip(arrival.job.shapes, arrival.runs_s, strict=True)
        free_s += run.devices * next(run_s for shape, run_s in shapes if shape.kind == kind and not shape.cap_w)
        ran_s += run.devices * (run.ended_s - run.began_s)
    return ran_s / free_s - 1


def row(one: Figures, reference: Figures) -> tuple[str, ...]:
    """One line of the table."""
    return (
        f"{one.load:g}",
        one.policy,
        f"{one.kwh:.0f}",
        f"{one.kwh / reference.kwh - 1:+.1%}",
        f"{one.gap:.1%}",
        f"{one.idle:.1%}",
        f"{one.boot:.1%}",
        f"{one.shape:.1%}",
        f"{one.idle_device_h:.0f}",
        f"{one.boots:.0f}",
        f"{one.wait_mean_s:.0f}",
        f"{one.wait_p50_s:.0f}",
        f"{one.wait_p95_s:.0f}",
        f"{one.wait_p99_s:.0f}",
        f"{one.slowdown:.2f}",
        f"{one.longer:.1%}",
        f"{one.makespan_h:.1f}",
        f"{1000 * one.cycle_p95_s:.0f}",
    )


def summed(outcomes: dict[Task, Outcome], loads: Sequence[float], seeds: int, setting: str) -> list[Figures]:
    """All lines of the table, load by load. Windows of one seed and load end together."""
    lines: list[Figures] = []
    for load in loads:
        by_seed = [
            {
                task.policy: (task, outcome)
                for task, outcome in outcomes.items()
                if (task.load, task.seed) == (load, seed)
            }
            for seed in range(seeds)
        ]
        for policy in compared(setting):
            windows: list[tuple[Window, Gap, float, float, float]] = []
            for one in by_seed:
                task, outcome = one[policy]
                end_s = max(other.window.end_s for _, other in one.values())
                window = outcome.window.until(end_s)
                arrivals = arrivals_of(task)
                gap = energy_gap(mixed_cluster(), arrivals, window, pue=PUE)
                makespan_s = max(run.ended_s for run in window.runs)
                windows.append((window, gap, makespan_s, outcome.cycle_p95_s, _longer(arrivals, window)))
            lines.append(figures(load, policy, windows))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=("mixed", "elastic", "philly", *BESIDE), default="mixed")
    parser.add_argument("--loads", default=".25,.5,.75,.95", help="offered work over capacity")
    parser.add_argument("--seeds", type=int, default=5, help="windows for each load, seeds from 0")
    parser.add_argument("--days", type=float, default=3.0, help="length of the arrivals")
    parser.add_argument("--data", default=os.environ.get("ERGON_BENCH_DATA", ""), help="folder with philly/philly.csv")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.setting == "philly" and not (Path(options.data) / "philly" / "philly.csv").is_file():
        parser.error("--data must name a folder with philly/philly.csv (docs/time.md says where to get it)")
    loads = [float(load) for load in options.loads.split(",")]
    tasks = [
        Task(setting=options.setting, load=load, days=options.days, seed=seed, policy=policy, data=options.data)
        for seed in range(options.seeds)
        for load in loads
        for policy in compared(options.setting)
    ]
    outcomes: dict[Task, Outcome] = {}
    with ProcessPoolExecutor(options.processes) as pool:
        for task, outcome in zip(tasks, pool.map(run, tasks), strict=True):
            outcomes[task] = outcome
            print(
                f"{len(outcomes)} of {len(tasks)}: load {task.load:g}, seed {task.seed}, {task.policy}", file=sys.stderr
            )

    lines = summed(outcomes, loads, options.seeds, options.setting)
    references = {line.load: line for line in lines if line.policy == REFERENCE}
    arrivals = "mixed" if options.setting in BESIDE else options.setting
    text = (
        f"{options.seeds} windows of {options.days:g} days for each load, 34 nodes with 240 devices; {arrivals} "
        f"arrivals, estimates wrong by a log-normal factor of sigma {ESTIMATE_SIGMA:g}, PUE {PUE:g}, boots of "
        f"{BOOT_S:g} s. Energy gap, idle, boots and shapes are parts of LB0. Longer: run time that caps or moves add. "
        f"Cycles in CPU time.\n\n"
        f"{table(HEADER, [row(line, references[line.load]) for line in lines])}"
    )
    print(text)
    command = f"python -m bench.time --setting {options.setting} --loads {options.loads} --seeds {options.seeds}"
    keep(
        f"time-{options.setting}",
        command=f"{command} --days {options.days:g}",
        text=text,
        figures={"window_s": options.days * DAY_S, "lines": [asdict(line) for line in lines]},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

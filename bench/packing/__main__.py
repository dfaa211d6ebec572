"""Packing at data-centre scale: the public openb benchmark, published policies, ours, and the bound, seed by seed.

    python -m bench.packing --data DIR [--seeds 10] [--trace FILE] [--nodes FILE] [--only NAME,NAME]
                            [--history FILE] [--then FILE]

DIR (or ERGON_BENCH_DATA) holds `openb/` with the lists of Alibaba's GPU trace of 2023 and, for the published figures,
`fgd_expected/` (docs/packing.md says where they come from). FILE is any list in the same columns; the default is
openb's default list. With --history the planner has learned from another list than the one that arrives; with --then
the first half of the list arrives, and then that one. What has been worked out is kept in `build/packing/`, and a run
that was stopped goes on there.

Every placement is booked by the benchmark itself, which ends at the first one that breaks a rule. Power is the ratio
to the same seed's bound, which packs all that has arrived; a policy that has failed pods draws less than it should.
`most moves/arrival` is the largest ratio of moves to arrivals so far at any instant of any seed.

On openb's default list it fails when the allocation reproduced for Random, DotProd, BestFit or FGD is more than 0.5
points from the published one.
"""

import argparse
import csv
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.packing import baselines, ours
from bench.packing.bounds import bounds
from bench.packing.drift import followed, joined
from bench.packing.measure import LOADS, Figures, figures, mean, moves_figures
from bench.packing.plot import Point, frontier
from bench.packing.problem import jobs_of, nodes_of, outlook_of
from bench.packing.store import ROOT, Store
from bench.packing.trace import Cluster, Ints, PodList, TraceError, asked_milli, read_nodes, read_pods, sequence
from bench.record import keep, table
from scheduler.codec import decode_problem, encode_problem
from scheduler.demand import Outlook
from scheduler.problem import Node, Problem

FRONTIER = ROOT / "docs" / "images" / "packing.svg"
FIRST_SEED = 42
DEFAULT_LIST = "openb_pod_list_default"
NEAR_ENOUGH = 0.5
"""Points of allocation that a reproduction may differ from what was published."""

PUBLISHED = {
    "Random": "01-Random",
    "DotProd": "02-DotProd",
    "GpuClustering": "03-GpuClustering",
    "GpuPacking": "04-GpuPacking",
    "BestFit": "05-BestFit",
    "FGD": "06-FGD",
}
MOVING = ("ours-0.1-moves", "ours-re-pack")
"""The modes that move jobs, which take a minute of CPU a seed and more."""

MUST_AGREE = ("Random", "DotProd", "BestFit", "FGD")

SIMULATOR = ("bench/packing/trace.py", "bench/packing/energy.py", "bench/packing/measure.py")
BASELINES = (*SIMULATOR, "bench/packing/kernels.py", "bench/packing/baselines.py")
BOUND = (*SIMULATOR, "bench/packing/bounds.py", "bench/packing/problem.py", "scheduler/fluid.py")
PLANNER = (
    "problem",
    "demand",
    "classes",
    "fluid",
    "booking",
    "fleet",
    "packing",
    "moving",
    "learning",
    "patterns",
    "whole",
    "repack",
    "solve",
)
OUTLOOK = tuple(f"scheduler/{name}.py" for name in ("demand", "classes", "fluid", "booking"))
OURS = (
    *SIMULATOR,
    "bench/packing/problem.py",
    "bench/packing/ours.py",
    "bench/packing/ledger.py",
    *(f"scheduler/{name}.py" for name in PLANNER),
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A cluster, what arrives, and what the planner learned from the history of a list.

    `first` and `then` are the list that arrives and, if it is not the only one, the one that follows halfway.
    """

    cluster: Cluster
    history: PodList
    first: PodList
    then: PodList | None
    store: Store

    @cached_property
    def pods(self) -> PodList:
        return joined(self.first, self.then) if self.then else self.first

    @property
    def name(self) -> str:
        learned = "" if self.history is self.first else f"-after-{self.history.name.split('_')[-1]}"
        return self.pods.name + learned

    def arrivals(self, seed: int) -> Ints:
        """The types of the seed's arrivals."""
        if self.then is None:
            return sequence(self.first, self.cluster.gpu_milli, seed)
        return followed(self.pods, self.first, self.then, self.cluster.gpu_milli, seed)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        return nodes_of(self.cluster)

    @cached_property
    def outlook(self) -> tuple[Outlook, ...]:
        def learn() -> str:
            found = outlook_of(self.cluster, self.nodes, self.history)
            return encode_problem(Problem(nodes=(), jobs=(), outlook=found)).decode()

        return decode_problem(self.store.text("outlook", OUTLOOK, learn).encode()).outlook

    def bound(self, seed: int) -> Figures:
        """The free bound of the seed's sequence."""
        arrivals = self.arrivals(seed)
        jobs = jobs_of(self.cluster, self.pods, arrivals)
        return bounds(self.nodes, jobs, asked_milli(self.pods, arrivals), self.cluster.gpu_milli)

    def baseline(self, policy: baselines.Policy, seed: int) -> Figures:
        """A published policy on the seed's sequence."""
        arrivals = self.arrivals(seed)
        done = baselines.run(policy, self.cluster, self.pods, arrivals, seed)
        return figures(asked_milli(self.pods, arrivals), done.nodes >= 0, done.watts, self.cluster.gpu_milli)

    def ours(self, mode: str, seed: int) -> Figures:
        """The planner on the seed's sequence, in one of its modes."""
        arrivals = self.arrivals(seed)
        asked = asked_milli(self.pods, arrivals)
        done = ours.MODES[mode](self.nodes, jobs_of(self.cluster, self.pods, arrivals), self.outlook)
        found = figures(asked, done.placed, done.watts, self.cluster.gpu_milli)
        return found | moves_figures(asked, done.moves, self.cluster.gpu_milli)


def main() -> int:
    options = _options()
    try:
        trace = options.trace or options.data / "openb" / f"{DEFAULT_LIST}.csv"
        nodes = options.nodes or options.data / "openb" / "openb_node_list_gpu_node.csv"
        first = read_pods(trace)
        lists = [path for path in (trace, nodes, options.history, options.then) if path]
        setting = Setting(
            store=Store(ROOT / "build" / "packing" / f"{'-'.join(path.stem for path in lists)}.jsonl", lists),
            cluster=read_nodes(nodes),
            history=read_pods(options.history) if options.history else first,
            first=first,
            then=read_pods(options.then) if options.then else None,
        )
        published = _published(options.data / "fgd_expected" / "analysis_allo_discrete.csv", setting.pods.name)
    except TraceError as error:
        print(error, file=sys.stderr)
        return 2
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)

    def each(name: str, sources: tuple[str, ...], work: Callable[[int], Figures]) -> list[Mapping[str, float]]:
        rows: list[Mapping[str, float]] = []
        for seed in seeds[: options.seeds_with_moves] if name in MOVING else seeds:
            begun = time.perf_counter()
            rows.append(setting.store.get(name, seed, sources, lambda seed=seed: work(seed)))
            print(f"{name}, seed {seed}: {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True)
        return rows

    bound = each("bound", BOUND, setting.bound)
    results = {
        policy.name: each(policy.name, BASELINES, lambda seed, policy=policy: setting.baseline(policy, seed))
        for policy in baselines.POLICIES
        if not options.only or policy.name in options.only
    }
    results |= {
        mode: each(mode, OURS, lambda seed, mode=mode: setting.ours(mode, seed))
        for mode in ours.MODES
        if not options.only or mode in options.only
    }

    text = f"{_summary(setting, bound)}\n\n{table(_HEADER, [_row(n, r, bound, published) for n, r in results.items()])}"
    print(text)
    if setting.name == DEFAULT_LIST and not options.only:
        FRONTIER.write_text(frontier([_point(name, rows, bound) for name, rows in results.items()]), encoding="utf-8")
    name = "packing" if setting.name == DEFAULT_LIST else f"packing-{setting.name.removeprefix('openb_pod_list_')}"
    if not options.only:
        also = [
            f"--{word} {path.name}" for word, path in (("history", options.history), ("then", options.then)) if path
        ]
        also += [f"--seeds-with-moves {options.seeds_with_moves}"] if options.seeds_with_moves else []
        command = " ".join([f"python -m bench.packing --seeds {options.seeds} --trace {trace.name}", *also])
        found = {"bound": mean(bound)} | {name: mean(rows) for name, rows in results.items()}
        keep(name, command=command, text=text, figures={"published": published, "seeds": list(seeds), **found})
    return _verdict(results, published)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = os.environ.get("ERGON_BENCH_DATA")
    parser.add_argument("--data", type=Path, default=where, required=where is None, help="folder of the lists")
    parser.add_argument("--seeds", type=int, default=10, help=f"sequences, from seed {FIRST_SEED}")
    parser.add_argument("--seeds-with-moves", type=int, help="fewer sequences for the mode that takes longest")
    parser.add_argument("--trace", type=Path, help="pod list instead of openb's default one")
    parser.add_argument("--nodes", type=Path, help="node list instead of openb's GPU nodes")
    parser.add_argument("--history", type=Path, help="pod list that the planner has learned from, if another")
    parser.add_argument("--then", type=Path, help="pod list that arrives from half of the capacity on")
    parser.add_argument("--only", type=lambda names: names.split(","), default=[], help="rows to work out, by name")
    return parser.parse_args()


_HEADER = (
    "policy",
    "seeds",
    "published",
    "reproduced",
    *(f"P/LP@{level}" for level in LOADS),
    "first failure %",
    "failed@95",
    "granted@95",
    "granted@100",
    "moves@80/95/100",
    "most moves/arrival",
)


def _row(
    name: str, rows: list[Mapping[str, float]], bound: list[Mapping[str, float]], published: Mapping[str, float]
) -> list[str]:
    row = mean(rows)
    ratios = [
        np.mean([mine[f"kw@{level}"] / least[f"kw@{level}"] for mine, least in zip(rows, bound, strict=False)])
        for level in LOADS
    ]
    spread = float(np.std([one["alloc@130"] for one in rows]))
    counted = "moves@80" in row
    moved = "/".join(f"{row[f'moves@{level}']:.0f}" for level in (80, 95, 100)) if counted else ""
    most = f"{max(one['moves_per_arrival'] for one in rows):.4f}" if counted else ""
    return [
        name,
        str(len(rows)),
        f"{published[name]:.2f}" if name in published else "",
        f"{row['alloc@130']:.2f}±{spread:.2f}",
        *(f"{ratio:.4f}" for ratio in ratios),
        f"{row['first_failure']:.2f}",
        f"{row['failed@95']:.1f}",
        f"{row['granted@95']:.4f}",
        f"{row['granted@100']:.4f}",
        moved,
        most,
    ]


def _point(name: str, rows: list[Mapping[str, float]], bound: list[Mapping[str, float]]) -> Point:
    """Capacity and power of a policy: granted at 100 % load, and the mean ratio to the bound where none fails."""
    ratios = [
        mine[f"kw@{level}"] / least[f"kw@{level}"]
        for mine, least in zip(rows, bound, strict=False)
        for level in (20, 40, 60, 80)
    ]
    return Point(name=name, granted=mean(rows)["granted@100"], power=float(np.mean(ratios)), ours=name in ours.MODES)


def _summary(setting: Setting, bound: list[Mapping[str, float]]) -> str:
    least = mean(bound)
    draws = ", ".join(f"{least[f'kw@{level}']:.1f} kW at {level} %" for level in LOADS)
    return (
        f"List {setting.name}: {len(setting.pods.pod_type)} pods of {len(setting.pods.types)} types on "
        f"{len(setting.nodes)} nodes of {len(setting.cluster.models)} classes with "
        f"{setting.cluster.gpu_milli // 1000} GPUs. Means over {len(bound)} seeds. Published and reproduced: "
        f"allocated share of the GPUs (%) at 130 % load. P/LP@L: power at load L over the bound of the same seed, in "
        f"the mean {draws}."
    )


def _published(path: Path, workload: str) -> dict[str, float]:
    """The published allocation at 130 % load of each policy on the list, the mean over its seeds, if it is known."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["workload"] == workload]
    return {
        name: float(np.mean([float(row["130"]) for row in rows if row["sc_policy"] == theirs]))
        for name, theirs in PUBLISHED.items()
        if any(row["sc_policy"] == theirs for row in rows)
    }


def _verdict(results: Mapping[str, list[Mapping[str, float]]], published: Mapping[str, float]) -> int:
    differs = [
        f"{name}: reproduced {mean(results[name])['alloc@130']:.2f}, published {published[name]:.2f}"
        for name in MUST_AGREE
        if name in results
        and name in published
        and abs(mean(results[name])["alloc@130"] - published[name]) > NEAR_ENOUGH
    ]
    for line in differs:
        print(f"not reproduced: {line}", file=sys.stderr)
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main())

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
from functools import partial
from pathlib import Path

import numpy as np

from bench.packing import baselines, ours
from bench.packing.measure import LOADS, mean
from bench.packing.plot import Point, frontier
from bench.packing.setting import FIRST_SEED, Setting, read_setting
from bench.packing.store import ROOT
from bench.packing.trace import TraceError
from bench.record import keep, table

FRONTIER = ROOT / "docs" / "images" / "packing.svg"
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
RE_PACK_SEEDS = 3
"""Sequences of the mode without a budget, which takes longest."""

MUST_AGREE = ("Random", "DotProd", "BestFit", "FGD")


def main() -> int:
    options = _options()
    try:
        trace = options.trace or options.data / "openb" / f"{DEFAULT_LIST}.csv"
        nodes = options.nodes or options.data / "openb" / "openb_node_list_gpu_node.csv"
        setting = read_setting(trace, nodes, options.history, options.then)
        published = _published(options.data / "fgd_expected" / "analysis_allo_discrete.csv", setting.pods.name)
    except TraceError as error:
        print(error, file=sys.stderr)
        return 2
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    most = {"ours-0.1-moves": options.seeds_with_moves, "ours-re-pack": RE_PACK_SEEDS}

    def each(name: str, work: Callable[[int], Mapping[str, float]]) -> list[Mapping[str, float]]:
        rows: list[Mapping[str, float]] = []
        for seed in seeds[: most.get(name)]:
            begun = time.perf_counter()
            rows.append(work(seed))
            print(f"{name}, seed {seed}: {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True)
        return rows

    bound = each("bound", setting.known_bound)
    results = {
        name: each(name, partial(setting.result, name))
        for name in (*(policy.name for policy in baselines.POLICIES), *ours.MODES)
        if not options.only or name in options.only
    }

    text = f"{_summary(setting, bound)}\n\n{table(_HEADER, [_row(n, r, bound, published) for n, r in results.items()])}"
    print(text)
    if setting.name == DEFAULT_LIST and not options.only:
        FRONTIER.write_text(frontier([_point(name, rows, bound) for name, rows in results.items()]), encoding="utf-8")
    name = "packing" if setting.name == DEFAULT_LIST else f"packing-{setting.name.removeprefix('openb_pod_list_')}"
    also = [f"--{word} {path.name}" for word, path in (("history", options.history), ("then", options.then)) if path]
    also += [f"--seeds-with-moves {options.seeds_with_moves}"] if options.seeds_with_moves else []
    also += [f"--only {','.join(options.only)}"] if options.only else []
    command = " ".join([f"python -m bench.packing --seeds {options.seeds} --trace {trace.name}", *also])
    found = {"bound": mean(bound)} | {name: mean(rows) for name, rows in results.items()}
    keep(
        "-".join([name, *options.only]),
        command=command,
        text=text,
        figures={"published": published, "seeds": list(seeds), **found},
    )
    return _verdict(results, published)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = os.environ.get("ERGON_BENCH_DATA")
    parser.add_argument("--data", type=Path, default=where, required=where is None, help="folder of the lists")
    parser.add_argument("--seeds", type=int, default=10, help=f"sequences, from seed {FIRST_SEED}")
    parser.add_argument("--seeds-with-moves", type=int, help="fewer sequences for the mode with a budget of moves")
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

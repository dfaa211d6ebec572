"""How well run times are predicted from a few runs: Sia's measured placements, one program left out at a time.

    python -m bench.runtimes [--data DIR] [--draws 4]

DIR (or ERGON_BENCH_DATA) holds `sia/` (docs/run-times.md says where it comes from). For each program, what the models
know before its first run is fitted to the other five. Then for each cluster and batch a number of runs is drawn, each
model is fitted to them, and predicts all placements that were not drawn. `own cluster`: the prior is of the other
programs on the same cluster; `all clusters`: one prior for all, as the service ships it.

Fails when the median error of the product's model with either prior is above 15 % after one run or 12 % after two.
"""

import argparse
import os
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import log
from pathlib import Path

import numpy as np

from bench.record import keep, quantile, table
from bench.runtimes.models import (
    Overheads,
    Predict,
    fit_linear,
    fit_product,
    ideal,
    overheads_of,
    penalty,
    product_prior,
    ring,
    tiers,
)
from bench.runtimes.sia import PROGRAMS, DataError, Group, read_groups
from scheduler.throughput import Point, fit

RUNS = (0, 1, 2, 3, 5)
GOALS = {1: 0.15, 2: 0.12}
SEED = 1
OURS_HERE, OURS_ALL = "tier+slope, own cluster", "tier+slope, all clusters"
BASELINES: dict[str, Overheads] = {"T_s/N": ideal, "1 parameter": penalty, "ring": ring}

Fit = Callable[[Sequence[Point]], Predict]
Errors = dict[tuple[str, int], list[float]]


def main() -> int:
    options = _options()
    try:
        groups = read_groups(options.data)
    except DataError as error:
        print(f"bench.runtimes: {error}", file=sys.stderr)
        return 2
    with_profile = compare(groups, options.draws, profile=True)
    without = compare(groups, options.draws, profile=False)
    spreads = coverage(groups, options.draws)
    met = all(
        quantile(errors[name, runs], 0.5) <= goal
        for errors in (with_profile, without)
        for name in (OURS_HERE, OURS_ALL)
        for runs, goal in GOALS.items()
    )
    points = sum(len(group.together) for group in groups)
    text = "\n\n".join(
        [
            f"{len(groups)} groups (program, cluster, batch), {points} placements on several devices. Median / 90th "
            "percentile of the absolute error, by the number of runs seen.",
            "With a run on one device known besides:",
            _rows(with_profile, RUNS),
            "Without one: the runs are any that were made, and one of them may be on one device.",
            _rows(without, RUNS[1:]),
            "Whether the spread that goes with a prediction is right (all clusters, without a profile): placements "
            "within one standard deviation (68 % if it is), and below the 90th percentile.",
            table(
                ("runs", "within 1 sd", "below P90", "root mean square of the logarithms"),
                [(runs, f"{a:.0%}", f"{b:.0%}", f"{c:.2f}") for runs, (a, b, c) in spreads.items()],
            ),
            "What all six programs would give as the prior, median and standard deviation: "
            + ", ".join(
                f"{name} {mean:.2f} ({deviation:.2f})"
                for name, (mean, deviation) in zip(
                    ("in a node", "between nodes", "further device"), overheads_of(tiers, groups), strict=True
                )
            )
            + ".",
            "Goals (median 15 % after one run, 12 % after two): " + ("met." if met else "NOT met."),
        ]
    )
    print(text)
    keep("runtimes", command="python -m bench.runtimes", text=text, figures=_figures(with_profile, without))
    return 0 if met else 1


def compare(groups: Sequence[Group], draws: int, *, profile: bool) -> Errors:
    """Absolute errors of every model, by its name and the number of runs it has seen."""
    errors: Errors = defaultdict(list)
    for program in PROGRAMS:
        others = [group for group in groups if group.program != program]
        models = {cluster: _models(others, cluster) for cluster in {group.cluster for group in groups}}
        for group in groups:
            if group.program != program:
                continue
            for runs, seen, rest in _drawn(group, draws, profile=profile):
                for name, model in models[group.cluster].items():
                    predict = model(seen)
                    errors[name, runs] += [abs(predict(point) / point.run_s - 1) for point in rest]
    return errors


def coverage(groups: Sequence[Group], draws: int) -> dict[int, tuple[float, float, float]]:
    """By the number of runs: share of placements within one standard deviation, share below the predicted 90th
    percentile, and the root mean square of the errors' logarithms."""
    off: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for program in PROGRAMS:
        prior = product_prior([group for group in groups if group.program != program])
        for group in groups:
            if group.program == program:
                for runs, seen, rest in _drawn(group, draws, profile=False):
                    curve = fit(seen, prior)
                    off[runs] += [
                        (
                            log(point.run_s / curve.run_s(point.devices, point.nodes)),
                            curve.sigma(point.devices, point.nodes),
                        )
                        for point in rest
                    ]
    found: dict[int, tuple[float, float, float]] = {}
    for runs, pairs in sorted(off.items()):
        errors, sigmas = np.array(pairs).T
        found[runs] = (
            float(np.mean(np.abs(errors) <= sigmas)),
            float(np.mean(errors <= 1.2816 * sigmas)),
            float(np.sqrt(np.mean(errors**2))),
        )
    return found


def _models(others: Sequence[Group], cluster: str) -> Mapping[str, Fit]:
    here = [group for group in others if group.cluster == cluster]
    models: dict[str, Fit] = {
        name: partial(fit_linear, overheads, overheads_of(overheads, here)) for name, overheads in BASELINES.items()
    }
    models[OURS_HERE] = partial(fit_product, product_prior(here))
    models[OURS_ALL] = partial(fit_product, product_prior(others))
    return models


def _drawn(group: Group, draws: int, *, profile: bool) -> list[tuple[int, list[Point], list[Point]]]:
    """How many runs are seen, which, and the placements that remain; the same for every model."""
    rng = random.Random(f"{SEED} {group.program} {group.cluster} {group.alone.run_s}")
    pool = list(group.together) if profile else [group.alone, *group.together]
    found: list[tuple[int, list[Point], list[Point]]] = []
    for runs in RUNS if profile else RUNS[1:]:
        for _ in range(draws if runs else 1):
            if runs < len(pool):
                seen = rng.sample(pool, runs)
                rest = [point for point in group.together if point not in seen]
                found.append((runs, [group.alone, *seen] if profile else seen, rest))
    return found


def _rows(errors: Errors, numbers: Sequence[int]) -> str:
    names = [*BASELINES, OURS_HERE, OURS_ALL]
    rows = [
        (
            name,
            *(f"{quantile(errors[name, runs], 0.5):.3f} / {quantile(errors[name, runs], 0.9):.2f}" for runs in numbers),
        )
        for name in names
    ]
    return table(("model", *(f"{runs} runs" if runs != 1 else "1 run" for runs in numbers)), rows)


def _figures(with_profile: Errors, without: Errors) -> dict[str, object]:
    return {
        kind: {
            f"{name}, {runs}": {
                "median": quantile(values, 0.5),
                "p90": quantile(values, 0.9),
                "predictions": len(values),
            }
            for (name, runs), values in errors.items()
        }
        for kind, errors in (("with_profile", with_profile), ("without_profile", without))
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.runtimes", description=__doc__)
    data = os.environ.get("ERGON_BENCH_DATA")
    parser.add_argument("--data", type=Path, default=data and Path(data), required=data is None, metavar="DIR")
    parser.add_argument("--draws", type=int, default=4, help="draws of runs for each group and number of runs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

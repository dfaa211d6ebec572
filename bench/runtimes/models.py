"""The models that are compared: three of the literature and the product's, each with what other programs have shown."""

# scipy ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false

import math
from collections.abc import Callable, Sequence
from statistics import median, pstdev

import numpy as np
from scipy.optimize import nnls

from bench.runtimes.sia import Group
from scheduler.throughput import MEASURED, RUN_NOISE, Point, Prior, fit

Overheads = Callable[[Point], tuple[float, ...]]
"""What the time on one device is increased by, as features of a placement."""

Predict = Callable[[Point], float]

LEAST_SPREAD = 0.02
"""No overhead is taken for more certain than this."""


def ideal(_: Point) -> tuple[float, ...]:
    """`T_s / N`: nothing is lost."""
    return ()


def penalty(point: Point) -> tuple[float, ...]:
    """One parameter: each further device costs the same share."""
    return (point.devices - 1.0,)


def ring(point: Point) -> tuple[float, ...]:
    """A ring all-reduce moves 2 (n - 1) / n times the gradients, inside a node or between nodes."""
    moved = 2 * (point.devices - 1) / point.devices
    return (moved * (point.nodes == 1), moved * (point.nodes > 1))


def tiers(point: Point) -> tuple[float, ...]:
    """The features of `scheduler.throughput`."""
    return (float(point.devices > 1 and point.nodes == 1), float(point.nodes > 1), float(max(0, point.devices - 2)))


def overheads_of(overheads: Overheads, groups: Sequence[Group]) -> list[tuple[float, float]]:
    """Median and standard deviation of each parameter over groups that show it, each fitted to all of its points."""
    shown: list[list[float]] = [[] for _ in overheads(groups[0].alone)]
    for group in groups:
        points = (group.alone, *group.together)
        features = np.array([[1.0, *overheads(point)] for point in points])
        times = np.array([point.device_s for point in points])
        found, _ = nnls(features / times[:, None], np.ones(len(times)))
        if not found[0]:
            continue  # it says nothing about one device
        for values, parameter, column in zip(shown, found[1:] / found[0], features[:, 1:].T, strict=True):
            if column.any():
                values.append(float(parameter))
    return [(median(values), max(LEAST_SPREAD, pstdev(values))) if values else (0.0, 1.0) for values in shown]


def fit_linear(overheads: Overheads, prior: Sequence[tuple[float, float]], points: Sequence[Point]) -> Predict:
    """A baseline, fitted as the product fits its own."""
    scale = math.exp(sum(math.log(point.device_s) for point in points) / len(points))
    rows = [
        [scale / point.device_s, *(value * scale / point.device_s for value in overheads(point))] for point in points
    ]
    wanted = [1.0] * len(points)
    for place, (mean, deviation) in enumerate(prior):
        drawn = [0.0] * (len(prior) + 1)
        drawn[0], drawn[place + 1] = -mean * RUN_NOISE / deviation, RUN_NOISE / deviation
        rows.append(drawn)
        wanted.append(0.0)
    found, _ = nnls(np.array(rows), np.array(wanted))
    return lambda point: float(found @ [1.0, *overheads(point)]) * scale / point.devices


def fit_product(prior: Prior, points: Sequence[Point]) -> Predict:
    """`scheduler.throughput.fit`, as the service calls it."""
    curve = fit(points, prior)
    return lambda point: curve.run_s(point.devices, point.nodes)


def product_prior(groups: Sequence[Group]) -> Prior:
    """What `scheduler.throughput.MEASURED` would be had only these groups been measured."""
    (intra, intra_sd), (inter, inter_sd), (slope, slope_sd) = overheads_of(tiers, groups)
    return Prior(
        intra=intra,
        inter=inter,
        slope=slope,
        intra_sd=intra_sd,
        inter_sd=inter_sd,
        slope_sd=slope_sd,
        size_sigma=MEASURED.size_sigma,
    )

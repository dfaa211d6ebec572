"""Speed against world size: what a run costs in device-seconds on n devices of k nodes, fitted to a few runs.

Spread over n devices a run takes `T(n, k) = T_1 / n * (1 + a_r [n > 1, k = 1] + a_n [k > 1] + b max(0, n - 2))`: T_1 is
its time on one device, `a_r` what communication inside a node adds, `a_n` what it adds between nodes, and `b` what each
further device adds. With all three zero this is the `T_s / N` of ideal scaling, which published measurements
contradict by a fifth at the median (`bench.runtimes`).

The fit is by non-negative least squares in `n T(n, k)`, relative to what was observed, so it is linear in T_1 and its
products with the overheads. What is known of other programs enters as a prior: rows that draw the overheads towards
it, however many devices the runs had. The model and its use of tiers are those of Pollux (OSDI 2021) made linear.
"""

# scipy ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

RUN_NOISE = 0.10
"""How far the logarithms of the times of one program on one shape scatter: runs differ by about a tenth [assumed]."""


MOST_OVERHEAD = 10.0
"""The overheads together are at most so many times the time on one device. Without a limit a run on several devices
could be explained by overheads alone, and one device would need no time at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run: `run_s` seconds on `devices` devices of `nodes` nodes together."""

    devices: int
    nodes: int
    run_s: float

    @property
    def device_s(self) -> float:
        """Seconds times devices."""
        return self.run_s * self.devices


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What is known of the overheads before the first run, each with its standard deviation over programs.

    `size_sigma` is how far the logarithm of a predicted time is off at a size that was not observed, after one, two,
    and three or more sizes were.
    """

    intra: float
    inter: float
    slope: float
    intra_sd: float
    inter_sd: float
    slope_sd: float
    size_sigma: tuple[float, float, float]


MEASURED = Prior(
    intra=0.08,
    inter=0.01,
    slope=0.03,
    intra_sd=0.20,
    inter_sd=0.46,
    slope_sd=0.08,
    size_sigma=(0.20, 0.15, 0.12),
)
"""Of six data-parallel programs on six clusters of GPUs (Sia, SOSP 2023), as `bench.runtimes` finds it."""

IDEAL = Prior(intra=0.0, inter=0.0, slope=0.0, intra_sd=0.5, inter_sd=1.0, slope_sd=0.1, size_sigma=(0.60, 0.40, 0.30))
"""`T_s / N`, for devices of which no measurement is known, such as CPU slots. Its spread is wide [assumed]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A program's speed on one kind of device. `one_s` is its run time on one device, in s; the overheads are shares
    of it. `sizes` are the (devices, nodes) it was fitted to, `noise` the scatter of the logarithms around it.
    """

    one_s: float
    intra: float
    inter: float
    slope: float
    sizes: frozenset[tuple[int, int]]
    noise: float
    size_sigma: tuple[float, float, float]

    def run_s(self, devices: int, nodes: int) -> float:
        """Predicted run time in s, the median."""
        intra, inter, further = _features(devices, nodes)
        return self.one_s / devices * (1 + self.intra * intra + self.inter * inter + self.slope * further)

    def sigma(self, devices: int, nodes: int) -> float:
        """Standard deviation of the logarithm of the run time: the scatter, and more at a size never observed."""
        if (devices, nodes) in self.sizes:
            return self.noise
        return math.hypot(self.noise, self.size_sigma[min(len(self.sizes), 3) - 1])

    def scaled(self, ratio: float) -> "Curve":
        """The curve on devices that need `ratio` times as long."""
        return replace(self, one_s=self.one_s * ratio)


def _least_squares(matrix: Vector, wanted: Vector) -> Vector:
    """The solution without negative parts."""
    from scipy.optimize import nnls  # noqa: PLC0415 - takes longer to load than half of the API

    solve: Callable[[Vector, Vector], tuple[Vector, float]] = nnls
    return solve(matrix, wanted)[0]


def fit(points: Sequence[Point], prior: Prior) -> Curve:
    """The curve through these runs, at least one. After one it has the prior's form and the run's scale."""
    assert points, "there is nothing to fit to"
    scale = math.exp(sum(math.log(point.device_s) for point in points) / len(points))
    rows = [_row(point) * scale / point.device_s for point in points]
    wanted = [1.0] * len(points)
    for place, (mean, deviation) in enumerate(
        [(prior.intra, prior.intra_sd), (prior.inter, prior.inter_sd), (prior.slope, prior.slope_sd)], start=1
    ):
        drawn = np.zeros(4)
        drawn[0], drawn[place] = -mean, 1.0
        rows.append(drawn * RUN_NOISE / deviation)
        wanted.append(0.0)
    # The first unknown is what T_1 has above the least that the overheads leave it.
    matrix = np.array(rows)
    matrix[:, 1:] += matrix[:, :1] / MOST_OVERHEAD
    found = _least_squares(matrix, np.array(wanted))
    rest, intra, inter, slope = (float(value) for value in found)
    one = rest + (intra + inter + slope) / MOST_OVERHEAD
    curve = Curve(
        one_s=one * scale,
        intra=intra / one,
        inter=inter / one,
        slope=slope / one,
        sizes=frozenset((point.devices, point.nodes) for point in points),
        noise=RUN_NOISE,
        size_sigma=prior.size_sigma,
    )
    return replace(curve, noise=_noise(curve, points))


def _row(point: Point) -> Vector:
    return np.array([1.0, *_features(point.devices, point.nodes)])


def _features(devices: int, nodes: int) -> tuple[float, float, float]:
    """Whether it communicates inside of a node, whether between nodes, and devices beyond two."""
    return float(devices > 1 and nodes == 1), float(nodes > 1), float(max(0, devices - 2))


def _noise(curve: Curve, points: Sequence[Point]) -> float:
    """The assumed scatter counts like two runs beside those that were seen."""
    squares = sum(math.log(point.run_s / curve.run_s(point.devices, point.nodes)) ** 2 for point in points)
    return math.sqrt((2 * RUN_NOISE**2 + squares) / (2 + len(points)))

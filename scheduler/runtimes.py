"""How long a job runs, as far as is known, and how much longer one does that has run for a while.

What is believed, in this order: runs of the same work of the same size; runs of other sizes, through the curve of
`scheduler.throughput`; either on another kind of device, as fast beside it as `scheduler.kinds` says; the user's
estimate, corrected by how far that user's estimates were off before; the estimate as it stands; half the time limit; an
hour. The progress of a job that runs comes before all of them (`scheduler.pace`).
What was said is about the fewest nodes that the job accepts; on more it is taken to scale ideally, and says so.
An estimate only ever moves plans: nothing stops a job because it is over.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import NormalDist, median

from scheduler.kinds import Speeds
from scheduler.problem import CPU_KIND, WHOLE_DEVICE
from scheduler.throughput import IDEAL, MEASURED, RUN_NOISE, Point, fit

DEFAULT_RUN_S = 3_600.0
"""Run time assumed for a job of which nothing is known."""

LIMIT_SHARE = 0.5
"""Share of its time limit that a job is assumed to run of which nothing else is known. A guess."""

SHORTEST_RUN_S = 1.0
"""Shorter estimates are not told apart; the smallest of numbers would even be 0 when halved."""

TICK_S = 1e-6
"""What the service's clock tells apart."""

LONGEST_RUN_S = 1e9
"""What the planner takes at most (`scheduler.validate`)."""

ESTIMATE_SIGMA = 0.5
"""How far the logarithm of a user's estimate is off [assumed]."""

GUESS_SIGMA = 1.0
"""The same of half a time limit, and of an hour [assumed]."""

FEWEST_ESTIMATES = 3
"""From so many past estimates of a user on they are corrected."""

_NORMAL = NormalDist()
_TENTH = 0.1
_TENTH_Z = -_NORMAL.inv_cdf(_TENTH)

_OVERDUE_Z = 2.0
"""A job that is later than so many standard deviations shows that those were too small."""


class Source(StrEnum):
    """What a run time follows from, the most believed first."""

    PROGRESS = "progress"
    PAST_RUNS = "past_runs"
    OTHER_SIZES = "other_sizes"
    OTHER_KINDS = "other_kinds"
    CORRECTED_ESTIMATE = "corrected_estimate"
    ESTIMATE = "estimate"
    TIME_LIMIT = "time_limit"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTime:
    """A duration, log-normal up to `most_s`: its median in s, and the standard deviation of its logarithm.

    `runs` is how many past runs it follows from. `speed` is how many times as fast its kind of device is taken for as
    what is known of: another kind, or the mean of those that the job accepts. `spread` is the same of its number of
    nodes, where that is mere arithmetic (`T_s / N`): nobody has seen the work on another number than one.
    """

    median_s: float
    sigma: float
    source: Source
    runs: int = 0
    speed: float = 1.0
    spread: float = 1.0
    most_s: float = LONGEST_RUN_S

    @property
    def low_s(self) -> float:
        """The 10th percentile in s."""
        return self.median_s * math.exp(-_TENTH_Z * self.sigma)

    @property
    def high_s(self) -> float:
        """The 90th percentile in s."""
        return min(self.most_s, self.median_s * math.exp(_TENTH_Z * self.sigma))

    def within(self, most_s: float) -> "RunTime":
        """The same where it cannot be more than this, though it can be a second."""
        most_s = max(most_s, SHORTEST_RUN_S)
        return replace(self, median_s=min(max(self.median_s, SHORTEST_RUN_S), most_s), most_s=most_s)

    def part(self, share: float) -> "RunTime":
        """How long this share of the work takes."""
        return replace(self, median_s=max(self.median_s * share, SHORTEST_RUN_S))

    def after(self, elapsed_s: float) -> "RunTime":
        """How much longer, for a job that has run so long and has not ended: the part of the distribution that is
        left, by its 10th percentile, median and 90th taken for a log-normal again.
        """
        if elapsed_s < TICK_S:
            return self
        late = math.log(elapsed_s / self.median_s)
        sigma = max(self.sigma, late / _OVERDUE_Z)
        still_runs = _NORMAL.cdf(-late / sigma)
        low_s, median_s, high_s = (
            max(self.median_s * math.exp(-sigma * _NORMAL.inv_cdf(part * still_runs)) - elapsed_s, SHORTEST_RUN_S)
            for part in (1 - _TENTH, 0.5, _TENTH)
        )
        return replace(self, median_s=median_s, sigma=math.log(high_s / low_s) / (2 * _TENTH_Z))


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a run has: `nodes` nodes with `devices` devices each, of `kind`, or `share` thousandths of one."""

    nodes: int
    devices: int
    kind: str
    share: int = WHOLE_DEVICE


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run of before from its start to its success, in s."""

    size: Size
    run_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of a job before it starts.

    `runs` are those of the same work. `stated_s` is the user's estimate on `stated_nodes` nodes and `limit_s` the time
    limit, both in s.
    `ratios` are real over stated run times of the user's past jobs. `kinds` are those that the job accepts, of which an
    estimate speaks on the whole, and `speeds` how fast kinds are.
    """

    runs: Sequence[Run] = ()
    stated_s: float | None = None
    stated_nodes: int = 1
    limit_s: float | None = None
    ratios: Sequence[float] = ()
    kinds: Sequence[str] = ()
    speeds: Speeds = Speeds()  # noqa: RUF009 - a frozen value


def whole_run(known: Known, size: Size) -> RunTime:
    """How long the job runs in this size, from its start to its end."""
    found = _of_runs(known.runs, size) or _of_other_kinds(known, size) or _of_what_was_said(known, size)
    return found.within(known.limit_s or LONGEST_RUN_S)


def _of_runs(runs: Sequence[Run], size: Size) -> RunTime | None:
    alike = [max(run.run_s, SHORTEST_RUN_S) for run in runs if run.size == size]
    if alike:
        return _of_sample(alike, 1.0, RUN_NOISE, Source.PAST_RUNS)
    if not _scales(size):
        return None
    points = [
        Point(devices=run.size.nodes * run.size.devices, nodes=run.size.nodes, run_s=max(run.run_s, SHORTEST_RUN_S))
        for run in runs
        if run.size.kind == size.kind and _scales(run.size)
    ]
    if not points:
        return None
    curve = fit(points, IDEAL if size.kind == CPU_KIND else MEASURED)
    devices = size.nodes * size.devices
    return RunTime(
        median_s=curve.run_s(devices, size.nodes),
        sigma=curve.sigma(devices, size.nodes),
        source=Source.OTHER_SIZES,
        runs=len(points),
    )


def _of_other_kinds(known: Known, size: Size) -> RunTime | None:
    """From the kind that ran last. An estimate would make the kinds differ by how far it is off, and one of them would
    never be tried.
    """
    for kind in dict.fromkeys(run.size.kind for run in known.runs):
        if found := _of_runs(known.runs, replace(size, kind=kind)):
            sigma = math.hypot(found.sigma, known.speeds.sigma(size.kind, kind))
            return _faster(replace(found, sigma=sigma, source=Source.OTHER_KINDS), known.speeds.factor(size.kind, kind))
    return None


def _of_what_was_said(known: Known, size: Size) -> RunTime:
    """An estimate speaks of all kinds that the job accepts: it is taken for that on a mean one of them."""
    said = _faster(_of_estimate(known), known.speeds.among(size.kind, known.kinds))
    spread = size.nodes / known.stated_nodes
    if spread == 1.0:
        return said
    sigma = math.hypot(said.sigma, IDEAL.size_sigma[0])
    return replace(said, median_s=said.median_s / spread, sigma=sigma, spread=spread)


def _faster(found: RunTime, speed: float) -> RunTime:
    return replace(found, median_s=found.median_s / speed, speed=speed)


def _scales(size: Size) -> bool:
    """Whether the curve is about it: it has whole devices."""
    return size.devices > 0 and size.share == WHOLE_DEVICE


def _of_estimate(known: Known) -> RunTime:
    if known.stated_s is None:
        return _guess(known)
    if len(known.ratios) >= FEWEST_ESTIMATES:
        return _of_sample(known.ratios, known.stated_s, ESTIMATE_SIGMA, Source.CORRECTED_ESTIMATE)
    return RunTime(median_s=known.stated_s, sigma=ESTIMATE_SIGMA, source=Source.ESTIMATE)


def _guess(known: Known) -> RunTime:
    if known.limit_s is not None:
        return RunTime(median_s=known.limit_s * LIMIT_SHARE, sigma=GUESS_SIGMA, source=Source.TIME_LIMIT)
    return RunTime(median_s=DEFAULT_RUN_S, sigma=GUESS_SIGMA, source=Source.DEFAULT)


def _of_sample(values: Sequence[float], unit_s: float, assumed: float, source: Source) -> RunTime:
    """The median of what was seen, and its scatter; what is assumed of that counts like two more values."""
    middle = median(values)
    squares = sum(math.log(value / middle) ** 2 for value in values)
    sigma = math.sqrt((2 * assumed**2 + squares) / (2 + len(values)))
    return RunTime(median_s=middle * unit_s, sigma=sigma, source=source, runs=len(values))

"""What comes is compared with what was expected, and expected anew when it differs by more than chance.

The measure is the variation between the frequencies of demands: half the sum of their differences, each times the
devices of a member, because large ones matter more. Of equal sources it is not zero, because samples differ;
`by_chance` is what to expect of it.
"""

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from scheduler.booking import look_ahead
from scheduler.classes import count_demands, demands_of
from scheduler.demand import Demand, Outlook
from scheduler.packing import Packer
from scheduler.problem import Job, Problem

Vector = NDArray[np.float64]

WINDOW = 500
"""Arrivals that are compared with what was expected."""

LOOK = 100
"""Arrivals between two comparisons."""

SURPRISE = 4.0
"""So many standard deviations above what chance explains is a change."""

TRUST = 100.0
"""Arrivals that the mix expected before counts for beside those that came since the change: a demand that is rare is
not forgotten because it did not come again at once."""


class Expectation:
    """What is expected to arrive, learned anew on the way."""

    def __init__(self, outlook: Outlook) -> None:
        self._mix: Mapping[Demand, float] = _normal(outlook.mix())
        self._known = math.inf  # arrivals that the mix was learned from
        self._recent: deque[Demand] = deque(maxlen=WINDOW)
        self._since: Counter[Demand] = Counter()
        self._unread = 0

    def changed(self, job: Job) -> bool:
        """Notes that the job has arrived; whether to learn anew: what came last is not what was expected, or the
        sample has doubled since it was learned from.
        """
        demand = next(iter(count_demands([job])))
        self._recent.append(demand)
        self._since[demand] += 1
        self._unread += 1
        if self._unread < LOOK or len(self._recent) < WINDOW:
            return False
        self._unread = 0
        recent = Counter(self._recent)
        if differs(recent, self._mix, self._known):
            self._since = recent
            return True
        return self._since.total() >= 2 * self._known or (
            self._known == math.inf and differs(self._since, self._mix, self._known)
        )

    def learn(self, packer: Packer) -> tuple[Outlook, ...]:
        """The outlook from here on: what is on the packer's fleet stays, and what came since the change goes on."""
        self._mix, self._known = _joined(self._mix, self._since), self._since.total()
        return _on_fleet(packer, self._mix)


def outlook_of_past(problem: Problem, before: Sequence[int], lately: Sequence[int]) -> tuple[Outlook, ...]:
    """What to expect on the problem's nodes beside what runs there, after jobs that came in the past.

    The problem's jobs are what came, each a number of times: `before[i]` in the longer past, `lately[i]` since. Where
    the two differ by more than chance, what came lately counts most.
    """
    past, recent = _count(problem.jobs, before), _count(problem.jobs, lately)
    if past and recent and differs(recent, _normal(past), past.total()):
        mix = _joined(_normal(past), recent)
    else:
        mix = _normal(past + recent)
    return _on_fleet(Packer(Problem(nodes=problem.nodes, jobs=(), running=problem.running)), mix)


def differs(counts: Counter[Demand], mix: Mapping[Demand, float], known: float) -> bool:
    """Whether what came differs from the mix, learned from `known` arrivals, by more than chance explains."""
    demands = sorted(set(mix) | set(counts))
    expected = np.array([mix.get(demand, 0.0) for demand in demands])
    came = np.array([counts[demand] for demand in demands]) / counts.total()
    sizes = np.array([max(1.0, demand.size) for demand in demands])
    mean, deviation = by_chance(expected, sizes, counts.total(), known)
    return float(sizes @ np.abs(came - expected)) / 2 > mean + SURPRISE * deviation


def by_chance(frequencies: Vector, sizes: Vector, number: int, known: float = math.inf) -> tuple[float, float]:
    """The variation to expect between frequencies and those of a number of samples, when they were learned from `known`
    others: its mean and its standard deviation.

    A frequency p among n deviates by about a normal variable with the variance p (1 - p) / n, and in the mean never by
    more than 2 p.
    """
    variance = frequencies * (1 - frequencies) * (1 / number + 1 / known)
    mean = np.minimum(np.sqrt(2 / math.pi * variance), 2 * frequencies)
    return float(sizes @ mean) / 2, math.sqrt(float(sizes**2 @ variance) * (1 - 2 / math.pi)) / 2


def _count(jobs: Sequence[Job], times: Sequence[int]) -> Counter[Demand]:
    counts: Counter[Demand] = Counter()
    for job, number in zip(jobs, times, strict=True):
        if number:
            members, demand = next(iter(demands_of(job.shapes)))
            counts[demand] += members * number
    return counts


def _on_fleet(packer: Packer, mix: Mapping[Demand, float]) -> tuple[Outlook, ...]:
    nodes = Counter(packer.fleet.classes[number] for number in packer.fleet.node_class)
    return look_ahead(nodes, mix, packer.there())


def _joined(mix: Mapping[Demand, float], since: Mapping[Demand, int]) -> dict[Demand, float]:
    joined = {demand: TRUST * weight for demand, weight in mix.items()}
    for demand, count in since.items():
        joined[demand] = joined.get(demand, 0.0) + count
    return _normal(joined)


def _normal(mix: Mapping[Demand, float]) -> dict[Demand, float]:
    total = sum(mix.values())
    return {demand: weight / total for demand, weight in mix.items()}

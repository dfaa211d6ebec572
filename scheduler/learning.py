"""What to expect: the mix of demands, learned from the jobs that came, and where a plan for it puts them.

What came is told in periods. Where it changed is where two sources explain it best beside one: what came before then is
a Dirichlet prior of what came since, worth as many jobs as makes that most likely, and at most as many as it had. At
that most nothing has changed, and both are simply counted together.

A mix changes in how many large and small jobs there are sooner than in what the large ones are like. So the prior is of
two levels, *groups* of alike width and the demands within each, with a worth of its own at each: a few hundred jobs
tell the groups apart, and a rare demand is expected as often among its group as it ever was.
"""
# scipy ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from scheduler.booking import look_ahead
from scheduler.classes import demands_of
from scheduler.demand import Demand, Outlook
from scheduler.packing import Packer
from scheduler.problem import Problem

Vector = NDArray[np.float64]

SURE = math.log(1000.0)
"""Two sources must explain what came so much better than one, as the logarithm of a ratio of likelihoods."""

UNSEEN = 0.5
"""Times that a demand which never came before counts as having come."""

HALVINGS = 20
"""The past is worth all of its jobs, or half of them, and so on, so often. Each time must explain what came e times
better: what is rare is not forgotten because it did not come again at once.
"""


def outlook_of_past(problem: Problem, periods: Sequence[Sequence[int]]) -> tuple[Outlook, ...]:
    """What to expect on the problem's nodes beside what runs there, after jobs that came in the past.

    The problem's jobs are what came, each a number of times: `periods[p][i]` in period p, the oldest first.
    """
    packer = Packer(Problem(nodes=problem.nodes, jobs=(), running=problem.running))
    return outlook_beside(packer, expected_mix(_counts(problem, periods)))


def outlook_beside(packer: Packer, mix: Mapping[Demand, float]) -> tuple[Outlook, ...]:
    """What to expect of a mix that comes after what is on the packer's fleet."""
    nodes = Counter(packer.fleet.classes[number] for number in packer.fleet.node_class)
    return look_ahead(nodes, mix, packer.there())


def expected_mix(periods: Sequence[Mapping[Demand, float]]) -> dict[Demand, float]:
    """Demands by frequency, as they are expected after what came in periods, the oldest first; empty after nothing."""
    demands = sorted({demand for period in periods for demand, count in period.items() if count})
    if not demands:
        return {}
    came = np.array([[float(period.get(demand, 0.0)) for demand in demands] for period in periods])
    surest, mix = SURE, came.sum(axis=0)
    for begin in range(1, len(periods)):
        before, since = came[:begin].sum(axis=0), came[begin:].sum(axis=0)
        if before.any() and since.any():
            evidence, changed = _since_a_change(_groups(demands), before, since)
            if evidence > surest:
                surest, mix = evidence, changed
    return dict(zip(demands, (mix / mix.sum()).tolist(), strict=True))


def variation(mix: Mapping[Demand, float], other: Mapping[Demand, float]) -> float:
    """Half the sum of the differences between two mixes, each times the devices of a member, at least 1."""
    demands = set(mix) | set(other)
    return sum(max(1.0, demand.size) * abs(mix.get(demand, 0.0) - other.get(demand, 0.0)) for demand in demands) / 2


def _since_a_change(groups: NDArray[np.int64], before: Vector, since: Vector) -> tuple[float, Vector]:
    """How much surer it is that the source changed in between, and the mix after that. `groups[t]` is t's group."""
    prior = np.where((before == 0) & (since > 0), UNSEEN, before)
    sums = np.eye(int(groups.max()) + 1)[groups]
    evidence, by_group = _learned(prior @ sums, since @ sums)
    mix = np.zeros(len(prior))
    for group, part in enumerate(by_group):
        within = groups == group
        surer, inside = _learned(prior[within], since[within])
        evidence += surer
        mix[within] = part * inside
    return evidence, mix


def _learned(prior: Vector, since: Vector) -> tuple[float, Vector]:
    """The frequencies after counts `since`, with counts `prior` before at their likeliest worth, and by how much (the
    logarithm) that is likelier than all of them. There is a prior for all that came.
    """
    known, came = float(prior.sum()), float(since.sum())
    worths = known / 2.0 ** np.arange(HALVINGS)
    seen = since > 0
    alphas = np.outer(worths, prior[seen] / known)
    likelihoods: Vector = (
        gammaln(worths) - gammaln(worths + came) + (gammaln(alphas + since[seen]) - gammaln(alphas)).sum(axis=1)
    ) - np.arange(HALVINGS)
    best = int(likelihoods.argmax())
    mix = worths[best] * prior / known + since
    return float(likelihoods[best] - likelihoods[0]), mix / mix.sum()


def _groups(demands: Sequence[Demand]) -> NDArray[np.int64]:
    """The number of each demand's group: those of as many whole devices, those of a share, those of none."""
    widths = [(demand.devices, demand.shared) for demand in demands]
    known = sorted(set(widths))
    return np.array([known.index(width) for width in widths], dtype=np.int64)


def _counts(problem: Problem, periods: Sequence[Sequence[int]]) -> list[Counter[Demand]]:
    asked = [next(iter(demands_of(job.shapes))) for job in problem.jobs]
    counts: list[Counter[Demand]] = [Counter() for _ in periods]
    for came, times in zip(counts, periods, strict=True):
        for (members, demand), number in zip(asked, times, strict=True):
            if number:
                came[demand] += members * number
    return counts

"""How fast kinds of devices are beside each other, learned from works that ran on several of them.

The logarithm of a run's time is what the work takes less how fast the kind is, plus how far the two go together, which
is different for every work. Fitted by least squares with a prior that takes all kinds for equally fast.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

WORK_SIGMA = 0.5
"""How far the logarithm of a work's time on a kind is from what its kind and the work say. The ratio of two kinds is
off by 1.4 times that, 0.71; measured were 0.57 and 0.73 (`bench.runtimes.kinds`)."""

SPEED_SIGMA = 0.5
"""Spread of the logarithms of the kinds' speeds before anything is known of them. Together the two give 1.0 for a ratio
of two unknown kinds; measured were 0.55 and 1.15 (`bench.runtimes.kinds`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast a kind is: the logarithm of its speed beside the mean kind, and how many works say so."""

    log: float = 0.0
    works: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """What is known of the kinds. One that is not there counts as a mean one."""

    by_kind: Mapping[str, Speed] = field(default_factory=dict[str, Speed])

    def factor(self, kind: str, other: str) -> float:
        """How many times as fast work runs on `kind` as on `other`; 1 without a kind."""
        if not kind or not other:
            return 1.0
        return math.exp(self._of(kind).log - self._of(other).log)

    def sigma(self, kind: str, other: str) -> float:
        """Standard deviation of the logarithm of that factor for one work."""
        return math.sqrt(2 * WORK_SIGMA**2 + _variance(self._of(kind)) + _variance(self._of(other)))

    def among(self, kind: str, kinds: Sequence[str]) -> float:
        """How many times as fast work runs on `kind` as in the geometric mean on `kinds`; 1 if there are none."""
        return math.prod(self.factor(kind, other) ** (1 / len(kinds)) for other in kinds)

    def _of(self, kind: str) -> Speed:
        return self.by_kind.get(kind, Speed())


def fit_speeds(works: Sequence[Mapping[str, float]]) -> Speeds:
    """The speeds that these works show, each with its time on every kind on which it ran, in s.

    One that ran on a single kind says nothing of the kinds.
    """
    several = [work for work in works if len(work) > 1]
    kinds = sorted({kind for work in several for kind in work})
    normal = np.eye(len(kinds)) / SPEED_SIGMA**2
    right = np.zeros(len(kinds))
    for work in several:
        places = [kinds.index(kind) for kind in work]
        logs = np.log(np.array(list(work.values())))
        normal[np.ix_(places, places)] += (np.eye(len(places)) - 1 / len(places)) / WORK_SIGMA**2
        right[places] += (logs.mean() - logs) / WORK_SIGMA**2
    logs = np.linalg.solve(normal, right)
    return Speeds(
        by_kind={
            kind: Speed(log=float(log), works=sum(kind in work for work in several))
            for kind, log in zip(kinds, logs, strict=True)
        }
    )


def _variance(speed: Speed) -> float:
    """Of the logarithm of a kind's speed, as if each of its works had told it alone."""
    return 1 / (1 / SPEED_SIGMA**2 + speed.works / (2 * WORK_SIGMA**2))

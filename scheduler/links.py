"""How long a node takes to fetch something: a wait, and then so many bytes a second. Learned of each node and source.

Speeds and waits are log-normal. What is believed of a node's link is what it did, weighed against what all nodes did
from the same source, and that against a prior; by medians, so that one fetch that met a busy disk changes little.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

LEAST_BYTES = 1 << 20
"""What is smaller says nothing of a speed: it fits into what is on its way already."""

SHORTEST_WAIT_S = 1e-3

SCATTER = 0.3
"""How far one fetch is from the next over the same link, as the standard deviation of the logarithm [assumed]; counts
like two fetches."""

BETWEEN_NODES = 0.5
"""How far nodes are from each other that fetch from the same source, alike [assumed]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """One fetch: `wait_s` until the first of `size_bytes`, then `transfer_s` until the last."""

    size_bytes: int
    wait_s: float
    transfer_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What the next fetch is expected to be like. `spread` is the standard deviation of the logarithm of its speed;
    `fetches` is how many of the node's own told it.
    """

    wait_s: float
    bytes_per_s: float
    spread: float
    fetches: int = 0

    def seconds(self, size_bytes: int) -> float:
        """How long so much takes, in s."""
        return self.wait_s + size_bytes / self.bytes_per_s


UNKNOWN = Link(wait_s=0.1, bytes_per_s=50e6, spread=1.0)
"""Before anything was fetched: half a gigabit a second, within a factor of e [assumed]."""


def fit_links(fetches: Mapping[str, Sequence[Fetch]]) -> dict[str, Link]:
    """The link of each node to one source, by node, from what each fetched there; of nodes that are not told of it is
    that of the name ''.
    """
    usual = _fit([fetch for told in fetches.values() for fetch in told], UNKNOWN)
    usual = Link(
        wait_s=usual.wait_s, bytes_per_s=usual.bytes_per_s, spread=math.hypot(usual.spread, BETWEEN_NODES), fetches=0
    )
    return {node: _fit(told, usual) for node, told in fetches.items()} | {"": usual}


def _fit(fetches: Sequence[Fetch], prior: Link) -> Link:
    speeds = [
        math.log(fetch.size_bytes / max(fetch.transfer_s, SHORTEST_WAIT_S))
        for fetch in fetches
        if fetch.size_bytes >= LEAST_BYTES
    ]
    waits = [math.log(max(fetch.wait_s, SHORTEST_WAIT_S)) for fetch in fetches]
    speed, spread = _believe(speeds, math.log(prior.bytes_per_s), prior.spread)
    wait, _ = _believe(waits, math.log(prior.wait_s), prior.spread)
    return Link(wait_s=math.exp(wait), bytes_per_s=math.exp(speed), spread=spread, fetches=len(fetches))


def _believe(seen: Sequence[float], prior: float, spread: float) -> tuple[float, float]:
    """The median of what was seen, weighed against a prior that is off by `spread`; and how far the next may be off."""
    if not seen:
        return prior, spread
    middle = median(seen)
    own = 1.4826 * median(abs(one - middle) for one in seen)  # of a normal distribution, its standard deviation
    scatter2 = (2 * SCATTER**2 + len(seen) * own**2) / (2 + len(seen))
    precision = len(seen) / scatter2
    weight = precision / (precision + 1 / spread**2)
    return weight * middle + (1 - weight) * prior, math.sqrt(scatter2 + 1 / (precision + 1 / spread**2))

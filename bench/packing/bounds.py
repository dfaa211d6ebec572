"""The free bound of a sequence: no packing of what has arrived draws less, wherever everything is."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bench.packing.measure import LOADS
from bench.packing.trace import Ints
from scheduler.classes import class_of, count_demands
from scheduler.fluid import least_power
from scheduler.problem import Job, Node


def bounds(nodes: Sequence[Node], jobs: Sequence[Job], asked: Ints, capacity_milli: int) -> dict[str, float]:
    """`kw@L`: the bound for all arrivals up to load L, in kW, and `unplaced@L`, GPUs that even it cannot place."""
    load = np.cumsum(asked) / capacity_milli * 100
    classes = Counter(class_of(node) for node in nodes)
    idle_w = sum(node.power.base_w for node in nodes)
    found: dict[str, float] = {}
    for level in LOADS:
        demands = count_demands(jobs[: int(np.searchsorted(load, level, side="right"))])
        fluid = least_power(classes, demands)
        found[f"kw@{level}"] = (fluid.bound_w + idle_w) / 1e3
        sizes = np.array([demand.size for demand in demands])
        found[f"unplaced@{level}"] = float(fluid.unplaced @ sizes)
    return found

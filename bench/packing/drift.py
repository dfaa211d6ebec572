"""Arrivals that change on the way: the first half of one list, followed by another."""

import numpy as np

from bench.packing.trace import Ints, PodList, PodType, asked_milli, sequence


def joined(first: PodList, second: PodList) -> PodList:
    """Both lists as one, for whoever counts types; `followed` gives the arrivals."""
    types: dict[PodType, int] = {pod: number for number, pod in enumerate(first.types)}
    numbers = [types.setdefault(pod, len(types)) for pod in second.types]
    return PodList(
        name=f"{first.name}-then-{second.name.split('_')[-1]}",
        types=tuple(types),
        pod_type=np.concatenate([first.pod_type, np.array(numbers)[second.pod_type]]),
    )


def followed(both: PodList, first: PodList, second: PodList, capacity_milli: int, seed: int) -> Ints:
    """The first list's sequence up to half of the capacity, and the second's from there on."""
    types = {pod: number for number, pod in enumerate(both.types)}
    begun = sequence(first, capacity_milli, seed)
    half = int(np.searchsorted(np.cumsum(asked_milli(first, begun)), capacity_milli / 2))
    rest = np.array([types[pod] for pod in second.types])[sequence(second, capacity_milli, seed)]
    left = np.cumsum(asked_milli(both, rest)) <= 1.3 * capacity_milli - asked_milli(first, begun[:half]).sum()
    return np.concatenate([begun[:half], rest[left]])

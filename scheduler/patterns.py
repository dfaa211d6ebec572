"""What one node can hold: the patterns that are worth most at given prices of its members.

A dynamic program over the devices and cores of one node class, with shares of one device packed by another one. Cores
are counted in units of a few hundredths of a node, needs rounded up, so that every pattern fits; memory, which seldom
runs out first, is checked afterwards.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from scheduler.demand import WHOLE_DEVICE, Demand, NodeClass

Vector = NDArray[np.float64]
Ints = NDArray[np.int64]

CORE_UNIT, MOST_UNITS = 250, 256
"""Thousandths of a core that a unit is a power-of-two multiple of, and how many units a node has at most."""

FINEST_SHARE = 10
"""Shares are counted in thousandths of this at least, rounded up."""

NOTHING_W = 1e-6

REST, HOST_REST = -1, -1


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Pattern:
    """What is on one node of class `node` (a number): members that hold no device or whole ones, as (demand, members),
    and for each shared device the demands on it. `watts` above an empty node.
    """

    node: int
    members: tuple[tuple[int, int], ...]
    shared: tuple[tuple[int, ...], ...]
    watts: float

    @property
    def counts(self) -> Counter[int]:
        """Members of each demand."""
        total = Counter(dict(self.members))
        for device in self.shared:
            total.update(device)
        return total


def pattern_of(
    number: int, node: NodeClass, demands: Sequence[Demand], members: Mapping[int, int], shared: Sequence[Sequence[int]]
) -> Pattern:
    """The pattern of these members and shared devices on a node of a class, with its draw."""
    millicores = sum(demands[t].millicores * count for t, count in members.items())
    watts = sum(
        demands[t].watts(node.kind) * demands[t].devices * count
        for t, count in members.items()
        if count and demands[t].devices
    )
    for device in shared:
        millicores += sum(demands[t].millicores for t in device)
        watts += max(demands[t].watts(node.kind) for t in device)
    watts += node.socket_w * node.awake(node.millicores - millicores)
    return Pattern(
        node=number,
        members=tuple(sorted((t, count) for t, count in members.items() if count)),
        shared=tuple(sorted(tuple(sorted(device)) for device in shared)),
        watts=watts,
    )


class Pricer:
    """Finds the best patterns of one class. `demands` are all demands of the plan, by number."""

    def __init__(self, number: int, node: NodeClass, demands: Sequence[Demand]) -> None:
        self.number, self.node, self.demands = number, node, demands
        unit = CORE_UNIT
        while node.millicores > unit * MOST_UNITS:
            unit *= 2
        self.unit = unit
        self.units = node.millicores // unit
        able = [t for t, demand in enumerate(demands) if demand.fits_empty(node)]
        self.hosts = [t for t in able if not demands[t].devices]
        self.shares = [t for t in able if demands[t].shared]
        self.wholes = [t for t in able if demands[t].devices and not demands[t].shared]
        self.cores: Ints = np.array([-(-demand.millicores // unit) for demand in demands], dtype=np.int64)
        self.part = max(FINEST_SHARE, gcd(WHOLE_DEVICE, *(demands[t].share for t in self.shares)))
        self.sizes: Ints = np.array([-(-demand.share // self.part) for demand in demands], dtype=np.int64)

    def best(self, worth: Vector) -> tuple[float, list[Pattern]]:
        """The patterns worth most, one for each number of sockets awake, and what the best is worth beyond its draw."""
        hosts, host_choice = self._fill_host(worth)
        cut, cut_choice = self._cut_device(worth)
        steps = np.flatnonzero(np.diff(cut, prepend=0.0) > NOTHING_W)
        watts = np.array([self.demands[t].watts(self.node.kind) * self.demands[t].devices for t in self.wholes])
        item_cores = np.concatenate([[0], steps, self.cores[self.wholes]]).astype(np.int64)
        item_worth = np.concatenate([[0.0], cut[steps], worth[self.wholes] - watts])
        item_devices = np.concatenate([np.ones(1 + len(steps)), [self.demands[t].devices for t in self.wholes]]).astype(
            np.int64
        )
        width = self.units + 1
        table = np.full((self.node.devices + 1, 2 * width), -np.inf)
        table[0, width:] = hosts
        choice = np.zeros((self.node.devices + 1, width), dtype=np.int64)
        where = width + np.arange(width)[None, :] - item_cores[:, None]
        for devices in range(1, self.node.devices + 1):
            before = devices - item_devices
            found = np.where(before[:, None] >= 0, table[np.maximum(before, 0)[:, None], where], -np.inf)
            found += item_worth[:, None]
            choice[devices] = found.argmax(axis=0)
            table[devices, width:] = found.max(axis=0)
        values = table[self.node.devices, width:]
        patterns: list[Pattern] = []
        most = 0.0
        for sockets, cores in self._limits():
            gain = float(values[cores]) - self.node.socket_w * sockets
            most = max(most, gain)
            if gain > NOTHING_W:
                patterns.append(
                    self._trace(cores, worth, steps, item_devices, item_cores, choice, cut_choice, host_choice)
                )
        return most, patterns

    def _limits(self) -> list[tuple[int, int]]:
        """Sockets awake, and the units of cores that they serve."""
        width = self.node.socket_millicores
        if not width:
            return [(0, self.units)]
        sockets = -(-self.node.millicores // width)
        return [(number, min(number * width, self.node.millicores) // self.unit) for number in range(sockets + 1)]

    def _fill_host(self, worth: Vector) -> tuple[Vector, Ints]:
        """The best members without devices, for each number of units, and the last one chosen of each."""
        values = np.zeros(self.units + 1)
        choice = np.full(self.units + 1, HOST_REST, dtype=np.int64)
        items = [(int(self.cores[t]), float(worth[t]), t) for t in self.hosts if worth[t] > NOTHING_W and self.cores[t]]
        for units in range(1, self.units + 1):
            values[units] = values[units - 1]
            for cores, gain, t in items:
                if cores <= units and values[units - cores] + gain > values[units]:
                    values[units], choice[units] = values[units - cores] + gain, t
        return values, choice

    def _cut_device(self, worth: Vector) -> tuple[Vector, Ints]:
        """The best shares of one device less its draw, for each number of units; and the choices, by share used."""
        width = self.units + 1
        items = [t for t in self.shares if worth[t] > NOTHING_W]
        parts = WHOLE_DEVICE // self.part
        table = np.zeros((parts + 1, 2 * width))
        table[:, :width] = -np.inf
        choice = np.full((parts + 1, width), REST, dtype=np.int64)
        if not items or not self.node.devices:
            return np.zeros(width), choice
        sizes, gains, numbers = self.sizes[items], worth[items], np.array(items)
        where = width + np.arange(width)[None, :] - self.cores[items][:, None]
        for part in range(1, parts + 1):
            able = sizes <= part
            table[part, width:] = table[part - 1, width:]
            if able.any():
                found = table[(part - sizes[able])[:, None], where[able]] + gains[able][:, None]
                best = found.argmax(axis=0)
                values = found[best, np.arange(width)]
                better = values > table[part, width:] + NOTHING_W
                table[part, width:][better] = values[better]
                choice[part][better] = numbers[able][best][better]
        watts = max(self.demands[t].watts(self.node.kind) for t in items)
        return np.maximum(table[parts, width:] - watts, 0.0), choice

    def _trace(
        self,
        units: int,
        worth: Vector,
        steps: Ints,
        item_devices: Ints,
        item_cores: Ints,
        choice: Ints,
        cut_choice: Ints,
        host_choice: Ints,
    ) -> Pattern:
        members: Counter[int] = Counter()
        shared: list[list[int]] = []
        devices = self.node.devices
        while devices:
            item = int(choice[devices, units])
            if 0 < item <= len(steps):
                shared.append(self._trace_device(int(steps[item - 1]), cut_choice))
            elif item:
                members[self.wholes[item - 1 - len(steps)]] += 1
            devices -= int(item_devices[item])
            units -= int(item_cores[item])
        while units > 0:
            t = int(host_choice[units])
            if t == HOST_REST:
                units -= 1
            else:
                members[t] += 1
                units -= int(self.cores[t])
        self._fit_memory(members, shared, worth)
        return pattern_of(self.number, self.node, self.demands, members, [device for device in shared if device])

    def _trace_device(self, units: int, choice: Ints) -> list[int]:
        found: list[int] = []
        part = WHOLE_DEVICE // self.part
        while part > 0:
            t = int(choice[part, units])
            if t == REST:
                part -= 1
            else:
                found.append(t)
                part -= int(self.sizes[t])
                units -= int(self.cores[t])
        return found

    def _fit_memory(self, members: Counter[int], shared: list[list[int]], worth: Vector) -> None:
        """Drops members, those worth least for their memory first, until the rest fits."""
        total = sum(self.demands[t].memory_bytes * count for t, count in members.items())
        total += sum(self.demands[t].memory_bytes for device in shared for t in device)
        while total > self.node.memory_bytes:
            held = sorted({*(t for t, count in members.items() if count), *(t for device in shared for t in device)})
            worst = min(held, key=lambda t: worth[t] / max(1, self.demands[t].memory_bytes))
            total -= self.demands[worst].memory_bytes
            if members[worst]:
                members[worst] -= 1
            else:
                next(device for device in shared if worst in device).remove(worst)

"""Least power of a mix of jobs on classes of alike nodes, were jobs divisible: a bound, prices, and where each goes.

A linear program over classes and demands instead of nodes and jobs, so that its size does not grow with the cluster.
Shares of one device must be cut from devices: columns are *patterns*, the ways in which shares fill one device, and
they are generated as they are needed. CPU sockets are counted by the convex envelope of what a node's sockets hold.

Every row holds for every packing of whole jobs onto nodes, so the optimum is a lower bound of what any packing draws.
It is read off the dual values, with what patterns not yet generated could add, and stays a bound if the search for
patterns is cut short.
"""
# scipy ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_array

from scheduler.demand import WHOLE_DEVICE, Demand, NodeClass

Vector = NDArray[np.float64]

Pattern = tuple[int, tuple[int, ...]]
"""A class and how many shares of each size one of its devices is cut into."""

MAX_ROUNDS = 60
"""Rounds of generating patterns. Some ten are needed; a bound holds after any number."""

WORTHWHILE_W = 1e-6
"""A pattern that would save less than this per device is not worth another round."""

UNPLACED_W = 20_000.0
"""Price of a device that is asked for and not placed, in W: far above what any device draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fluid:
    """The optimum. `bound_w` is a proven lower bound of what any packing draws above idle, in W, each device that it
    leaves unplaced counted with `UNPLACED_W`.

    `split[t, c]` is how many of demand t go to class c, `unplaced[t]` how many nowhere.
    """

    bound_w: float
    split: Vector
    unplaced: Vector


def least_power(nodes: Mapping[NodeClass, int], wanted: Mapping[Demand, float]) -> Fluid:
    """The fluid optimum of so many members of each demand on so many nodes of each class."""
    model = Model(list(nodes), list(nodes.values()), list(wanted), np.array(list(wanted.values()), dtype=np.float64))
    solution = model.solve()
    best = model.bound(solution)
    for _ in range(MAX_ROUNDS):
        if not model.add_patterns(solution):
            break
        solution = model.solve()
        best = max(best, model.bound(solution))
    return Fluid(bound_w=best, split=model.split(solution.x), unplaced=model.unplaced(solution.x))


class Model:
    """Rows and columns of the linear program. Columns: placements, unplaced jobs, sockets, patterns."""

    def __init__(
        self, classes: Sequence[NodeClass], nodes: Sequence[int], demands: Sequence[Demand], counts: Vector
    ) -> None:
        self.classes, self.nodes, self.demands = classes, nodes, demands
        self.shares = sorted({demand.share for demand in demands if demand.shared})
        self.unit = math.gcd(WHOLE_DEVICE, *self.shares)
        self.entries: list[tuple[int, int, float]] = []
        self.cost: list[float] = []
        self.upper: list[float] = []
        self.row_of: dict[tuple[str, int, int], int] = {}
        self.least: list[float] = []  # right-hand sides: row <= value; the first rows are equalities
        for number, count in enumerate(counts):
            self._row("demand", number, 0, count)
        for number, (node, there) in enumerate(zip(classes, nodes, strict=True)):
            self._row("cores", number, 0, 0.0 if node.socket_millicores else there * node.millicores / 1000)
            self._row("memory", number, 0, there * node.memory_bytes / 2**30)
            self._row("devices", number, 0, there * node.devices)
            self._row("awake", number, 0, 0.0)
            for share in self.shares:
                self._row("share", number, share, 0.0)
        self.places = {
            (t, c): self._place(t, c)
            for t, demand in enumerate(demands)
            for c, node in enumerate(classes)
            if demand.fits_empty(node)
        }
        self.missing = [
            self._column(UNPLACED_W * max(1.0, d.size), {("demand", t, 0): 1.0}) for t, d in enumerate(demands)
        ]
        for number, node in enumerate(classes):
            self._sockets(number, node)
        self.known: set[Pattern] = set()
        for number in range(len(classes)):
            for index, share in enumerate(self.shares):
                pattern = [0] * len(self.shares)
                pattern[index] = WHOLE_DEVICE // share
                self._pattern(number, tuple(pattern))

    def solve(self) -> Any:
        matrix = self.matrix()
        equalities = len(self.demands)
        least = np.array(self.least)
        return linprog(
            self.cost,
            A_eq=matrix[:equalities],
            b_eq=least[:equalities],
            A_ub=matrix[equalities:],
            b_ub=least[equalities:],
            bounds=np.column_stack([np.zeros(len(self.upper)), self.upper]),
            method="highs-ds",
        )

    def bound(self, solution: Any) -> float:
        """Dual objective, less what patterns that are not there yet could save on each device."""
        prices = np.concatenate([solution.eqlin.marginals, solution.ineqlin.marginals])
        total = float(prices @ np.array(self.least)) + float(
            np.minimum(solution.upper.marginals, 0.0) @ np.where(np.isfinite(self.upper), self.upper, 0.0)
        )
        for number, node in enumerate(self.classes):
            total -= self.nodes[number] * node.devices * self._best_pattern(number, prices)[0]
        return total

    def add_patterns(self, solution: Any) -> bool:
        """Adds the pattern of each class that would save most; False when none would."""
        prices = np.concatenate([solution.eqlin.marginals, solution.ineqlin.marginals])
        added = False
        for number in range(len(self.classes)):
            saves, pattern = self._best_pattern(number, prices)
            if saves > WORTHWHILE_W and (number, pattern) not in self.known:
                self._pattern(number, pattern)
                added = True
        return added

    def split(self, values: Vector) -> Vector:
        """How many of each demand go to each class in a solution."""
        split = np.zeros((len(self.demands), len(self.classes)))
        for (t, c), column in self.places.items():
            split[t, c] = values[column]
        return split

    def unplaced(self, values: Vector) -> Vector:
        """How many of each demand go nowhere in a solution."""
        return np.array([values[column] for column in self.missing])

    def leave_spare(self, share: float) -> None:
        """Leaves this share of the cores of every class free."""
        for number, node in enumerate(self.classes):
            self._row("spare", number, 0, (1 - share) * self.nodes[number] * node.millicores / 1000)
            row = self.row_of["spare", number, 0]
            self.entries += [
                (row, self.places[t, number], demand.millicores / 1000)
                for t, demand in enumerate(self.demands)
                if (t, number) in self.places
            ]

    def adopt(self, patterns: Iterable[Pattern]) -> None:
        """Adds the patterns that it does not have yet."""
        for number, pattern in sorted(set(patterns) - self.known):
            self._pattern(number, pattern)

    def matrix(self) -> Any:
        """The rows: the first, one a demand, are equalities, the others upper bounds."""
        rows, columns, values = (np.array(part) for part in zip(*self.entries, strict=True))
        return coo_array((values, (rows, columns)), shape=(len(self.least), len(self.cost))).tocsr()

    def _row(self, name: str, number: int, share: int, least: float) -> None:
        self.row_of[name, number, share] = len(self.least)
        self.least.append(least)

    def _column(self, cost: float, values: Mapping[tuple[str, int, int], float], upper: float = math.inf) -> int:
        column = len(self.cost)
        self.cost.append(cost)
        self.upper.append(upper)
        self.entries += [(self.row_of[row], column, value) for row, value in values.items() if value]
        return column

    def _place(self, t: int, c: int) -> int:
        demand, node = self.demands[t], self.classes[c]
        values = {("demand", t, 0): 1.0, ("cores", c, 0): demand.millicores / 1000}
        values["memory", c, 0] = demand.memory_bytes / 2**30
        cost = 0.0
        if demand.devices and not demand.shared:
            values["devices", c, 0] = float(demand.devices)
            values["awake", c, 0] = self._wakes(node) * demand.devices
            cost = demand.watts(node.kind) * demand.devices
        elif demand.shared:
            values["share", c, demand.share] = 1.0
        return self._column(cost, values)

    def _sockets(self, c: int, node: NodeClass) -> None:
        """Sockets that hold a full width of cores, and the last one of a node, which may be narrower."""
        if not node.socket_millicores:
            return
        full, rest = divmod(node.millicores, node.socket_millicores)
        for number, width in ((full, node.socket_millicores), (min(rest, 1), rest)):
            values = {("cores", c, 0): -width / 1000, ("awake", c, 0): -1.0}
            self._column(node.socket_w, values, self.nodes[c] * number)

    def _wakes(self, node: NodeClass) -> float:
        """Sockets that one device in use keeps awake at least: some core serves it, on one node for all its devices."""
        served = all(demand.millicores > 0 for demand in self.demands if demand.devices)
        return 1 / node.devices if served and node.socket_millicores and node.devices else 0.0

    def _shared_w(self, node: NodeClass) -> float:
        """What a shared device of the class adds at least when it is in use."""
        return min((d.watts(node.kind) for d in self.demands if d.shared and node.kind in d.kinds), default=0.0)

    def _pattern(self, c: int, pattern: tuple[int, ...]) -> None:
        node = self.classes[c]
        self.known.add((c, pattern))
        values = {("share", c, share): -float(n) for share, n in zip(self.shares, pattern, strict=True)}
        values["devices", c, 0] = 1.0
        values["awake", c, 0] = self._wakes(node)
        self._column(self._shared_w(node), values)

    def _best_pattern(self, c: int, prices: Vector) -> tuple[float, tuple[int, ...]]:
        """The pattern with the most to save on class c, and what it saves, in W; (0, ()) if none saves anything."""
        if not self.shares:
            return 0.0, ()
        node = self.classes[c]
        worth = np.array([-prices[self.row_of["share", c, share]] for share in self.shares])
        costs = (
            self._shared_w(node)
            - prices[self.row_of["devices", c, 0]]
            - self._wakes(node) * prices[self.row_of["awake", c, 0]]
        )
        sizes = np.array(self.shares) // self.unit
        width = WHOLE_DEVICE // self.unit
        most = np.zeros(width + 1)
        taken = np.full(width + 1, -1)
        for room in range(1, width + 1):
            most[room] = most[room - 1]
            able = sizes <= room
            if able.any():
                gains = np.where(able, worth + most[np.where(able, room - sizes, 0)], -math.inf)
                index = int(gains.argmax())
                if gains[index] > most[room]:
                    most[room], taken[room] = gains[index], index
        saves = float(most[width] - costs)
        if saves <= 0:
            return 0.0, ()
        pattern = [0] * len(self.shares)
        room = width
        while room > 0:
            if taken[room] < 0:
                room -= 1
            else:
                pattern[taken[room]] += 1
                room -= int(sizes[taken[room]])
        return saves, tuple(pattern)

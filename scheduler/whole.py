"""Plans whole nodes anew: which patterns on how many nodes of each class hold all members for the least power.

A linear program over patterns (`scheduler.patterns`), which are generated as prices ask for them, then rounded: what is
whole in it is fixed, then what is nearly whole, and the rest is planned again. Whatever is still left over in the end
is told, for the caller to place it one by one.
"""
# scipy ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from scheduler.demand import Demand, NodeClass
from scheduler.fluid import UNPLACED_W
from scheduler.patterns import Pattern, Pricer, Vector, pattern_of

ROUNDS = 60
"""Rounds of generating patterns for the whole plan, at most."""

ROUNDS_TO_KEEP = 12
"""The same for finding out which nodes are best left as they are."""

ROUNDS_AGAIN = 6
"""The same for what is left after fixing a part of it."""

NEAR_ENOUGH = 2e-4
"""Patterns are generated until the plan is this close to its own bound, relative to its draw."""

TRUST = 0.5
"""Weight of the best prices so far beside the newest, when patterns are looked for: they swing otherwise."""

NEARLY_WHOLE = 0.6
"""A pattern on this much of one more node, or the most of all, is given the whole of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeNodes:
    """Patterns with the number of nodes that get them, and members that found no place, by demand's number."""

    nodes: Counter[Pattern]
    left: Counter[int]


def plan_whole_nodes(
    classes: Sequence[NodeClass],
    counts: Sequence[int],
    demands: Sequence[Demand],
    wanted: Sequence[int],
    known: Iterable[Pattern],
) -> WholeNodes:
    """Patterns for up to `counts` nodes of the classes that hold the wanted members. `known` are patterns to begin
    with, such as those of the nodes as they are.
    """
    master = Master(classes, demands, known)
    left_nodes, left = np.array(counts), np.array(wanted)
    fixed: Counter[Pattern] = Counter()
    rounds = ROUNDS
    while left.any():
        levels = master.generate(left_nodes, left, rounds)
        chosen = _whole(levels) or _nearly_whole(levels)
        if not chosen:
            break
        for index, number in chosen:
            pattern = master.patterns[index]
            for _ in range(min(number, int(left_nodes[pattern.node]))):
                held = _trimmed(pattern, left, classes, demands)
                if held is None:
                    break
                fixed[held] += 1
                left_nodes[pattern.node] -= 1
                for t, count in held.counts.items():
                    left[t] -= count
        rounds = ROUNDS_AGAIN
    return WholeNodes(nodes=fixed, left=Counter({t: int(count) for t, count in enumerate(left) if count}))


def _whole(levels: Vector) -> list[tuple[int, int]]:
    return [(int(index), int(levels[index] + 1e-6)) for index in np.flatnonzero(levels >= 1 - 1e-6)]


def _nearly_whole(levels: Vector) -> list[tuple[int, int]]:
    most = float(levels.max(initial=0.0))
    if most < 1e-6:
        return []
    least = min(NEARLY_WHOLE, most)
    return [(int(index), 1) for index in np.argsort(-levels, kind="stable") if levels[index] >= least - 1e-9]


def _trimmed(pattern: Pattern, left: Any, classes: Sequence[NodeClass], demands: Sequence[Demand]) -> Pattern | None:
    """The pattern without members that nobody wants any more; None if nothing is left of it."""
    room = {t: int(left[t]) for t in pattern.counts}
    if all(count <= room[t] for t, count in pattern.counts.items()):
        return pattern
    members: dict[int, int] = {}
    shared: list[list[int]] = []
    for t, count in pattern.members:
        members[t] = min(count, room[t])
        room[t] -= members[t]
    for device in pattern.shared:
        kept: list[int] = []
        for t in device:
            if room[t]:
                room[t] -= 1
                kept.append(t)
        if kept:
            shared.append(kept)
    if not shared and not any(members.values()):
        return None
    return pattern_of(pattern.node, classes[pattern.node], demands, members, shared)


class Master:
    """The linear program over the patterns known so far, and what nodes may keep as they are at a discount."""

    def __init__(self, classes: Sequence[NodeClass], demands: Sequence[Demand], known: Iterable[Pattern]) -> None:
        self.classes, self.demands = classes, demands
        self.pricers = [Pricer(number, node, demands) for number, node in enumerate(classes)]
        self.patterns: list[Pattern] = []
        self._known: set[Pattern] = set()
        self._kept: list[tuple[Pattern, int, float]] = []
        self._entries: tuple[list[int], list[int], list[float]] = ([], [], [])
        for pattern in known:
            self._add(pattern)

    def keep(
        self, held: Mapping[Pattern, int], counts: Sequence[int], wanted: Sequence[int], price_w: float
    ) -> Counter[Pattern]:
        """How many nodes of each pattern to leave as they are, if moving a member costs so many watts. `held` are the
        patterns that nodes have now.
        """
        self._kept = [
            (pattern, number, pattern.watts - price_w * pattern.counts.total())
            for pattern, number in sorted(held.items())
            if pattern.watts
        ]
        self.generate(np.array(counts), np.array(wanted), ROUNDS_TO_KEEP)
        kept = Counter(
            {pattern: int(level + 1e-6) for (pattern, _, _), level in zip(self._kept, self._levels_kept, strict=True)}
        )
        self._kept = []
        return kept

    def generate(self, counts: Any, wanted: Any, rounds: int) -> Vector:
        """Solves, looks for better patterns, and solves again; how many nodes get each pattern."""
        best_bound, best_prices = -np.inf, np.zeros(len(self.demands))
        levels, prices, cost = self._solve(counts, wanted)
        trust = 0.0
        for _ in range(rounds):
            asked = trust * best_prices + (1 - trust) * prices
            bound, added = float(asked @ wanted), False
            for pricer in self.pricers:
                if counts[pricer.number]:
                    worth, patterns = pricer.best(asked)
                    bound -= worth * counts[pricer.number]
                    for pattern in patterns:
                        added |= self._add(pattern)
            if bound > best_bound:
                best_bound, best_prices = bound, asked
            if cost - best_bound <= NEAR_ENOUGH * cost or not (added or trust):
                break
            # Prices between the best and the newest may find nothing where the newest would.
            trust = TRUST if added else 0.0
            if added:
                levels, prices, cost = self._solve(counts, wanted)
        return levels

    def _solve(self, counts: Any, wanted: Any) -> tuple[Vector, Vector, float]:
        """Nodes of each pattern, the price of a member of each demand, and what the plan draws."""
        demands, patterns = len(self.demands), len(self.patterns)
        rows, columns, values = self._entries
        missing = np.arange(demands)
        kept_rows, kept_columns, kept_values = self._kept_entries(patterns + demands)
        matrix = coo_array(
            (
                np.concatenate([values, -np.ones(demands), kept_values]),
                (
                    np.concatenate([rows, missing, kept_rows]).astype(np.int64),
                    np.concatenate([columns, patterns + missing, kept_columns]).astype(np.int64),
                ),
            ),
            shape=(demands + len(self.classes), patterns + demands + len(self._kept)),
        ).tocsr()
        cost = [pattern.watts for pattern in self.patterns]
        cost += [UNPLACED_W * max(1.0, demand.size) for demand in self.demands]
        cost += [watts for _, _, watts in self._kept]
        most = [np.inf] * (patterns + demands) + [number for _, number, _ in self._kept]
        result: Any = linprog(
            cost,
            A_ub=matrix,
            b_ub=np.concatenate([-np.asarray(wanted, dtype=float), counts]),
            bounds=np.column_stack([np.zeros(len(most)), most]),
            method="highs",
        )
        self._levels_kept: list[float] = result.x[patterns + demands :].tolist()
        return result.x[:patterns], -result.ineqlin.marginals[:demands], float(result.fun)

    def _kept_entries(self, first: int) -> tuple[list[int], list[int], list[float]]:
        """The columns of what may be kept, the first of them with that number."""
        rows: list[int] = []
        columns: list[int] = []
        values: list[float] = []
        for column, (pattern, _, _) in enumerate(self._kept, start=first):
            _enter(pattern, column, len(self.demands), rows, columns, values)
        return rows, columns, values

    def _add(self, pattern: Pattern) -> bool:
        if pattern in self._known:
            return False
        _enter(pattern, len(self.patterns), len(self.demands), *self._entries)
        self.patterns.append(pattern)
        self._known.add(pattern)
        return True


def _enter(
    pattern: Pattern, column: int, demands: int, rows: list[int], columns: list[int], values: list[float]
) -> None:
    """Adds the entries of a pattern's column."""
    for t, count in pattern.counts.items():
        rows.append(t)
        columns.append(column)
        values.append(-float(count))
    rows.append(demands + pattern.node)
    columns.append(column)
    values.append(1.0)

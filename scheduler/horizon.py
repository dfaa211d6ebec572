"""When jobs that may wait start, so that their energy costs least and there is room for them then.

Each alone would wait for its own cheapest hour; where neither devices nor a power budget suffice for all of them there,
some would start late or in dear hours. So they are planned together, by classes of nodes and in slots of time:

1. A linear program over groups of alike jobs, classes and slots: `x` jobs of a group start on a class in a slot. It
   proves a bound (`scheduler.lp`).
2. Its whole parts, the rest filled in greedily where there is room, and improved job by job. Beside it what two
   simpler rules give, and the plan before. The cheapest is taken, and the plan before as long as none saves much more.

What starts now is then placed on nodes like any other job: the classes here count devices and watts, not nodes.
"""
# scipy ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array

from scheduler.ahead import Choice, Model, Start, Starts, Vector, own_best
from scheduler.cpsat import Effort, cheapest
from scheduler.lp import least
from scheduler.plan import Timetable
from scheduler.problem import Budget, Problem
from scheduler.turns import as_before, best, fill, improve, simply, timetable_of

KEEP = 0.005
"""The plan before is kept unless another saves more than this share of what it costs."""

MAX_GROUPS = 400
"""Groups in the linear program, those with the most at stake; the others are filled in."""

FEW = 6
"""Starts of each group among which an exact search looks, and those that the linear program uses. A choice: on random
queues of up to 300 jobs that are too many for their hours, twelve were no better and took longer."""

COLUMNS = 600
"""Among so many starts it looks in any case: few jobs are tried everywhere."""

NOTHING = 1e-6
"""A smaller part of a job is a rounding error."""

NO_ROOM: Start = (-1, -1)


def look_ahead(problem: Problem, budget: Budget) -> Timetable:
    """When the jobs start that may wait (`problem.ahead`), with a proven bound of what that costs at least."""
    model = Model(problem)
    if not model.groups:
        return timetable_of(model, {}, 0.0, kept=False)
    relaxed = _relaxed(model)
    before = as_before(model)
    starts = best(model, [_rounded(model, relaxed), *simply(model), *([before] if before else [])])
    if not _near(model.cost(starts), relaxed.bound):
        searched = _searched(model, relaxed, budget)
        starts = starts if searched is None else best(model, [starts, searched])
    kept = before is not None and _near(model.cost(before), model.cost(starts))
    return timetable_of(model, before if before is not None and kept else starts, relaxed.bound, kept=kept)


def _near(cost: float, other: float) -> bool:
    """Whether the difference is not worth another plan."""
    return cost - other <= KEEP * abs(other)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Relaxed:
    """The linear program and its answer. A column is a start: group, choice and slot by number, or none (-1, -1) for
    the jobs of a group that find no room in time. The rows are the slots of each limit, then two for each group.
    """

    columns: tuple[tuple[int, int, int], ...]
    costs: Vector
    rows: Any
    most: Vector
    upper: Vector
    bound: float
    values: Vector | None
    reduced: Vector


def _relaxed(model: Model) -> _Relaxed:
    ranked = sorted(range(len(model.groups)), key=lambda number: (-model.groups[number].stake, number))
    rest = sum(len(model.groups[number].jobs) * own_best(model.groups[number])[0] for number in ranked[MAX_GROUPS:])
    columns: list[tuple[int, int, int]] = []
    costs: list[float] = []
    upper: list[float] = []
    limits: list[float] = []
    entries: list[tuple[int, int, float]] = []
    for number in ranked[:MAX_GROUPS]:
        group = model.groups[number]
        row = model.free.size + len(limits)
        limits += [len(group.jobs), -len(group.jobs)]
        starts = [(choice, slot) for choice in range(len(group.choices)) for slot in range(group.slots)]
        for choice, slot in [*starts, NO_ROOM]:
            entries += [(row, len(columns), 1.0), (row + 1, len(columns), -1.0)]
            if choice >= 0:
                uses = _uses(model, group.choices[choice], slot)
                entries += [(place, len(columns), amount) for place, amount in uses]
            columns.append((number, choice, slot))
            costs.append(group.late if choice < 0 else float(group.choices[choice].costs[slot]))
            upper.append(len(group.jobs))
    shape = (model.free.size + len(limits), len(columns))
    numbers = np.array(entries).reshape(-1, 3)
    rows = coo_array((numbers[:, 2], (numbers[:, 0].astype(int), numbers[:, 1].astype(int))), shape=shape).tocsr()
    most = np.concatenate([model.free.ravel(), limits])
    bound, values, reduced = least(np.array(costs), rows, most, np.array(upper))
    return _Relaxed(
        columns=tuple(columns),
        costs=np.array(costs),
        rows=rows,
        most=most,
        upper=np.array(upper),
        bound=bound + rest,
        values=values,
        reduced=reduced,
    )


def _few_columns(relaxed: _Relaxed) -> list[int]:
    """The columns of each group that cost least by the prices of the bound, those in use, and the one for no room."""
    of: dict[int, list[int]] = {}
    for index, (number, _, _) in enumerate(relaxed.columns):
        of.setdefault(number, []).append(index)
    kept: list[int] = []
    for indices in of.values():
        near = sorted(indices, key=lambda index: (relaxed.reduced[index], index))[: max(FEW, COLUMNS // len(of))]
        used = [index for index in indices if relaxed.values is not None and relaxed.values[index] > NOTHING]
        kept += sorted({*near, *used, indices[-1]})
    return kept


def _searched(model: Model, relaxed: _Relaxed, budget: Budget) -> Starts | None:
    """The best plan of few columns that an exact search finds."""
    kept = _few_columns(relaxed)
    effort = Effort(deterministic_s=budget.deterministic_s, wall_s=budget.watchdog_s / 2, workers=1, seed=budget.seed)
    found = cheapest(relaxed.costs[kept], relaxed.rows[:, kept], relaxed.most, relaxed.upper[kept], effort)
    if found is None:
        return None
    return _as_told(model, {relaxed.columns[index]: count for index, count in zip(kept, found, strict=True)})


def _rounded(model: Model, relaxed: _Relaxed) -> Starts:
    """Whole jobs where the fractional plan has them."""
    values = [0.0] * len(relaxed.columns) if relaxed.values is None else map(float, relaxed.values)
    counts = {column: math.floor(value + NOTHING) for column, value in zip(relaxed.columns, values, strict=True)}
    return _as_told(model, counts)


def _uses(model: Model, choice: Choice, slot: int) -> Iterator[tuple[int, float]]:
    """What a start takes: (row of the limit in the slot, amount)."""
    covered = model.covered(choice.shape.run_s)[slot]
    for limit, amount in choice.takes:
        for place in np.flatnonzero(covered):
            yield limit * len(model.begins) + int(place), amount * float(covered[place])


def _as_told(model: Model, counts: Mapping[tuple[int, int, int], int]) -> Starts:
    """So many jobs of each group where they are told to start, the others wherever they cost least; then each tried
    elsewhere.
    """
    free = model.free.copy()
    given: dict[int, list[Start]] = {}
    for (number, choice, slot), count in counts.items():
        if choice >= 0 and count:
            given.setdefault(number, []).extend([(choice, slot)] * count)
            model.take(free, model.groups[number].choices[choice], slot, count)
    starts: Starts = {}
    for number, found in given.items():
        starts |= zip(model.groups[number].jobs, found, strict=False)
    fill(model, free, starts)
    improve(model, free, starts)
    return starts

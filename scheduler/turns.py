"""Jobs that may wait take their starts one after the other: what needs no solver of `scheduler.horizon`.

Loads fast: the API calls it in its own process.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scheduler.ahead import ROUNDING, Group, Model, Start, Starts, Vector, own_best
from scheduler.plan import Later, Timetable
from scheduler.problem import Problem

ROUNDS = 3
"""How often each job is tried elsewhere."""


def look_ahead_simply(problem: Problem) -> Timetable:
    """The same without a linear program, for when there must be an answer at once; the bound ignores that others take
    room.
    """
    model = Model(problem)
    before = as_before(model)
    starts = best(model, simply(model)) if before is None else before
    return timetable_of(model, starts, model.floor, kept=before is not None)


def of_now(problem: Problem, timetable: Timetable) -> Problem:
    """The problem of this moment: without the jobs that are to start later."""
    later = {one.job for one in timetable.later}
    return replace(problem, ahead=None, jobs=tuple(job for job in problem.jobs if job.id not in later))


def fill(model: Model, free: Vector, starts: Starts) -> None:
    """A start for each job that has none, wherever it costs least, those with the most at stake first."""
    for group in sorted(model.groups, key=lambda group: -group.stake / len(group.jobs)):
        for job in group.jobs:
            if job not in starts and (start := _cheapest(model, free, group)) is not None:
                starts[job] = start
                model.take(free, group.choices[start[0]], start[1])


def improve(model: Model, free: Vector, starts: Starts) -> None:
    """Each job where it costs least while the others stay, until none moves."""
    for _ in range(ROUNDS):
        moved = [job for job in starts if _moves(model, free, starts, job)]
        if not moved:
            return


def _moves(model: Model, free: Vector, starts: Starts, job: str) -> bool:
    group, before = model.group_of[job], starts[job]
    if model.cost_of(job, before) <= own_best(group)[0]:
        return False
    model.take(free, group.choices[before[0]], before[1], -1.0)
    start = _cheapest(model, free, group) or before
    better = model.cost_of(job, start) < model.cost_of(job, before) - ROUNDING * abs(model.cost_of(job, before))
    starts[job] = start if better else before
    model.take(free, group.choices[starts[job][0]], starts[job][1])
    return better


def _cheapest(model: Model, free: Vector, group: Group, first: int = 0, last: int | None = None) -> Start | None:
    """The cheapest start of a job of the group, from slot `first` to before `last`, that there is room for."""
    best: tuple[float, int, int] | None = None
    for number, choice in enumerate(group.choices):
        able = model.room(free, choice)[: group.slots]
        costs = np.where(able, choice.costs[: group.slots], math.inf)[first:last]
        if len(costs) and math.isfinite(costs.min()):
            slot = int(costs.argmin())
            best = min(best or (math.inf, 0, 0), (float(costs[slot]), first + slot, number))
    return None if best is None else (best[2], best[1])


def simply(model: Model) -> list[Starts]:
    """What two simple rules give: each job in line order where it costs least; and `_alone`."""
    starts: Starts = {}
    free = model.free.copy()
    for job, group in model.group_of.items():
        if (start := _cheapest(model, free, group)) is not None:
            starts[job] = start
            model.take(free, group.choices[start[0]], start[1])
    return [starts, _alone(model)]


def _alone(model: Model) -> Starts:
    """Each job when it would start alone, or as soon after that as there is room."""
    starts: Starts = {}
    free = model.free.copy()
    for job in sorted(model.group_of, key=lambda job: own_best(model.group_of[job])[1]):
        group = model.group_of[job]
        for slot in range(own_best(group)[1], group.slots):
            if (start := _cheapest(model, free, group, slot, slot + 1)) is not None:
                starts[job] = start
                model.take(free, group.choices[start[0]], start[1])
                break
    return starts


def as_before(model: Model) -> Starts | None:
    """The plan before as far as there is room for it, the other jobs wherever they cost least; None without one."""
    starts: Starts = {}
    free = model.free.copy()
    for job, before_s in model.before.items():
        if job in model.group_of:
            group = model.group_of[job]
            slot = min(group.slots - 1, model.slot_of(max(0.0, before_s)))
            if (start := _cheapest(model, free, group, slot, slot + 1)) is not None:
                starts[job] = start
                model.take(free, group.choices[start[0]], start[1])
    if not starts:
        return None
    fill(model, free, starts)
    return starts


def best(model: Model, plans: Sequence[Starts]) -> Starts:
    return min(plans, key=model.cost)


def _in_line(model: Model, starts: Starts) -> Starts:
    found: Starts = {}
    for group in model.groups:
        given = [starts[job] for job in group.jobs if job in starts]
        found |= zip(group.jobs, sorted(given, key=lambda start: start[1]), strict=False)
    return found


def timetable_of(model: Model, starts: Starts, bound: float, *, kept: bool) -> Timetable:
    """What is said of the starts. Of alike jobs the first in line starts first."""
    later: list[Later] = []
    for job, (number, slot) in _in_line(model, starts).items():
        if slot:
            group = model.group_of[job]
            choice = group.choices[number]
            own = own_best(group)[0]
            now, then = float(choice.costs[0]), model.energy_cost(choice, slot)
            later.append(
                Later(
                    job=job,
                    start_s=float(model.begins[slot]),
                    per_kwh=model.rate(choice, slot),
                    saving=(now - then) / abs(now) if now else 0.0,
                    full=model.cost_of(job, (number, slot)) > own + ROUNDING * abs(own),
                )
            )
    cost = model.cost(starts)
    return Timetable(
        later=tuple(sorted(later, key=lambda one: (one.start_s, one.job))),
        cost=cost,
        # Sums in another order differ in the last digits, which must not put the bound above a plan that reaches it.
        bound=min(bound, cost) if bound <= cost + ROUNDING * abs(cost) else bound,
        alone=model.cost(_alone(model)),
        kept=kept,
    )

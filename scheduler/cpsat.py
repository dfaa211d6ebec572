"""Exact packing of gangs onto nodes by CP-SAT, and small integer programs. Only this file and `scheduler.exact` import
ortools.

Two models over the same variables: `least_waiting` starts as much weight of one tier as possible, `least_charge` then
finds the cheapest plan among those. What holds for every plan: a job starts at most once, a gang's members sit on
distinct sites, no site holds more than it has, and of jobs that differ only in their place in line the first starts.

A search is bounded by deterministic time, the solver's own count of work, so that the same problem gives the same
answer. Wall-clock time only stops a search that went wrong, and the answer says so.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from scheduler.candidates import Candidates, Choice, Choices, Option, Site, device_limits, host_limits

Vector = NDArray[np.float64]

UNITS = 1_000_000_000
"""Whole numbers per the largest coefficient of the charge: joules are rounded down to this fraction of it, so that the
solver counts in integers and its bound stays a bound. Sums stay far below 2^63."""

COST_UNITS = 1_000_000
"""The same for `cheapest`, which proves no bound."""

ROUNDING = 1e-6
"""What is put down to rounding of a coefficient that is a whole number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Limits of one search: deterministic time, wall-clock watchdog (s), threads and seed."""

    deterministic_s: float
    wall_s: float
    workers: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a search found: the choices, if any; a lower bound of what it minimised; whether the choices reach it.

    `bound` is waiting (thousandths of W * devices) or charge (J). `stopped` tells that the watchdog ended the search.
    """

    choices: Choices | None
    bound: float
    optimal: bool
    deterministic_s: float
    wall_s: float
    stopped: bool


def least_waiting(
    pool: Candidates, tier: int, caps: Sequence[int], floor: int, hint: Choices, effort: Effort
) -> Answer:
    """Choices for the jobs of the first tiers up to `tier` that leave least of `tier` waiting.

    `caps` bounds the waiting of the tiers before it, `floor` is a proven lower bound for it.
    """
    packing = _Packing(pool, tier)
    for earlier, cap in enumerate(caps):
        packing.model.add(packing.waiting(earlier) <= cap)
    waiting = packing.waiting(tier)
    packing.model.add(waiting >= floor)
    packing.model.minimize(waiting)
    packing.hint(hint)
    answer = _search(packing, effort)
    return Answer(
        choices=answer.choices,
        bound=max(floor, answer.bound),
        optimal=answer.optimal,
        deterministic_s=answer.deterministic_s,
        wall_s=answer.wall_s,
        stopped=answer.stopped,
    )


def least_charge(pool: Candidates, caps: Sequence[int], hint: Choices | None, effort: Effort) -> Answer:
    """The cheapest choices whose tiers wait no more than `caps`, and a lower bound of the charge of all such."""
    packing = _Packing(pool, pool.tiers - 1)
    for tier, cap in enumerate(caps):
        packing.model.add(packing.waiting(tier) <= cap)
    terms = packing.ladders()
    waits_j = 0.0
    for index, candidate in enumerate(pool.line):
        waits_j += candidate.stake.wait_j
        for number, option in enumerate(candidate.options):
            terms.append((option.extra_j - candidate.stake.wait_j, packing.starts[index, number]))
    largest = max((abs(joules) for joules, _ in terms), default=0.0)
    unit = largest / UNITS if largest else 1.0
    packing.model.minimize(sum(int(joules // unit) * variable for joules, variable in terms))
    if hint is not None:
        packing.hint(hint)
    answer = _search(packing, effort)
    return Answer(
        choices=answer.choices,
        bound=waits_j + answer.bound * unit,
        optimal=answer.optimal,
        deterministic_s=answer.deterministic_s,
        wall_s=answer.wall_s,
        stopped=answer.stopped,
    )


class _Packing:
    """Variables and rows that every plan for the tiers up to `last` keeps to.

    `starts[i, o]`: job i starts with option o. `members[i, o, s]`: one of its members is on site s.
    """

    def __init__(self, pool: Candidates, last: int) -> None:
        self.pool = pool
        self.model = cp_model.CpModel()
        self.starts: dict[tuple[int, int], cp_model.IntVar] = {}
        self.members: dict[tuple[int, int, int], cp_model.IntVar] = {}
        self.users: dict[int, list[tuple[Option, cp_model.IntVar]]] = defaultdict(list)
        before: dict[int, list[cp_model.IntVar]] = {}
        for index, candidate in enumerate(pool.line):
            if candidate.tier > last:
                continue
            starts = [self._option(index, number, option) for number, option in enumerate(candidate.options)]
            self.model.add_at_most_one(starts)
            if candidate.twin in before:
                self.model.add(sum(starts) <= sum(before[candidate.twin]))
            before[candidate.twin] = starts
        for site, users in self.users.items():
            self._capacity(pool.sites[site], users)
        if pool.limits:
            self._budgets()

    def waiting(self, tier: int) -> cp_model.LinearExprT:
        """Waiting of a tier, in thousandths of W * devices."""
        total = 0
        terms: list[cp_model.LinearExprT] = []
        for index, candidate in enumerate(self.pool.line):
            if candidate.tier == tier:
                total += candidate.stake.weight
                terms += [-candidate.stake.weight * self.starts[index, o] for o in range(len(candidate.options))]
        return sum(terms) + total

    def ladders(self) -> list[tuple[float, cp_model.IntVar]]:
        """What keeping sites on costs: for each site and end, the price in J of staying on past it.

        A site that is on past an end is on past every earlier one.
        """
        prices: list[tuple[float, cp_model.IntVar]] = []
        for index, users in self.users.items():
            site = self.pool.sites[index]
            if not site.charged:
                continue
            before: cp_model.IntVar | None = None
            begins = site.end_s
            for end_s in sorted({option.end_s for option, _ in users if option.end_s > site.end_s}):
                past = self.model.new_bool_var("")
                prices.append((site.rate_w * (end_s - begins) + (site.boot_j if before is None else 0.0), past))
                if before is not None:
                    self.model.add_implication(past, before)
                before, begins = past, end_s
                longer = [(option, member) for option, member in users if option.end_s >= end_s]
                # One row for all members at once: a tighter linear relaxation than one implication for each.
                for needs, free in device_limits(site, [option for option, _ in longer]):
                    held = sum(need * member for need, (_, member) in zip(needs, longer, strict=True) if need)
                    self.model.add(held <= free * past)
        return prices

    def hint(self, choices: Choices) -> None:
        """Suggests choices as a place to start from."""
        for (index, number), start in self.starts.items():
            choice = choices.get(index)
            self.model.add_hint(start, choice is not None and choice.option == number)
        for (index, number, site), member in self.members.items():
            choice = choices.get(index)
            self.model.add_hint(member, choice is not None and choice.option == number and site in choice.sites)

    def chosen(self, solver: cp_model.CpSolver) -> dict[int, Choice]:
        """The choices of the solution that the solver holds."""
        return {
            index: Choice(
                option=number,
                sites=tuple(
                    site
                    for site in self.pool.line[index].options[number].sites
                    if solver.boolean_value(self.members[index, number, site])
                ),
            )
            for (index, number), start in self.starts.items()
            if solver.boolean_value(start)
        }

    def _option(self, index: int, number: int, option: Option) -> cp_model.IntVar:
        start = self.model.new_bool_var("")
        members = [self.model.new_bool_var("") for _ in option.sites]
        self.model.add(sum(members) == option.members * start)
        self.starts[index, number] = start
        for site, member in zip(option.sites, members, strict=True):
            self.members[index, number, site] = member
            self.users[site].append((option, member))
        return start

    def _budgets(self) -> None:
        """No group of sites draws more than its budget leaves (mW)."""
        adds = {index: self._adds(self.pool.sites[index], users) for index, users in self.users.items()}
        for limit in self.pool.limits:
            terms = [term for index, term in adds.items() if self.pool.sites[index].node.id in limit.nodes]
            if terms:
                self.model.add(sum(terms) <= limit.free)

    def _adds(self, site: Site, users: Sequence[tuple[Option, cp_model.IntVar]]) -> cp_model.LinearExprT:
        """What a site draws more than now, in mW, or an upper bound of it."""
        active = sum(option.active_mw * member for option, member in users)
        if site.draw.least <= site.draw.on == site.draw.now:
            return active
        adds = self.model.new_int_var(0, site.draw.adds(sum(option.active_mw for option, _ in users)), "")
        used = self.model.new_bool_var("")
        for _, member in users:
            self.model.add_implication(member, used)
        self.model.add(adds >= site.draw.adds(0) * used)
        self.model.add(adds >= (site.draw.on - site.draw.now) * used + active)
        return adds

    def _capacity(self, site: Site, users: Sequence[tuple[Option, cp_model.IntVar]]) -> None:
        options = [option for option, _ in users]
        for needs, free in device_limits(site, options) + host_limits(site, options):
            if sum(needs) > free:
                used = sum(need * member for need, (_, member) in zip(needs, users, strict=True) if need)
                self.model.add(used <= free)


def cheapest(costs: Vector, rows: Any, most: Vector, upper: Vector, effort: Effort) -> list[int] | None:
    """Integers v with rows * v <= most and 0 <= v <= upper for which costs * v is small; None if none are found.

    `rows` is a sparse matrix. Its entries are rounded up to whole numbers and `most` down, so that they hold whatever
    is rounded: let a unit of each row be small.
    """
    model = cp_model.CpModel()
    variables = [model.new_int_var(0, int(most), "") for most in upper]
    table = rows.tocsr()
    for row, limit in enumerate(most):
        begin, end = int(table.indptr[row]), int(table.indptr[row + 1])
        values = [math.ceil(value - ROUNDING) for value in table.data[begin:end]]
        used = [int(column) for column in table.indices[begin:end]]
        if sum(max(0, value) * int(upper[column]) for value, column in zip(values, used, strict=True)) > limit:
            total = sum(value * variables[column] for value, column in zip(values, used, strict=True))
            model.add(total <= math.floor(limit + ROUNDING))
    scale = COST_UNITS / max(float(abs(costs).max()), ROUNDING)
    model.minimize(sum(round(cost * scale) * variable for cost, variable in zip(costs, variables, strict=True)))
    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = effort.deterministic_s
    solver.parameters.max_time_in_seconds = effort.wall_s
    solver.parameters.random_seed = effort.seed
    solver.parameters.num_workers = 1
    status = solver.solve(model)
    found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    return [int(solver.value(variable)) for variable in variables] if found else None


def _search(packing: _Packing, effort: Effort) -> Answer:
    solver = cp_model.CpSolver()
    parameters = solver.parameters
    parameters.max_deterministic_time = effort.deterministic_s
    parameters.max_time_in_seconds = effort.wall_s
    parameters.random_seed = effort.seed
    parameters.num_workers = effort.workers
    parameters.interleave_search = effort.workers > 1  # else several threads answer differently from run to run
    # Chosen by measuring on the problems of bench.solver: the full linear relaxation carries this model; long presolve,
    # probing, symmetry detection and cuts cost more than they save within a second.
    parameters.linearization_level = 2
    parameters.cp_model_probing_level = 0
    parameters.symmetry_level = 0
    parameters.max_presolve_iterations = 1
    parameters.cut_level = 0
    status = solver.solve(packing.model)
    found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    spent = solver.deterministic_time
    return Answer(
        choices=packing.chosen(solver) if found else None,
        # A search cut short before its first solution reports 0 for a bound, which may be above the optimum.
        bound=solver.best_objective_bound if found else -math.inf,
        optimal=status == cp_model.OPTIMAL,
        deterministic_s=spent,
        wall_s=solver.wall_time,
        stopped=status in (cp_model.FEASIBLE, cp_model.UNKNOWN) and spent < effort.deterministic_s,
    )

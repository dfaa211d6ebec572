"""A linear relaxation of the start-now problem, aggregated over interchangeable sites. It proves bounds.

Variables: the members y of each option on each group of alike sites; and for a group that costs something to keep on,
the number z of its sites that stay on past each end of a job. That is a ladder: never more past a later end than past
an earlier one. Jobs that differ only in their place in line share their variables.

Every row holds for every integer plan. A bound is read off the dual values and not off the objective: multipliers of
the right sign prove a bound however they were found, so rounding errors or a solve cut short cannot make it false.
"""
# scipy ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array, vstack

from scheduler.budgets import Limit
from scheduler.candidates import (
    Candidate,
    Candidates,
    Option,
    Site,
    device_limits,
    host_limits,
    places,
)

Vector = NDArray[np.float64]

NOTHING = 1e-6
"""A smaller part of a member is a rounding error."""


EXACT_PLACES = 4_000
"""Up to this many pairs of option and site every end of a job is a step of the ladder."""

FEW_ENDS = 24
"""Steps of the ladder in a larger pool."""

MAX_ITERATIONS = 50_000
"""Limit of simplex steps: a hard instance costs a bounded amount of work, the same in every run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is proven of one tier's waiting in the plans that a bound speaks of: at least `floor`, at most `cap`."""

    floor: int
    cap: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Guide:
    """What the cheapest fractional plan does; empty if none was found.

    `starts[twin, o]`: how many of the jobs of one twin number start with option o, fractions included.
    `places`: the (twin, option, group of sites) where it puts any member.
    """

    starts: Mapping[tuple[int, int], float]
    places: frozenset[tuple[int, int, int]]


NO_GUIDE = Guide(starts={}, places=frozenset())


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxation:
    """rows * v <= most, 0 <= v <= upper, with `rows` a sparse matrix.

    The waiting of tier t is `weights[t] + waiting[t] * v`; the charge (`scheduler.candidates.charge_j`, J) is
    `waits_j + charge * v`. `members[twin, o]` has the variables that count members of option o of the jobs of one twin
    number, by group of sites, and how many members one such job has.
    """

    rows: Any
    most: Vector
    upper: Vector
    charge: Vector
    waits_j: float
    waiting: tuple[Vector, ...]
    weights: tuple[int, ...]
    members: Mapping[tuple[int, int], tuple[dict[int, int], int]]

    def waiting_floor(self, tier: int, known: Sequence[Known]) -> float:
        """Lower bound of a tier's waiting in all plans whose first tiers wait as `known`."""
        return self.weights[tier] + self._least(self.waiting[tier], known)[0]

    def charge_floor(self, known: Sequence[Known]) -> tuple[float, Guide]:
        """Lower bound of the charge, in J, of all plans whose first tiers wait as `known`, and the one it is of."""
        least, values = self._least(self.charge, known)
        return self.waits_j + least, NO_GUIDE if values is None else self._guide(values)

    def _guide(self, values: Vector) -> Guide:
        starts: dict[tuple[int, int], float] = {}
        used: set[tuple[int, int, int]] = set()
        for (twin, number), (columns, size) in self.members.items():
            starts[twin, number] = sum(float(values[column]) for column in columns.values()) / size
            used |= {(twin, number, group) for group, column in columns.items() if values[column] > NOTHING}
        return Guide(starts=starts, places=frozenset(used))

    def _least(self, objective: Vector, known: Sequence[Known]) -> tuple[float, Vector | None]:
        """A lower bound of objective * v, and the v that was found."""
        rows, most = self._narrowed(known)
        return least(objective, rows, most, self.upper)[:2]

    def _narrowed(self, known: Sequence[Known]) -> tuple[Any, Vector]:
        """The rows and what is known of the first tiers, each row scaled by the tier's weight."""
        lines: list[Vector] = []
        most: list[float] = []
        for tier, fact in enumerate(known):
            weight = self.weights[tier]
            if weight:
                lines += [self.waiting[tier] / weight, -self.waiting[tier] / weight]
                most += [fact.cap / weight - 1, 1 - fact.floor / weight]
        if not lines:
            return self.rows, self.most
        return vstack([self.rows, csr_array(np.array(lines))]).tocsr(), np.concatenate([self.most, most])


def least(objective: Vector, rows: Any, most: Vector, upper: Vector) -> tuple[float, Vector | None, Vector]:
    """A lower bound of objective * v over rows * v <= most, 0 <= v <= upper; the v that was found, if any; and what one
    more of each variable costs by the prices that prove the bound (the reduced costs).
    """
    scale = float(np.abs(objective).max(initial=0.0)) or 1.0
    result: Any = linprog(
        objective / scale,
        A_ub=rows,
        b_ub=most,
        bounds=np.column_stack([np.zeros_like(upper), upper]),
        method="highs-ds",
        options={"maxiter": MAX_ITERATIONS},
    )
    found: Vector | None = result.ineqlin.marginals
    prices = np.zeros_like(most) if found is None else np.minimum(found, 0.0) * scale
    reduced = objective - rows.T @ prices
    return float(prices @ most + np.minimum(reduced, 0.0) @ upper), result.x, reduced


def relax(pool: Candidates) -> Relaxation:
    """The relaxation of a pool. In a large one the ends are rounded down to a few, which leaves it a bound."""
    groups: dict[int, list[Site]] = defaultdict(list)
    numbers: dict[int, set[int]] = defaultdict(set)
    for number, site in enumerate(pool.sites):
        groups[site.group].append(site)
        numbers[site.group].add(number)
    ends = sorted({option.end_s for candidate in pool.line for option in candidate.options})
    steps = ends if places(pool) <= EXACT_PLACES else _geometric(ends, FEW_ENDS)
    writing = _Writing(tiers=pool.tiers)
    twins: dict[int, list[Candidate]] = defaultdict(list)
    for candidate in pool.line:
        twins[candidate.twin].append(candidate)
    users: dict[int, list[_User]] = defaultdict(list)
    for alike in twins.values():
        _write_job(writing, alike[0], len(alike), pool, users)
    past_first: dict[int, int] = {}
    for group, sites in groups.items():
        _write_capacity(writing, sites[0], len(sites), users[group])
        _write_parts(writing, sites[0], frozenset(numbers[group]), users[group])
        if sites[0].charged:
            on = _write_ladder(writing, sites[0], len(sites), users[group], steps)
            if on is not None:
                past_first[group] = on
    for limit in pool.limits:
        _write_budget(writing, limit, groups, users, past_first)
    return writing.relaxation()


def _geometric(ends: Sequence[float], count: int) -> list[float]:
    """At most `count` ends in equal ratios from the first of `ends` to the last: what matters is the ratio of two."""
    if len(ends) <= count:
        return list(ends)
    step = math.log(ends[-1] / ends[0]) / (count - 1)
    return [ends[0], *(ends[0] * math.exp(step * number) for number in range(1, count - 1)), ends[-1]]


@dataclass(frozen=True, slots=True)
class _User:
    """Who may use a group: `alike` jobs with this option, whose members there the variable `column` counts. `there` is
    how many sites of the group they may use.
    """

    option: Option
    alike: int
    column: int
    there: int


class _Writing:
    """A relaxation while it is written, variable by variable and row by row."""

    def __init__(self, tiers: int) -> None:
        self.upper: list[float] = []
        self.charge: list[float] = []
        self.waits_j = 0.0
        self.waiting: list[dict[int, float]] = [{} for _ in range(tiers)]
        self.weights = [0] * tiers
        self.members: dict[tuple[int, int], tuple[dict[int, int], int]] = {}
        self.row: list[int] = []
        self.column: list[int] = []
        self.value: list[float] = []
        self.most: list[float] = []

    def variable(self, upper: float, charge: float) -> int:
        self.upper.append(upper)
        self.charge.append(charge)
        return len(self.upper) - 1

    def at_most(self, terms: Sequence[tuple[int, float]], most: float) -> None:
        number = len(self.most)
        self.row += [number] * len(terms)
        self.column += [column for column, _ in terms]
        self.value += [value for _, value in terms]
        self.most.append(most)

    def relaxation(self) -> Relaxation:
        size = len(self.upper)
        waiting = [np.zeros(size) for _ in self.waiting]
        for vector, entries in zip(waiting, self.waiting, strict=True):
            vector[list(entries)] = list(entries.values())
        return Relaxation(
            rows=csr_array((self.value, (self.row, self.column)), shape=(len(self.most), size)),
            most=np.array(self.most),
            upper=np.array(self.upper),
            charge=np.array(self.charge),
            waits_j=self.waits_j,
            waiting=tuple(waiting),
            weights=tuple(self.weights),
            members=self.members,
        )


def _write_job(
    writing: _Writing,
    candidate: Candidate,
    alike: int,
    pool: Candidates,
    users: dict[int, list[_User]],
) -> None:
    """Members of `alike` jobs: each starts at most once, and no member shares a site with another of its gang."""
    stake = candidate.stake
    writing.waits_j += alike * stake.wait_j
    writing.weights[candidate.tier] += alike * stake.weight
    starts: list[tuple[int, float]] = []
    for number, option in enumerate(candidate.options):
        columns: dict[int, int] = {}
        counts: dict[int, int] = {}
        for group, there in sorted(Counter(pool.sites[site].group for site in option.sites).items()):
            most = min(option.members, there) * alike
            column = writing.variable(most, (option.extra_j - stake.wait_j) / option.members)
            writing.waiting[candidate.tier][column] = -stake.weight / option.members
            users[group].append(_User(option, alike, column, there))
            columns[group], counts[group] = column, there
        writing.members[candidate.twin, number] = (columns, option.members)
        starts += [(column, 1 / option.members) for column in columns.values()]
        for group, column in columns.items():
            if counts[group] < option.members:
                share = counts[group] / option.members
                writing.at_most([(other, float(other == column) - share) for other in columns.values()], 0.0)
    writing.at_most(starts, alike)


def _write_capacity(writing: _Writing, site: Site, count: int, users: Sequence[_User]) -> None:
    """What `count` alike sites hold together; and that a site with 7 devices free holds one member of 4, not 1.75."""
    options = [user.option for user in users]
    for needs, free in device_limits(site, options):
        for least in sorted({need for need in needs if need and free % need}):
            terms = [(user.column, need // least) for user, need in zip(users, needs, strict=True) if need >= least]
            writing.at_most(terms, count * (free // least))
    for needs, free in device_limits(site, options) + host_limits(site, options):
        if free:
            terms = [(user.column, need / free) for user, need in zip(users, needs, strict=True) if need]
            writing.at_most(terms, count)


def _write_parts(writing: _Writing, site: Site, group: frozenset[int], users: Sequence[_User]) -> None:
    """What those sites of a group hold together to which some of its users are confined."""
    confined = [(group.intersection(user.option.sites), user) for user in users if user.there < len(group)]
    for part in sorted({part for part, _ in confined}, key=sorted):
        _write_capacity(writing, site, len(part), [user for sites, user in confined if sites <= part])


def _write_budget(
    writing: _Writing,
    limit: Limit,
    groups: Mapping[int, Sequence[Site]],
    users: Mapping[int, Sequence[_User]],
    past_first: Mapping[int, int],
) -> None:
    """What the sites of a budget draw at least, in W: members, and nodes that go on. A boot's own draw is left out."""
    terms: list[tuple[int, float]] = []
    free = limit.free
    for group, sites in groups.items():
        site = sites[0]
        if limit.budget.name not in site.budgets:
            continue
        terms += [(user.column, user.option.active_mw / 1000) for user in users.get(group, ())]
        if not site.node.on and group in past_first:
            terms.append((past_first[group], (site.draw.on - site.draw.now) / 1000))
        elif site.draw.on < site.draw.now:  # it boots, and will draw less once it is on
            free += len(sites) * (site.draw.now - site.draw.on)
    writing.at_most(terms, free / 1000)


def _write_ladder(
    writing: _Writing, site: Site, count: int, users: Sequence[_User], steps: Sequence[float]
) -> int | None:
    """How many of the sites stay on past each step: enough for every member that runs past it, and for all of them.

    Answers the variable of the first step, which every site in use passes, if there is any.
    """
    before: int | None = None
    first: int | None = None
    begins = site.end_s
    last = [steps[bisect_right(steps, user.option.end_s) - 1] for user in users]
    for end_s in sorted({end_s for end_s in last if end_s > site.end_s}):
        joules = site.rate_w * (end_s - begins) + (site.boot_j if before is None else 0.0)
        column = writing.variable(count, joules)
        if before is None:
            first = column
        else:
            writing.at_most([(column, 1.0), (before, -1.0)], 0.0)
        before, begins = column, end_s
        past = [user for user, end in zip(users, last, strict=True) if end >= end_s]
        for needs, free in device_limits(site, [user.option for user in past]):
            terms = [(user.column, need / free) for user, need in zip(past, needs, strict=True) if need]
            writing.at_most([*terms, (column, -1.0)], 0.0)
        for user, end in zip(users, last, strict=True):
            if end == end_s:
                writing.at_most([(user.column, 1 / user.alike), (column, -1.0)], 0.0)
    return first

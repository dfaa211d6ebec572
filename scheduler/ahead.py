"""Jobs that may wait in groups, nodes in classes and time in slots: what `scheduler.horizon` plans by.

A slot is as long as a step of the rates, near ones a quarter of an hour at most, later ones coarser. A job takes
devices and watts of the slots that it runs in, in proportion to how much of each. Taken are already: what runs, until
its nodes are expected to be free; then, in line order, the jobs that may not wait, each as soon as there is room.

A start costs the job's own energy and its devices' even share of nodes that can be switched, boot included, at the
rates of its run; later than now also `LEAST_SAVING` of what it would cost now, and a trifle for every hour; and `LATE`
times what it costs at most where there is no room for it in time: it starts then as soon as it can.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from scheduler.demand import WHOLE_DEVICE
from scheduler.feasibility import fits, takes_work, total_room
from scheduler.power import active_w
from scheduler.problem import CPU_KIND, Job, Node, PowerBudget, Problem, Rate, Shape

Vector = NDArray[np.float64]

REACH_S = 48 * 3_600.0
"""How far ahead starts are looked for."""

LONGEST_SLOT_S = 900.0
"""Of the first slots; later ones are up to 1 / `COARSER` of their distance long, or as long as a step of the rates."""

COARSER = 24

LONGEST_RUN_S = 1e8
"""Longer runs are not told apart: three years."""

LEAST_SAVING = 0.05
"""A start is put off while this share of its cost, or more, is to be saved. A choice: less is within the error of the
run time. So a job starts a little before the hour that it waits for."""

SOONER = 1e-3
"""What a start `REACH_S` from now costs more than one now, as a share of that: of equal starts the earlier is best."""

LATE = 10.0

J_PER_KWH = 3.6e6
ROUNDING = 1e-9


def slots(rates: Sequence[Rate], until_s: float) -> list[float]:
    """The begin of each slot from now to `until_s`, in s, and the end of the last one."""
    marks = [0.0]
    for rate in rates:
        if marks[-1] + marks[-1] / COARSER < rate.start_s <= until_s and rate.start_s > 0:
            marks.append(rate.start_s)
    # Counted from the step after `until_s`, which may itself be a start.
    anchor = next((rate.start_s for rate in rates if rate.start_s > until_s), marks[-1])
    last = anchor + (math.floor((until_s - anchor) / LONGEST_SLOT_S) + 1) * LONGEST_SLOT_S
    cuts = [0.0]
    for begin, end in pairwise([*marks, last]):
        width = LONGEST_SLOT_S
        while width < begin / COARSER:
            width *= 2
        # Counted back from the step's end, so that they stay where they are while time goes on.
        pieces = math.ceil((end - begin) / width - ROUNDING)
        cuts += [end - number * width for number in range(pieces - 1, -1, -1)]
    return cuts


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A job of a group on one class of nodes: what it takes of each limit (devices of a class, watts of a budget), by
    number, and what each start costs.
    """

    shape: Shape
    joules: float
    takes: tuple[tuple[int, float], ...]
    costs: Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Alike jobs, in line order: each may start in one of the first `slots` slots."""

    jobs: tuple[str, ...]
    slots: int
    choices: tuple[Choice, ...]
    late: float

    @property
    def stake(self) -> float:
        """What hangs on when its jobs start."""
        costs = [choice.costs[: self.slots] for choice in self.choices]
        return len(self.jobs) * (max(map(np.max, costs)) - min(map(np.min, costs)))


Start = tuple[int, int]
"""The choice and the slot of a job."""

Starts = dict[str, Start]
"""Those of each job; one that finds no room in time is left out."""


class Model:
    """The problem in groups, classes and slots."""

    def __init__(self, problem: Problem) -> None:
        assert problem.ahead is not None
        self._problem = problem
        self._rates = problem.ahead.rates
        until = {wait.job: min(wait.until_s, REACH_S) for wait in problem.ahead.waits}
        cuts = np.array(slots(self._rates, max(until.values(), default=0.0)))
        self.begins, self._ends = cuts[:-1], cuts[1:]
        self.before = {wait.job: wait.before_s for wait in problem.ahead.waits if wait.before_s is not None}
        self._classes = _classes(problem)
        self._rooms = {key: total_room(nodes) for key, nodes in self._classes.items()}
        self._known: dict[tuple[Shape, ...], tuple[Choice, ...]] = {}
        self._covered: dict[float, Vector] = {}
        self.free = self._capacity()
        line = sorted(problem.jobs, key=lambda job: (-job.priority, job.order, job.id))
        for job in line:
            if job.id not in until:
                self._queue(job)
        self.groups = self._groups([job for job in line if job.id in until], until)
        members = {job: group for group in self.groups for job in group.jobs}
        self.group_of = {job.id: members[job.id] for job in line if job.id in members}

    def slot_of(self, moment_s: float) -> int:
        """The slot in which a moment from now on is; the last one for all after it."""
        return bisect_right(self.begins.tolist(), moment_s) - 1

    def covered(self, run_s: float) -> Vector:
        """Which part of each slot (column) a run from the begin of each slot (row) takes."""
        if run_s not in self._covered:
            ends = self.begins[:, None] + run_s
            both = np.minimum(ends, self._ends) - np.maximum(self.begins[:, None], self.begins)
            self._covered[run_s] = np.clip(both, 0.0, None) / (self._ends - self.begins)
        return self._covered[run_s]

    def room(self, free: Vector, choice: Choice) -> NDArray[np.bool_]:
        """In which slots a job could start."""
        covered = self.covered(choice.shape.run_s)
        able = np.ones(len(self.begins), dtype=bool)
        for limit, amount in choice.takes:
            able &= (covered * amount <= free[limit] + ROUNDING * amount).all(axis=1)
        return able

    def take(self, free: Vector, choice: Choice, slot: int, count: float = 1.0) -> None:
        """Takes the room of so many jobs."""
        for limit, amount in choice.takes:
            free[limit] -= count * amount * self.covered(choice.shape.run_s)[slot]

    def cost_of(self, job: str, start: Start | None) -> float:
        group = self.group_of[job]
        return group.late if start is None else float(group.choices[start[0]].costs[start[1]])

    def cost(self, starts: Starts) -> float:
        return sum(self.cost_of(job, starts.get(job)) for job in self.group_of)

    @property
    def floor(self) -> float:
        """What all cost if each had the nodes to itself."""
        return sum(len(group.jobs) * own_best(group)[0] for group in self.groups)

    def rate(self, choice: Choice, slot: int) -> float:
        """The mean rate of a run."""
        run_s = _run_s(choice.shape)
        return float(self._sums(self.begins[slot] + run_s) - self._sums(self.begins[slot])) / run_s

    def _sums(self, moments: Vector | float) -> Vector:
        """The integral of the rates from now to each moment, per kWh times s."""
        starts = np.array([rate.start_s for rate in self._rates])
        values = np.array([rate.per_kwh for rate in self._rates])
        sums = np.concatenate([[0.0], np.cumsum(np.diff(starts) * values[:-1])])
        step = np.searchsorted(starts, moments, side="right") - 1
        return sums[step] + values[step] * (moments - starts[step])

    def _capacity(self) -> Vector:
        """What each class and then each budget leaves, slot by slot: thousandths of devices or of cores, W."""
        rows = [self._free_units(kind, nodes) for (kind, _), nodes in self._classes.items()]
        return np.array([*rows, *map(self._free_w, self._problem.budgets)]).reshape(-1, len(self.begins))

    def _free_units(self, kind: str, nodes: Sequence[Node]) -> Vector:
        free = np.zeros(len(self.begins))
        for node in nodes:
            devices = [device for device in node.devices if device.kind == kind]
            now = sum(device.free for device in devices) if kind else node.free_millicores
            whole = len(devices) * WHOLE_DEVICE if kind else node.cpu_millicores
            # Where nothing runs, what is not free is unfit.
            free += (whole if node.busy_s else now) - self._busy(node) * (whole - now)
        return free

    def _free_w(self, budget: PowerBudget) -> Vector:
        names = set(budget.nodes)
        free = np.full(len(self.begins), float(budget.watts))
        for node in self._problem.nodes:
            if node.id in names:
                above = node.power.base_w - node.power.off_w
                rests_on = node.on and not node.can_switch
                free -= node.power.off_w + (above if rests_on else 0.0)
                free -= self._busy(node) * (node.busy_w + (above if node.on and not rests_on else 0.0))
        return np.clip(free, 0.0, None)

    def _busy(self, node: Node) -> Vector:
        """The part of each slot in which what runs there still does."""
        return np.clip(node.busy_s - self.begins, 0.0, self._ends - self.begins) / (self._ends - self.begins)

    def _queue(self, job: Job) -> None:
        """A job that may not wait takes the first room there is, of its thriftiest class."""
        firsts: list[tuple[int, int]] = []
        choices = self._choices(job.shapes)
        for number, choice in enumerate(choices):
            able = self.room(self.free, choice)
            if able.any():
                firsts.append((int(able.argmax()), number))
        if firsts:
            slot, number = min(firsts)
            self.take(self.free, choices[number], slot)

    def _groups(self, jobs: Sequence[Job], until: Mapping[str, float]) -> tuple[Group, ...]:
        alike: dict[tuple[tuple[Shape, ...], int], list[Job]] = {}
        for job in jobs:
            alike.setdefault((job.shapes, self.slot_of(until[job.id]) + 1), []).append(job)
        groups: list[Group] = []
        for (shapes, count), found in alike.items():
            if choices := self._choices(shapes):
                late = (1 + LATE) * max(float(np.abs(choice.costs).max()) for choice in choices)
                names = tuple(job.id for job in found)
                groups.append(Group(jobs=names, slots=count, choices=choices, late=late))
        return tuple(groups)

    def _choices(self, shapes: tuple[Shape, ...]) -> tuple[Choice, ...]:
        """The shape that needs least energy on each class that could carry it, the thriftiest class first."""
        if shapes not in self._known:
            found = [self._choice(number, shapes) for number in range(len(self._classes))]
            self._known[shapes] = tuple(
                sorted((choice for choice in found if choice is not None), key=lambda choice: choice.joules)
            )
        return self._known[shapes]

    def _choice(self, number: int, shapes: Sequence[Shape]) -> Choice | None:
        (kind, budgets), nodes = list(self._classes.items())[number]
        able = [shape for shape in shapes if shape.kind == kind and fits(shape, self._rooms[kind, budgets])]
        if not able:
            return None
        shape = min(able, key=lambda shape: _draw_w(shape, nodes) * shape.run_s)
        watts = _draw_w(shape, nodes)
        units = shape.members * (shape.devices * shape.share if kind else shape.millicores)
        drawn = [
            (len(self._classes) + place, watts)
            for place, budget in enumerate(self._problem.budgets)
            if budget.name in budgets
        ]
        return Choice(
            shape=shape,
            joules=watts * shape.run_s,
            takes=((number, float(units)), *drawn),
            costs=self._costs(shape, watts, _boot_j(shape, nodes)),
        )

    def _costs(self, shape: Shape, watts: float, boot_j: float) -> Vector:
        """What a start in each slot costs, in units of the rates."""
        run_s = _run_s(shape)
        starts = np.array([rate.start_s for rate in self._rates])
        values = np.array([rate.per_kwh for rate in self._rates])
        step = np.searchsorted(starts, self.begins, side="right") - 1
        joules = watts * (self._sums(self.begins + run_s) - self._sums(self.begins)) + boot_j * values[step]
        costs = joules * self._problem.pue / J_PER_KWH
        return costs + self._put_off_costs(float(costs[0]))

    def _put_off_costs(self, now: float) -> Vector:
        """What a start in each slot costs for being later than now, for a job that costs `now` then."""
        return abs(now) * (LEAST_SAVING * (self.begins > 0) + SOONER * self.begins / REACH_S)

    def energy_cost(self, choice: Choice, slot: int) -> float:
        """What the energy of a start costs."""
        return float(choice.costs[slot] - self._put_off_costs(float(choice.costs[0]))[slot])


def own_best(group: Group) -> tuple[float, int]:
    """What the cheapest start of a job of the group costs, and its slot, were there room for all."""
    costs = np.min([choice.costs[: group.slots] for choice in group.choices], axis=0)
    slot = int(costs.argmin())
    return float(costs[slot]), slot


def _classes(problem: Problem) -> dict[tuple[str, frozenset[str]], list[Node]]:
    """Nodes that take work, by kind of device and the budgets that they count towards; the kind "" has the cores of
    all of them.
    """
    found: dict[tuple[str, frozenset[str]], list[Node]] = {}
    members = {budget.name: frozenset(budget.nodes) for budget in problem.budgets}
    for node in problem.nodes:
        if takes_work(node):
            budgets = frozenset(name for name, nodes in members.items() if node.id in nodes)
            for kind in sorted({device.kind for device in node.devices} | {""}):
                found.setdefault((kind, budgets), []).append(node)
    return found


def _run_s(shape: Shape) -> float:
    return min(shape.run_s, LONGEST_RUN_S)


def _draw_w(shape: Shape, nodes: Sequence[Node]) -> float:
    """What a job draws: its devices, and their share of nodes that can be switched. Cores without devices draw what as
    many CPU slots would.
    """
    if not shape.devices:
        return shape.members * shape.millicores / 1000 * active_w(CPU_KIND)
    base_w = sum(node.device_base_w(shape.kind) for node in nodes) / len(nodes)
    return shape.size * shape.share / WHOLE_DEVICE * (shape.active_w + base_w)


def _boot_j(shape: Shape, nodes: Sequence[Node]) -> float:
    """The share of boots that the job's devices answer for."""
    if not shape.devices:
        return 0.0
    boot_j = sum(node.power.boot_j / len(node.devices) for node in nodes if node.can_switch) / len(nodes)
    return shape.size * shape.share / WHOLE_DEVICE * boot_j

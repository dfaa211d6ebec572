"""Exact plans of small problems with shares of devices and jobs without devices, by CP-SAT.

One model with a variable for each device that a member could get: it grows with jobs * devices, so `best_start`
declines what is larger than `MAX_PLACES`. First as little as possible waits, tier by tier, then the cost is least; both
as `scheduler.objective` defines them. Every search starts from a plan that is known.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from ortools.sat.python import cp_model

from scheduler.budgets import limits, milliwatts
from scheduler.candidates import Site, sites_of
from scheduler.cpsat import UNITS
from scheduler.feasibility import can_host
from scheduler.objective import evaluate, stakes, tiers, waiting
from scheduler.plan import MemberPlacement, Placement
from scheduler.problem import WHOLE_DEVICE, Budget, Job, Problem, Shape

MAX_PLACES = 1_500
"""Pairs of member and device (or node, for members without devices) in one model, at most."""

LEAST_EFFORT = 1e-6
"""Deterministic time of a search for which nothing is left: enough for what presolve settles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Which jobs start, and a lower bound of the objective of all plans that respect precedence, in J.

    `optimal` tells that these placements reach it. `stopped` tells that the watchdog ended a search.
    """

    placements: tuple[Placement, ...]
    bound_j: float
    optimal: bool
    stopped: bool


def best_start(problem: Problem, known: Sequence[Placement], budget: Budget) -> Start | None:
    """The best placements found from the `known` ones on; None if the problem is too large for it, or if the budget
    did not suffice for any.

    Without a proof that as little as possible waits there is no bound: it is minus infinity then.
    """
    model = _Model(problem)
    if model.places > MAX_PLACES:
        return None
    search = _Search(model, budget, known)
    for tier in range(len(model.tiers)):
        if not search.least(model.waiting(tier)):
            return None
        model.model.add(model.waiting(tier) <= waiting(problem, search.best)[tier])
    settled = search.proven
    if not search.least(model.cost()):
        return None
    return Start(
        placements=tuple(search.best),
        bound_j=model.bound_j(search.bound) if settled else -math.inf,
        optimal=search.proven,
        stopped=search.stopped,
    )


class _Search:
    """One minimum after the other, each from the `best` placements so far, within one budget.

    `proven` tells that all of them were proven, `bound` is the solver's of the last, `stopped` that the watchdog ended
    one.
    """

    def __init__(self, model: "_Model", budget: Budget, known: Sequence[Placement]) -> None:
        self.best, self.proven, self.bound, self.stopped = known, True, -math.inf, False
        self._model = model
        self._left = budget.deterministic_s
        self._solver = cp_model.CpSolver()
        self._solver.parameters.max_time_in_seconds = budget.watchdog_s
        self._solver.parameters.random_seed = budget.seed
        self._solver.parameters.num_workers = 1

    def least(self, objective: cp_model.LinearExprT) -> bool:
        """Finds placements of the least objective, or of less; False if there was no time to find any."""
        self._model.model.minimize(objective)
        self._model.hint(self.best)
        self._solver.parameters.max_deterministic_time = max(LEAST_EFFORT, self._left)
        status = self._solver.solve(self._model.model)
        self._left -= self._solver.deterministic_time
        self.proven &= status == cp_model.OPTIMAL
        self.stopped |= status != cp_model.OPTIMAL and self._left > 0
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return False
        self.best, self.bound = self._model.chosen(self._solver), self._solver.best_objective_bound
        return True


class _Model:
    """Variables, rows and prices. `ways[j]` are the shapes of job j, by index, and how long its nodes may at most take
    to fetch what it needs, in s. `starts[j, w]`: job j starts in way w. `members[j, w, n]`: a member is on site n.
    `takes[j, w, n, d]`: it gets the device of index d there.
    """

    def __init__(self, problem: Problem) -> None:
        self.model = cp_model.CpModel()
        self.sites = sites_of(problem)
        self.active_mw = {job.id: [milliwatts(shape.active_w) for shape in job.shapes] for job in problem.jobs}
        limited = limits(problem)
        self.problem = problem = problem.shared_out()
        self.staked = stakes(problem)
        self.line = sorted(
            (job for job in problem.jobs if job.id in self.staked), key=lambda job: (-job.priority, job.order, job.id)
        )
        self.tiers = tiers(self.line)
        self.starts: dict[tuple[int, int], cp_model.IntVar] = {}
        self.members: dict[tuple[int, int, int], cp_model.IntVar] = {}
        self.takes: dict[tuple[int, int, int, int], cp_model.IntVar] = {}
        self.prices: list[tuple[float, cp_model.IntVar]] = []
        before: dict[object, cp_model.LinearExprT] = {}
        self.ways = [list(product(self.staked[job.id].shapes, self._stagings(job))) for job in self.line]
        for number, job in enumerate(self.line):
            starts = [self._start(number, way) for way in range(len(self.ways[number]))]
            self.model.add_at_most_one(starts)
            alike = job.likeness
            if alike in before:  # of jobs that differ only in their place in line the first starts
                self.model.add(sum(starts) <= before[alike])
            before[alike] = sum(starts)
        for number, site in enumerate(self.sites):
            self._site(number, site)
        if limited:
            adds = [self._adds(number, site) for number, site in enumerate(self.sites)]
            for limit in limited:
                there = [mw for mw, site in zip(adds, self.sites, strict=True) if site.node.id in limit.nodes]
                if there:
                    self.model.add(sum(there) <= limit.free)
        for (number, way), start in self.starts.items():
            stake = self.staked[self.line[number].id]
            job = self.line[number]
            shape, stage_s = self.ways[number][way]
            extra_j = problem.pue * (job.shapes[shape].work_j - stake.deferred_j)
            extra_j += job.late_j(shape) + job.stage_j(shape, stage_s)
            self.prices.append((extra_j - stake.wait_j, start))
        largest = max((abs(joules) for joules, _ in self.prices), default=0.0)
        self._unit = largest / UNITS if largest else 1.0

    @property
    def places(self) -> int:
        """The size of the model."""
        return len(self.takes) + len(self.members)

    def cost(self) -> cp_model.LinearExprT:
        """What starting costs beyond a plan that starts nothing, in `UNITS` of the largest price."""
        return sum(int(joules // self._unit) * variable for joules, variable in self.prices)

    def bound_j(self, solvers: float) -> float:
        """The solver's bound of the cost in J."""
        return evaluate(self.problem, ()).total_j + solvers * self._unit

    def chosen(self, solver: cp_model.CpSolver) -> list[Placement]:
        """The placements of the solution that the solver holds, in line order."""
        placements: list[Placement] = []
        for (number, way), start in self.starts.items():
            if solver.boolean_value(start):
                members = [
                    MemberPlacement(node=self.sites[site].node.id, devices=self._devices(solver, number, way, site))
                    for (j, w, site), member in self.members.items()
                    if (j, w) == (number, way) and solver.boolean_value(member)
                ]
                shape, _ = self.ways[number][way]
                placements.append(Placement(job=self.line[number].id, shape=shape, members=tuple(members)))
        return placements

    def _devices(self, solver: cp_model.CpSolver, number: int, way: int, site: int) -> tuple[str, ...]:
        devices = self.sites[site].node.devices
        return tuple(
            devices[index].id
            for (j, w, n, index), takes in self.takes.items()
            if (j, w, n) == (number, way, site) and solver.boolean_value(takes)
        )

    def _stagings(self, job: Job) -> list[float]:
        """How long the sites take to fetch what the job needs, in s, each length once."""
        return sorted({job.staged_s([site.node.id]) for site in self.sites})

    def _shape(self, number: int, way: int) -> Shape:
        return self.line[number].shapes[self.ways[number][way][0]]

    def _start(self, number: int, way: int) -> cp_model.IntVar:
        start = self.model.new_bool_var("")
        members: list[cp_model.IntVar] = []
        shape, (_, stage_s) = self._shape(number, way), self.ways[number][way]
        for n, site in enumerate(self.sites):
            able = _able(site, shape)
            if able is None or self.line[number].staged_s([site.node.id]) > stage_s:
                continue
            member = self.model.new_bool_var("")
            takes = {device: self.model.new_bool_var("") for device in able}
            if shape.devices:
                self.model.add(sum(takes.values()) == shape.devices * member)
            self.members[number, way, n] = member
            self.takes |= {(number, way, n, device): variable for device, variable in takes.items()}
            members.append(member)
        self.model.add(sum(members) == shape.members * start)
        self.starts[number, way] = start
        return start

    def _site(self, number: int, site: Site) -> None:
        placed = [(j, way, member) for (j, way, n), member in self.members.items() if n == number]
        there = [(self._shape(j, way), member) for j, way, member in placed]
        if not there:
            return
        self._at_most([(shape.millicores, member) for shape, member in there], site.node.free_millicores)
        self._at_most([(shape.memory_bytes, member) for shape, member in there], site.node.free_memory_bytes)
        by_device: dict[int, list[tuple[Shape, cp_model.IntVar]]] = defaultdict(list)
        for (j, way, n, device), takes in self.takes.items():
            if n == number:
                by_device[device].append((self._shape(j, way), takes))
        for device, users in by_device.items():
            free = site.node.devices[device].free
            self.model.add(sum(shape.share * takes for shape, takes in users) <= free)
            if free == WHOLE_DEVICE:
                woken = [(shape.active_w * shape.run_s, takes) for shape, takes in users if shape.shared]
                self._ladder(woken, 0.0, self.problem.pue)
        if site.charged:
            horizon_s = self.problem.horizon_s
            ends = [
                (min(self.ways[j][way][1] + self._shape(j, way).run_s, horizon_s), member) for j, way, member in placed
            ]
            self._ladder(ends, site.end_s, site.rate_w, site.boot_j)
        self._sockets(site, there)

    def _adds(self, number: int, site: Site) -> cp_model.LinearExprT:
        """What a site draws more than now, in mW, or an upper bound of it."""
        active: list[cp_model.LinearExpr] = []
        woken: dict[int, cp_model.IntVar] = {}
        used = self.model.new_bool_var("")
        most = 0
        for (j, way, n, device), takes in self.takes.items():
            if n != number:
                continue
            mw = self.active_mw[self.line[j].id][self.ways[j][way][0]]
            if not self._shape(j, way).shared:
                active.append(mw * takes)
                most += mw
            elif site.node.devices[device].free == WHOLE_DEVICE:
                if device not in woken:
                    woken[device] = self.model.new_int_var(0, max(map(max, self.active_mw.values())), "")
                    most += max(map(max, self.active_mw.values()))
                self.model.add(woken[device] >= mw * takes)
        total: cp_model.LinearExprT = sum([*active, *woken.values()], start=cp_model.LinearExpr.term(used, 0))
        adds = self.model.new_int_var(0, site.draw.adds(most), "")
        for (_, _, n), member in self.members.items():
            if n == number:
                self.model.add_implication(member, used)
        self.model.add(adds >= site.draw.adds(0) * used)
        self.model.add(adds >= (site.draw.on - site.draw.now) * used + total)
        return adds

    def _at_most(self, needs: Sequence[tuple[int, cp_model.IntVar]], free: int) -> None:
        if sum(need for need, _ in needs) > free:
            divisor = math.gcd(*(need for need, _ in needs))
            self.model.add(sum(need // divisor * member for need, member in needs) <= free // divisor)

    def _ladder(
        self, users: Sequence[tuple[float, cp_model.IntVar]], begins: float, price_j: float, once_j: float = 0.0
    ) -> list[tuple[float, cp_model.IntVar]]:
        """Charges `price_j` for each unit of the largest value in use beyond `begins`, and `once_j` if any is in use.

        Returns:
            Each step's height, and whether it is climbed.
        """
        steps: list[tuple[float, cp_model.IntVar]] = []
        before = begins
        for value in sorted({max(begins, value) for value, _ in users}):
            climbed = self.model.new_bool_var("")
            for reached, user in users:
                if max(begins, reached) >= value:
                    self.model.add_implication(user, climbed)
            self.prices.append((price_j * (value - before) + (0.0 if steps else once_j), climbed))
            steps.append((value - before, climbed))
            before = value
        return steps

    def _sockets(self, site: Site, there: Sequence[tuple[Shape, cp_model.IntVar]]) -> None:
        """Charges the sockets that wake up for as long as the longest run placed there."""
        node, width = site.node, site.node.power.socket_millicores
        if not width or not node.power.socket_w:
            return
        busy = node.cpu_millicores - node.free_millicores
        awake = -(-busy // width)
        most = -(-node.cpu_millicores // width) - awake
        woken = self.model.new_int_var(0, most, "")
        used = sum(shape.millicores * member for shape, member in there)
        self.model.add(width * woken >= used + busy - width * awake)
        for seconds, running in self._ladder([(shape.run_s, member) for shape, member in there], 0.0, 0.0):
            charged = self.model.new_int_var(0, most, "")
            self.model.add(charged >= woken - most * (1 - running))
            self.prices.append((self.problem.pue * node.power.socket_w * seconds, charged))

    def waiting(self, tier: int) -> cp_model.LinearExprT:
        """Waiting of a tier, in thousandths of W * devices."""
        total, terms = 0, list[cp_model.LinearExprT]()
        for number, job in enumerate(self.line):
            if job.priority == self.tiers[tier]:
                weight = self.staked[job.id].weight
                total += weight
                terms += [-weight * start for (j, _), start in self.starts.items() if j == number]
        return sum(terms) + total

    def hint(self, known: Sequence[Placement]) -> None:
        self.model.clear_hints()
        jobs = {job.id: job for job in self.line}
        ways = {
            placement.job: (
                placement.shape,
                jobs[placement.job].staged_s(member.node for member in placement.members),
            )
            for placement in known
        }
        on = {(placement.job, member.node) for placement in known for member in placement.members}
        held = {(placement.job, device) for placement in known for m in placement.members for device in m.devices}
        for (number, way), start in self.starts.items():
            self.model.add_hint(start, ways.get(self.line[number].id) == self.ways[number][way])
        for (number, way, n), member in self.members.items():
            job = self.line[number].id
            chosen = ways.get(job) == self.ways[number][way]
            self.model.add_hint(member, chosen and (job, self.sites[n].node.id) in on)
        for (number, way, n, device), takes in self.takes.items():
            job = self.line[number].id
            there = (job, self.sites[n].node.devices[device].id) in held
            self.model.add_hint(takes, ways.get(job) == self.ways[number][way] and there)


def _able(site: Site, shape: Shape) -> list[int] | None:
    """Indices of the devices of a site that a member could get; None if it cannot be there."""
    node = site.node
    able = [
        index
        for index, device in enumerate(node.devices)
        if shape.devices
        and device.kind == shape.kind
        and device.free >= shape.share
        and (not shape.shared or device.isolation >= shape.isolation)
    ]
    fits = node.free_millicores >= shape.millicores and node.free_memory_bytes >= shape.memory_bytes
    return able if fits and len(able) >= shape.devices and can_host(node, shape) else None

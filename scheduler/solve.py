"""The recipe: from a problem to a plan."""

from collections.abc import Sequence
from dataclasses import replace

from scheduler.budgets import Ceilings
from scheduler.candidates import Candidates, Choices, find_candidates, pools, to_placements
from scheduler.consolidate import consolidate
from scheduler.exact import best_start
from scheduler.feasibility import is_empty, survey, why_impossible, why_not_now
from scheduler.first_fit import first_fit
from scheduler.greedy import complete
from scheduler.horizon import look_ahead
from scheduler.moving import FULL, Mover
from scheduler.objective import evaluate, on_time_s, stakes, waiting
from scheduler.packing import Packer
from scheduler.plan import Outcome, Placement, Plan, PowerStep, Reason, Timetable, Verdict
from scheduler.problem import Budget, Job, Problem
from scheduler.repack import repack
from scheduler.reserve import Kept
from scheduler.resize import resize
from scheduler.search import Allowance, search
from scheduler.turns import look_ahead_simply, of_now
from scheduler.validate import consolidates, has_several_kinds, packs, validate
from scheduler.verify import verify

DEFAULT_BUDGET = Budget()

POLISH = 100
"""Moves of single jobs, at most, that save power after a fleet was packed anew."""


class PlannerError(Exception):
    """The planner broke its own rules: even its fallback plan fails verification. The message holds every violation."""


def solve(problem: Problem, budget: Budget = DEFAULT_BUDGET) -> Plan:
    """Which jobs start now and where, with a verdict for each and a proven bound.

    Jobs that may wait (`Problem.ahead`) first get their starts, and those that start later take no part in the rest.
    Equal problems and budgets give equal plans. The plan respects precedence, is never worse than the greedy one (in
    waiting, tier by tier, then in cost), and has passed the independent checker.

    Raises ValueError for a problem that makes no sense, PlannerError if no plan of ours passes the checker.
    """
    validate(problem)
    if problem.ahead is not None:
        timetable = look_ahead(problem, budget)
        return _with_later(problem, timetable, solve(of_now(problem, timetable), budget))
    return _resized(problem, _solved(problem.ranked(), budget))


def _solved(problem: Problem, budget: Budget) -> Plan:
    """The plan before any job that runs is resized."""
    if packs(problem):
        packed = _improved(problem, solve_by_packing(problem), budget)
        if packed.moves or packs(replace(problem, moves=0)):
            return packed
        # Moves were allowed and none is worth it: then it is planned like any other.

    # 1. Who could start where, and the greedy answer to it.
    candidates = find_candidates(problem)
    parts = pools(candidates)
    starts = [complete(pool, {}) for pool in parts]
    greedy = _join(candidates, parts, starts)
    priced = problem.shared_out()
    unavoidable_j = _unavoidable_j(priced, candidates)

    # 2. A better answer, and a bound of what any answer costs.
    allowance = Allowance(budget)
    found = search(parts, starts, allowance)
    searched = _join(candidates, parts, [part.choices for part in found])
    bound_j = unavoidable_j + sum(part.bound_j for part in found)
    status = "optimal" if all(part.proven for part in found) else "watchdog" if allowance.stopped else "feasible"

    # 3. The better of the two, priced by the one evaluator and checked by somebody else.
    if searched != greedy and _rank(priced, searched) < _rank(priced, greedy):
        plan = _plan(problem, searched, bound_j, "cpsat", status)
    else:
        plan = _plan(problem, greedy, bound_j, "greedy", status)
    if verify(problem, plan):
        return solve_greedily(problem)

    # 4. With that, jobs that run may move so that nodes go off.
    return _consolidated(problem, plan)


def solve_greedily(problem: Problem) -> Plan:
    """The greedy plan with the bound that needs no solver, marked `fallback`: for when the solver's process fails.

    Raises as `solve` does.
    """
    validate(problem)
    if problem.ahead is not None:
        timetable = look_ahead_simply(problem)
        return _with_later(problem, timetable, solve_greedily(of_now(problem, timetable)))
    problem = problem.ranked()
    if packs(problem):
        return solve_by_packing(problem)
    candidates = find_candidates(problem)
    placements = to_placements(candidates, complete(candidates, {}))
    return _checked(problem, _plan(problem, placements, _unavoidable_j(problem, candidates), "greedy", "fallback"))


def solve_by_packing(problem: Problem) -> Plan:
    """Jobs in line order, each where it costs least by the prices of `scheduler.packing`; and moves, if any may be, for
    those that find no room and then for power; or with nodes planned anew as a whole. Where a node has devices of
    several kinds, or where there are power budgets, each job where it fits best.

    Raises as `solve` does.
    """
    idle = evaluate(problem, ())
    bound_j = idle.off_j + idle.on_j + idle.deferred_j
    if problem.budgets or any(map(has_several_kinds, problem.nodes)):
        return _checked(problem, _plan(problem, first_fit(problem), bound_j, "greedy", "feasible"))
    allowed = 0 if consolidates(problem) else problem.moves
    if allowed and problem.anew:
        plan = _packed_anew(problem, bound_j)
        if not verify(problem, plan):
            return plan
    packer = Packer(problem)
    mover = Mover(packer, _bars_w(problem))
    placements: dict[str, Placement] = {}
    moves: dict[str, Placement] = {}
    for job in _line(problem):
        moved: list[Placement] = []
        placement = packer.start(job)
        if placement is None and (room := mover.make_room(job, allowed - len(moves))) is not None:
            moved, placement = room
        _note(moved, placements, moves)
        if placement is not None:
            placements[job.id] = placement
    _note(mover.improve(allowed - len(moves)), placements, moves)
    plan = _plan(problem, tuple(placements.values()), bound_j, "packed", "feasible")
    plan = replace(plan, moves=tuple(moves.values()))
    # Room made for one job may fit another before it in line, for which no room could be made.
    if moves and any(violation.code == "precedence" for violation in verify(problem, plan)):
        return solve_by_packing(replace(problem, moves=0))
    return _checked(problem, plan)


def _with_later(problem: Problem, timetable: Timetable, plan: Plan) -> Plan:
    """The plan of this moment with what is said of the jobs that start later, in the problem's order."""
    said = {verdict.job: verdict for verdict in plan.verdicts}
    for later in timetable.later:
        reason = Reason(
            code="cheaper_later",
            message=f"it may wait, and is to start in {later.start_s:.0f} s, when a kWh costs {later.per_kwh:g}",
        )
        said[later.job] = Verdict(job=later.job, outcome=Outcome.WAITING, reasons=(reason,))
    return replace(plan, timetable=timetable, verdicts=tuple(said[job.id] for job in problem.jobs))


def _packed_anew(problem: Problem, bound_j: float) -> Plan:
    """The plan with nodes planned anew, within the moves that may be."""
    packer, bars_w = Packer(problem), _bars_w(problem)
    placements: dict[str, Placement] = {}
    moves: dict[str, Placement] = {}
    waiting: list[Job] = []
    for job in _line(problem):
        placement = packer.start(job)
        if placement is None:
            waiting.append(job)
        else:
            placements[job.id] = placement
    changed = repack(packer, waiting, bars_w, problem.moves)
    if packer.fleet.load() < FULL:
        changed += Mover(packer, bars_w).improve(min(POLISH, problem.moves - len(changed)))
    running = {one.job.id for one in problem.running}
    for placement in changed:
        (moves if placement.job in running else placements)[placement.job] = placement
    plan = _plan(problem, tuple(placements.values()), bound_j, "packed", "feasible")
    return replace(plan, moves=tuple(moves.values()))


def _line(problem: Problem) -> list[Job]:
    return sorted(problem.jobs, key=lambda job: (-job.priority, job.order, job.id))


def _bars_w(problem: Problem) -> dict[str, float]:
    """What moving each job that runs must save, in W, over the time that it goes on."""
    return {one.job.id: one.move_j / min(problem.horizon_s, one.job.shapes[one.shape].run_s) for one in problem.running}


def _improved(problem: Problem, packed: Plan, budget: Budget) -> Plan:
    """The packed plan, or a better one of this moment where the problem is small enough to be sure of it.

    With an outlook or moves a plan is to be good for what is still to come, which no exact model here knows of.
    """
    if problem.outlook or problem.moves:
        return packed
    found = best_start(problem, packed.placements, budget)
    if found is None:
        return packed
    better = _rank(problem, found.placements) < _rank(problem, packed.placements)
    plan = _plan(
        problem,
        found.placements if better else packed.placements,
        max(packed.bound_j, found.bound_j),
        "cpsat" if better else packed.method,
        "optimal" if found.optimal else "watchdog" if found.stopped else packed.status,
    )
    return packed if verify(problem, plan) else plan


def _consolidated(problem: Problem, plan: Plan) -> Plan:
    """The plan with moves that let nodes go off, if any are worth it."""
    moves = consolidate(problem, plan.placements) if problem.moves and consolidates(problem) else ()
    if not moves:
        return plan
    needed = {member.node for move in moves for member in move.members}
    steps = tuple(step for step in plan.power_steps if step.node not in needed)
    moved = replace(plan, moves=moves, power_steps=steps)
    return plan if verify(problem, moved) else moved


def _resized(problem: Problem, plan: Plan) -> Plan:
    """The plan with jobs that run resized, if it moves none and that is worth it."""
    if not problem.resizes or plan.moves:
        return plan
    found = resize(problem, plan.placements)
    if not found.moves:
        return plan
    resized = plan
    if found.starts:
        # The bound spoke of plans without that room.
        idle = evaluate(problem, ())
        bound_j = idle.off_j + idle.on_j + idle.deferred_j
        resized = _plan(problem.ranked(), (*plan.placements, *found.starts), bound_j, plan.method, "feasible")
    needed = {member.node for placement in (*found.moves, *found.starts) for member in placement.members}
    steps = tuple(step for step in resized.power_steps if step.node not in needed)
    resized = replace(resized, moves=found.moves, power_steps=steps)
    return plan if verify(problem, resized) else resized


def _note(moved: Sequence[Placement], placements: dict[str, Placement], moves: dict[str, Placement]) -> None:
    """A job that this plan starts has not moved: it starts elsewhere."""
    for placement in moved:
        (placements if placement.job in placements else moves)[placement.job] = placement


def _checked(problem: Problem, plan: Plan) -> Plan:
    violations = verify(problem, plan)
    if violations:
        raise PlannerError("; ".join(f"{violation.code}: {violation.message}" for violation in violations))
    return plan


def _join(candidates: Candidates, parts: Sequence[Candidates], choices: Sequence[Choices]) -> tuple[Placement, ...]:
    """Placements of all pools, in line order."""
    placements = {
        placement.job: placement
        for pool, chosen in zip(parts, choices, strict=True)
        for placement in to_placements(pool, chosen)
    }
    return tuple(placements[candidate.job.id] for candidate in candidates.line if candidate.job.id in placements)


def _unavoidable_j(problem: Problem, candidates: Candidates) -> float:
    """What every plan costs, in J: nodes as they are, each job's cheapest shape, and waits that nothing can end."""
    idle = evaluate(problem, ())
    stuck = sum(candidate.stake.wait_j for candidate in candidates.line if not candidate.options)
    return idle.off_j + idle.on_j + idle.deferred_j + stuck


def _rank(problem: Problem, placements: Sequence[Placement]) -> tuple[tuple[int, ...], float]:
    """Plans in order of preference: who waits, tier by tier, then what it costs."""
    return waiting(problem, placements), evaluate(problem, placements).total_j


def _plan(problem: Problem, placements: tuple[Placement, ...], bound_j: float, method: str, status: str) -> Plan:
    cost = evaluate(problem, placements)
    return Plan(
        placements=placements,
        verdicts=_verdicts(problem, placements),
        power_steps=_power_steps(problem, placements),
        cost=cost,
        # Sums in another order differ in the last digits, which must not put the bound above a plan that reaches it.
        bound_j=min(bound_j, cost.total_j) if bound_j <= cost.total_j * (1 + 1e-9) else bound_j,
        method=method,
        status=status,
    )


def _verdicts(problem: Problem, placements: Sequence[Placement]) -> tuple[Verdict, ...]:
    if not problem.jobs:
        return ()
    placed = {placement.job for placement in placements}
    possible = stakes(problem)
    rooms = survey(problem.nodes)
    kept = Kept(problem)
    ceilings = Ceilings(problem, placements)
    verdicts: list[Verdict] = []
    for job in problem.jobs:
        if job.id in placed:
            verdicts.append(Verdict(job=job.id, outcome=Outcome.PLACED))
        elif job.id in possible:
            reasons = kept.why(job, rooms.free) or ceilings.why(job) or why_not_now(job, rooms, len(placed))
            verdicts.append(Verdict(job=job.id, outcome=Outcome.WAITING, reasons=reasons))
        else:
            reasons = why_impossible(job.shapes, rooms.total)
            verdicts.append(Verdict(job=job.id, outcome=Outcome.IMPOSSIBLE, reasons=reasons))
    return tuple(verdicts)


def _power_steps(problem: Problem, placements: Sequence[Placement]) -> tuple[PowerStep, ...]:
    """Boots that placements need, and empty nodes worth switching off, each with what it saves over the horizon."""
    jobs = {job.id: job for job in problem.jobs}
    ends: dict[str, float] = {}
    for placement in placements:
        job = jobs[placement.job]
        end_s = job.staged_s(member.node for member in placement.members) + job.shapes[placement.shape].run_s
        for member in placement.members:
            ends[member.node] = max(ends.get(member.node, 0.0), end_s)
    steps: list[PowerStep] = []
    for node in problem.nodes:
        rate_w = node.power.base_w - node.power.off_w
        if not node.on and node.id in ends:
            costs_j = node.power.boot_j + rate_w * on_time_s(node, ends, problem.horizon_s)
            steps.append(PowerStep(node=node.id, on=True, saves_j=-problem.pue * costs_j))
        elif node.on and node.can_switch and node.open and node.id not in ends and is_empty(node):
            steps.append(PowerStep(node=node.id, on=False, saves_j=problem.pue * rate_w * problem.horizon_s))
    return tuple(steps)

"""The checker finds nothing in a good plan, and every mistake planted in it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from scheduler.plan import MemberPlacement, Outcome, Placement, Plan, PowerStep, Reason, Verdict
from scheduler.problem import Problem
from scheduler.solve import solve
from scheduler.verify import verify
from tests.builders import HOUR, job, node, problem, shape, switchable

NODES = [
    node("a", h100=4, cores=8, memory=8),
    switchable(node("b", h100=4, cores=8, memory=8), on=False),
    node("busy", h100=2, busy=1),
    node("closed", h100=8, is_open=False),
    node("cpu", cpu=4),
    node("gone", h100=4, on=False),
    switchable(node("idle", t4=4)),
]
JOBS = [
    job("gang-1", shape(3, members=2), priority=2),
    job("alone-2", shape(1), priority=1),
    job("cpu-3", shape(2, kind="cpu")),
    job("twin-4", shape(2, kind="cpu")),
    job("twin-5", shape(2, kind="cpu")),
    job("never-6", shape(9)),
]
CASE = problem(NODES, JOBS, pue=1.2)
GOOD = solve(CASE)

Change = Callable[[Plan], Plan]


def codes(plan: Plan, of: Problem = CASE) -> set[str]:
    return {violation.code for violation in verify(of, plan)}


def placed(plan: Plan, name: str) -> Placement:
    return next(placement for placement in plan.placements if placement.job == name)


def with_placement(name: str, change: Callable[[Placement], Placement]) -> Change:
    """A plan in which one job's placement is another."""
    return lambda plan: replace(
        plan, placements=tuple(change(entry) if entry.job == name else entry for entry in plan.placements)
    )


def on(name: str, *members: tuple[str, tuple[str, ...]]) -> Change:
    """A plan in which a job stands elsewhere."""
    moved = tuple(MemberPlacement(node=where, devices=devices) for where, devices in members)
    return with_placement(name, lambda entry: replace(entry, members=moved))


def with_verdict(name: str, **fields: object) -> Change:
    return lambda plan: replace(
        plan, verdicts=tuple(replace(v, **fields) if v.job == name else v for v in plan.verdicts)
    )


def with_cost(term: str) -> Change:
    return lambda plan: replace(plan, cost=replace(plan.cost, **{term: getattr(plan.cost, term) + 1.0}))


def with_steps(*steps: PowerStep) -> Change:
    return lambda plan: replace(plan, power_steps=steps)


BOOT, OFF = PowerStep(node="b", on=True, saves_j=-1.0), PowerStep(node="idle", on=False, saves_j=1.0)


def test_the_plan_that_the_mistakes_are_planted_in_is_good() -> None:
    assert verify(CASE, GOOD) == []
    where = {entry.job: [member.node for member in entry.members] for entry in GOOD.placements}
    assert where == {"gang-1": ["a", "b"], "alone-2": ["a"], "cpu-3": ["cpu"], "twin-4": ["cpu"]}
    assert [(step.node, step.on) for step in GOOD.power_steps] == [("b", True), ("idle", False)]


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("placed_twice", lambda plan: replace(plan, placements=(*plan.placements, plan.placements[0]))),
        ("unknown_job", with_placement("cpu-3", lambda entry: replace(entry, job="nobody"))),
        ("unknown_shape", with_placement("cpu-3", lambda entry: replace(entry, shape=1))),
        ("unknown_shape", with_placement("cpu-3", lambda entry: replace(entry, shape=-1))),
        ("not_whole", with_placement("gang-1", lambda entry: replace(entry, members=entry.members[:1]))),
        ("shared_node", with_placement("gang-1", lambda entry: replace(entry, members=entry.members[:1] * 2))),
        ("unknown_node", on("alone-2", ("nowhere", ("x",)))),
        ("closed_node", on("alone-2", ("closed", ("closed-h100-0",)))),
        ("node_off", on("alone-2", ("gone", ("gone-h100-0",)))),
        ("device_count", on("alone-2", ("a", ()))),
        ("device_count", on("alone-2", ("b", ("b-h100-3", "b-h100-2")))),
        ("foreign_device", on("alone-2", ("a", ("b-h100-3",)))),
        ("wrong_kind", on("alone-2", ("cpu", ("cpu-cpu-0",)))),
        ("device_busy", on("alone-2", ("busy", ("busy-h100-0",)))),
        ("device_twice", on("alone-2", ("a", ("a-h100-0",)))),
        ("verdicts", lambda plan: replace(plan, verdicts=plan.verdicts[:-1])),
        ("verdicts", lambda plan: replace(plan, verdicts=plan.verdicts[::-1])),
        ("verdicts", lambda plan: replace(plan, verdicts=(*plan.verdicts, plan.verdicts[0]))),
        ("wrong_verdict", with_verdict("twin-5", outcome=Outcome.IMPOSSIBLE)),
        ("wrong_verdict", with_verdict("never-6", outcome=Outcome.WAITING)),
        ("wrong_verdict", with_verdict("cpu-3", outcome=Outcome.WAITING, reasons=(Reason(code="x", message="x"),))),
        ("reasons", with_verdict("twin-5", reasons=())),
        ("reasons", with_verdict("cpu-3", reasons=(Reason(code="x", message="x"),))),
        ("precedence", with_placement("twin-4", lambda entry: replace(entry, job="twin-5"))),
        ("steps_twice", with_steps(BOOT, OFF, OFF)),
        ("step_missing", with_steps(OFF)),
        ("step_useless", with_steps(BOOT, PowerStep(node="a", on=False, saves_j=1.0))),
        ("step_useless", with_steps(BOOT, PowerStep(node="idle", on=True, saves_j=1.0))),
        ("step_useless", with_steps(BOOT, PowerStep(node="nowhere", on=True, saves_j=1.0))),
        *[("cost", with_cost(term)) for term in ("off_j", "on_j", "boot_j", "work_j", "deferred_j", "wait_j")],
        ("bound", lambda plan: replace(plan, bound_j=plan.objective_j * 1.001)),
        ("bound", lambda plan: replace(plan, bound_j=float("nan"))),
    ],
)
def test_every_planted_mistake_is_found(code: str, change: Change) -> None:
    assert code in codes(change(GOOD))


def test_a_boot_for_nothing_and_switching_off_a_busy_node_are_found() -> None:
    quiet = problem([switchable(node("a", h100=2), on=False), switchable(node("b", h100=2, busy=1, busy_s=HOUR))], [])
    plan = solve(quiet)
    assert verify(quiet, plan) == []
    assert codes(with_steps(PowerStep(node="a", on=True, saves_j=0.0))(plan), quiet) == {"step_idle_boot"}
    assert codes(with_steps(PowerStep(node="b", on=False, saves_j=0.0))(plan), quiet) == {"step_off_busy"}


@pytest.mark.parametrize(
    ("code", "tight"),
    [("cores_exceeded", node("a", h100=4, free_cores=3)), ("memory_exceeded", node("a", h100=4, free_memory=3))],
)
def test_cpu_and_memory_count_over_all_jobs_of_a_node(code: str, tight: object) -> None:
    jobs = [job("j1", shape(1, cores=2, memory=2)), job("j2", shape(1, cores=2, memory=2))]
    roomy = problem([node("a", h100=4)], jobs)
    assert codes(solve(roomy), replace(roomy, nodes=(tight,))) == {code}


@pytest.mark.parametrize(
    ("waiter", "found"),
    [
        (shape(2), True),
        (shape(1), True),
        (shape(3), False),
        (shape(1, cores=3), False),
        (shape(1, memory=3), False),
        (shape(1, kind="t4"), False),
        (shape(1, members=2), False),
    ],
)
def test_a_job_of_higher_priority_that_could_take_the_place_over_is_found(waiter: object, found: bool) -> None:
    holder = job("low-1", shape(2, cores=2, memory=2), priority=0)
    jobs = [job("high-2", waiter, priority=1), holder]
    nodes = [node("a", h100=2), node("b", h100=4, t4=1, busy=5), node("c", h100=4, busy=4)]
    alone = solve(problem(nodes, [holder]))
    reasons = (Reason(code="x", message="x"),)
    plan = replace(alone, verdicts=(Verdict(job="high-2", outcome=Outcome.WAITING, reasons=reasons), *alone.verdicts))
    assert ("precedence" in codes(plan, problem(nodes, jobs))) == found


def test_a_node_may_hold_work_that_is_longer_than_the_horizon() -> None:
    long = problem([switchable(node("a", h100=1))], [job("j1", shape(1, run_s=100 * HOUR))])
    assert verify(long, solve(long)) == []


def test_a_container_on_a_node_that_runs_none() -> None:
    lame = node("a", h100=4, container_fault="podman is not installed")
    wanted = [job("boxed-1", shape(1, in_container=True))]
    plan = solve(problem([lame, node("b", h100=4)], wanted))
    assert verify(problem([lame, node("b", h100=4)], wanted), plan) == []
    assert [member.node for member in plan.placements[0].members] == ["b"]
    assert "no_container" in codes(
        on("boxed-1", ("a", ("a-h100-0",)))(plan), problem([lame, node("b", h100=4)], wanted)
    )
    assert codes(plan, problem([lame, replace(lame, id="b", devices=node("b", h100=4).devices)], wanted)) >= {
        "no_container"
    }

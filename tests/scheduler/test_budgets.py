"""Power budgets: what no plan may pass, in one moment and over time, and what is said to whom they keep waiting."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.budgets import Headroom, Never, limits
from scheduler.codec import decode_problem, encode_problem
from scheduler.plan import Outcome, Plan
from scheduler.problem import Hold, Node, NodePower, PowerBudget, Problem, Reservation, Running
from scheduler.reserve import OVERTAKEN_S, reserve
from scheduler.simulate import Arrival, Decision, Switching, simulate
from scheduler.solve import solve, solve_greedily
from scheduler.verify import verify
from tests.builders import job, node, placement, problem, shape, switchable

IDLE = NodePower(base_w=1000.0, off_w=10.0, boot_s=300.0, boot_j=360_000.0)
"""It draws 1200 W while it boots."""


def under(watts: float, nodes: list[Node], *jobs: object, names: str = "") -> Problem:
    """The jobs on the nodes, all of which, or those in `names`, may draw so many watts."""
    group = tuple(names) or tuple(node.id for node in nodes)
    return replace(problem(nodes, list(jobs)), budgets=(PowerBudget(name="hall", watts=watts, nodes=group),))


def started(plan: Plan) -> list[str]:
    return sorted(placed.job for placed in plan.placements)


def reasons(plan: Plan, name: str) -> list[tuple[str, str]]:
    verdict = next(verdict for verdict in plan.verdicts if verdict.job == name)
    return [(reason.code, reason.message) for reason in verdict.reasons]


def test_as_many_jobs_start_as_the_budget_allows_and_the_next_says_what_it_lacks() -> None:
    jobs = [job(f"j{number}", shape(active_w=400.0)) for number in range(4)]
    plan = solve(under(2000.0, [node("a", h100=8)], *jobs))
    assert started(plan) == ["j0", "j1"]
    message = "devices are free, but power budget hall leaves 200 of 2000 W free, and the job needs 400 W there"
    assert reasons(plan, "j2") == reasons(plan, "j3") == [("power_budget", message)]
    assert plan.status == "optimal"


def test_a_job_that_lacks_devices_too_is_not_put_down_to_the_budget() -> None:
    plan = solve(under(1100.0, [node("a", busy=1, h100=2)], job("j0", shape(2, active_w=400.0))))
    assert [code for code, _ in reasons(plan, "j0")] == ["never_within_budget"]
    plan = solve(under(1900.0, [node("a", busy=1, h100=2)], job("j0", shape(2, active_w=400.0))))
    assert [code for code, _ in reasons(plan, "j0")] == ["devices_busy"]


def test_what_runs_counts_and_is_never_stopped_though_the_budget_is_passed() -> None:
    busy = replace(node("a", busy=4, h100=8), busy_w=1600.0)
    plan = solve(under(1800.0, [busy, node("b", h100=8)], job("j0"), job("j1", shape(kind="cpu")), names="a"))
    assert [member.node for placed in plan.placements for member in placed.members] == ["b"]


def test_a_node_is_not_booted_where_its_boot_does_not_fit() -> None:
    asleep = switchable(node("a", power=IDLE, h100=8), on=False)
    small = job("j0", shape(active_w=100.0))
    assert started(solve(under(1199.0, [asleep], small))) == []
    assert started(solve(under(1200.0, [asleep], small))) == ["j0"]
    # Once it boots, all that stays below the boot's draw is free of charge.
    booting = replace(asleep, on=True, booting=True)
    twins = [job(f"j{number}", shape(active_w=100.0)) for number in range(3)]
    assert started(solve(under(1200.0, [booting], *twins))) == ["j0", "j1"]


def test_who_has_precedence_gets_the_watts() -> None:
    jobs = [job("j0", shape(active_w=400.0)), job("j1", shape(active_w=500.0), priority=5)]
    assert started(solve(under(1500.0, [node("a", h100=8)], *jobs))) == ["j1"]


def test_a_budget_of_one_rack_sends_jobs_to_another() -> None:
    nodes = [node("a", h100=8), node("b", h100=8)]
    jobs = [job(f"j{number}", shape(active_w=400.0)) for number in range(3)]
    plan = solve(under(1400.0, nodes, *jobs, names="a"))
    assert started(plan) == ["j0", "j1", "j2"]
    assert sum(member.node == "a" for placed in plan.placements for member in placed.members) <= 1


def test_budgets_that_overlap_in_part_are_kept_all_the_same() -> None:
    """Taking what adds least would put a member on b, after which neither budget leaves room for the other."""
    machines = [node(name, h100=1, power=NodePower(base_w=watts)) for name, watts in (("a", 0.0), ("b", 0.0))]
    machines += [node("c", h100=1, power=NodePower(base_w=0.0))]
    of = replace(
        problem(machines, [job("j0", shape(members=2, active_w=400.0))]),
        budgets=(
            PowerBudget(name="pool", watts=400.0, nodes=("a", "b")),
            PowerBudget(name="rack", watts=400.0, nodes=("b", "c")),
        ),
    )
    assert {member.node for placed in solve(of).placements for member in placed.members} == {"a", "c"}
    assert Headroom(limits(of)).pick([("b", 400_000), ("a", 400_000), ("c", 400_000)], 2) == [1, 2]


def test_a_job_that_no_budget_could_ever_let_start_is_told_so() -> None:
    machines = [switchable(node("a", power=IDLE, h100=8)), node("b", power=IDLE, h100=8)]
    budgets = (PowerBudget(name="hall", watts=2500.0, nodes=("a", "b")),)
    (reason,) = Never(machines, budgets).why([shape(4, active_w=400.0)])
    assert reason.code == "never_within_budget"
    assert "allows 2500 W, its nodes draw 1010 W of that" in reason.message
    assert "the job needs 1600 W there" in reason.message
    assert Never(machines, budgets).why([shape(4, active_w=400.0), shape(3, active_w=400.0)]) == ()
    plan = solve(replace(problem(machines, [job("j0", shape(4, active_w=400.0))]), budgets=budgets))
    assert [verdict.outcome for verdict in plan.verdicts] == [Outcome.WAITING]
    assert [code for code, _ in reasons(plan, "j0")] == ["never_within_budget"]


def test_shares_of_a_device_in_use_add_nothing_and_others_its_draw_once() -> None:
    half = replace(shape(active_w=400.0), share=500)
    jobs = [job(f"j{number}", half) for number in range(4)]
    plan = solve(under(1400.0, [node("a", h100=4)], *jobs))
    assert started(plan) == ["j0", "j1"]
    assert started(solve_greedily(under(1400.0, [node("a", h100=4)], *jobs))) == ["j0", "j1"]


def test_the_checker_refuses_a_plan_above_a_budget() -> None:
    one = problem([node("a", h100=8)], [job("j0")])
    plan = solve(one)
    tight = replace(one, budgets=(PowerBudget(name="hall", watts=1399.0, nodes=("a",)),))
    assert [violation.code for violation in verify(tight, plan)] == ["over_budget"]
    assert verify(replace(one, budgets=(PowerBudget(name="hall", watts=1400.0, nodes=("a",)),)), plan) == []


def test_a_waiting_job_that_would_draw_more_has_no_claim_on_the_place_of_another() -> None:
    jobs = [job("j0", shape(active_w=500.0), priority=5), job("j1", shape(active_w=400.0))]
    of = under(1400.0, [node("a", h100=8)], *jobs)
    plan = solve(of)
    assert started(plan) == ["j1"]
    assert plan.placements == (placement("j1", ("a", ["a-h100-0"])),)


def test_a_recorded_problem_keeps_its_budgets() -> None:
    of = under(1399.0, [replace(node("a", h100=8), busy_w=3.5, booting=True)], job("j0"))
    assert decode_problem(encode_problem(of)) == of
    assert solve(decode_problem(encode_problem(of))) == solve(of)


def test_a_budget_that_makes_no_sense_is_refused() -> None:
    of = problem([node("a", h100=1)], [])
    twice = (PowerBudget(name="hall", watts=-1.0, nodes=("a",)), PowerBudget(name="hall", watts=5.0, nodes=("z",)))
    with pytest.raises(ValueError, match="budget hall occurs 2 times") as raised:
        solve(replace(of, budgets=twice))
    assert "budget hall: watts is -1.0, must be at least 0" in str(raised.value)
    assert "budget hall names z, no node of the problem" in str(raised.value)
    with pytest.raises(ValueError, match="there are power budgets: give neither an outlook nor moves"):
        solve(replace(of, moves=1, budgets=twice[:1]))


def test_small_jobs_cannot_keep_a_large_one_from_the_watts_for_ever() -> None:
    """Whenever a small job ends another waits, and the watts of one never do for the large one."""
    nodes = [node("a", h100=8, power=NodePower(base_w=1000.0)), node("b", h100=8, power=NodePower(base_w=1000.0))]
    budget = PowerBudget(name="hall", watts=3200.0, nodes=("a", "b"))
    small = [
        Arrival(at_s=900.0 * number, job=job(f"j{number}", shape(run_s=4000.0)), runs_s=(4000.0,))
        for number in range(40)
    ]
    large = Arrival(at_s=1000.0, job=job("j50", shape(3, run_s=1000.0), order=1), runs_s=(1000.0,))
    waits: list[str] = []

    def planned(of: Problem) -> Decision:
        plan = solve(of)
        if any(one.id == "j50" for one in of.jobs) and of.reservation:
            waits.extend(code for code, _ in reasons(plan, "j50"))
        return Decision(placements=plan.placements)

    always_on = Switching(idle_s=0.0, suspend_s=0.0)
    window = simulate(nodes, [*small, large], planned, always_on, budgets=(budget,))
    (run,) = [run for run in window.runs if run.job == "j50"]
    assert run.wait_s <= OVERTAKEN_S + 4000.0, "once it has been overtaken for long enough nothing new starts before it"
    assert set(waits) <= {"nodes_kept"}
    assert window.peaks_w[0] <= 3200.0


def test_a_reservation_keeps_the_nodes_of_the_budget_that_lacks_watts() -> None:
    busy = replace(node("a", busy=2, h100=8, busy_s=600.0), busy_w=800.0)
    holds = (Hold(node="a", devices=("a-h100-0",)),)
    running = tuple(
        Running(job=job(f"j{number}", shape(run_s=run_s)), shape=0, members=holds)
        for number, run_s in ((8, 300.0), (9, 600.0))
    )
    big = job("j1", shape(3))
    of = replace(under(2400.0, [busy, node("b", h100=2), node("c", h100=8)], big, names="ab"), running=running)
    assert reserve(of, big) == Reservation(job="j1"), "c is bound by no budget"

    def kept(watts: float) -> Reservation | None:
        return reserve(replace(of, budgets=(PowerBudget(name="hall", watts=watts, nodes=("a", "b", "c")),)), big)

    assert kept(5000.0) == Reservation(job="j1")
    assert kept(4600.0) == Reservation(job="j1", nodes=("a", "b", "c"), free_s=300.0)
    assert kept(4200.0) == Reservation(job="j1", nodes=("a", "b", "c"), free_s=600.0)
    assert kept(4100.0) is None, "it can never start"


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[Node], list[Arrival], tuple[PowerBudget, ...]]:
    """Nodes of two racks, jobs that take longer or shorter than they say, and budgets that let each start some time."""
    power = NodePower(base_w=300.0, off_w=10.0, boot_s=100.0, boot_j=draw(st.sampled_from((20_000.0, 60_000.0))))
    nodes = [
        switchable(node(name, power=power, h100=4), on=draw(st.booleans()))
        for name in ("a1", "a2", "b1")[: draw(st.integers(1, 3))]
    ]
    names = tuple(node.id for node in nodes)
    arrivals: list[Arrival] = []
    for number in range(draw(st.integers(1, 7))):
        run_s = draw(st.sampled_from((50.0, 400.0, 4000.0)))
        asked = shape(draw(st.sampled_from((1, 1, 2, 4))), run_s=run_s, active_w=draw(st.sampled_from((50.0, 100.0))))
        one = job(f"j{number}", asked, priority=draw(st.sampled_from((0, 0, 5))))
        real_s = run_s * draw(st.sampled_from((0.3, 1.0, 2.5)))
        arrivals.append(Arrival(at_s=draw(st.sampled_from((0.0, 10.0, 600.0))), job=one, runs_s=(real_s,)))
    rest = 10.0 * len(nodes)
    hall = PowerBudget(name="hall", watts=rest + draw(st.sampled_from((700.0, 900.0, 1200.0, 1600.0))), nodes=names)
    rack = PowerBudget(name="rack", watts=rest + draw(st.sampled_from((700.0, 800.0, 1000.0))), nodes=names[:2])
    return nodes, arrivals, draw(st.sampled_from(((hall,), (rack,), (hall, rack))))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(windows())
def test_no_budget_is_passed_at_any_time_and_every_job_runs(
    drawn: tuple[list[Node], list[Arrival], tuple[PowerBudget, ...]],
) -> None:
    nodes, arrivals, budgets = drawn
    drew_w = [sum(300.0 if n.on else 10.0 for n in nodes if n.id in budget.nodes) for budget in budgets]

    def planned(of: Problem) -> Decision:
        plan = solve(of)
        assert verify(of, plan) == []
        return Decision(placements=plan.placements, off=[step.node for step in plan.power_steps if not step.on])

    window = simulate(nodes, arrivals, planned, Switching(idle_s=0.0, suspend_s=0.0), budgets=budgets)
    assert len(window.runs) == len(arrivals)
    for budget, peak_w, at_first_w in zip(budgets, window.peaks_w, drew_w, strict=True):
        assert peak_w <= max(budget.watts, at_first_w) + 1e-6

"""Power caps: what they cost and save, when a plan takes one, and what the checker makes of a wrong one."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.time.policies import ours
from scheduler.caps import least_cap_w, with_caps, work_share
from scheduler.plan import Plan
from scheduler.power import active_w, device_power
from scheduler.problem import Isolation, Job, PowerBudget, Problem, Shape
from scheduler.simulate import Arrival, Switching, simulate
from scheduler.solve import solve
from scheduler.verify import verify
from tests.builders import HOUR, job, node, problem, shape

CAPPING = replace(node("a", h100=4), can_cap=True)


def slowed(name: str, may_slow: float, *shapes: Shape) -> Job:
    given = job(name, *(shapes or (shape(),)))
    least_w = {each.kind: 0.0 for each in given.shapes}
    return replace(given, shapes=with_caps(given.shapes, may_slow, least_w), may_slow=may_slow)


def chosen(of: Problem, plan: Plan) -> list[Shape]:
    jobs = {each.id: each for each in of.jobs}
    return [jobs[placed.job].shapes[placed.shape] for placed in plan.placements]


@pytest.mark.parametrize(
    ("kind", "measured"),
    [
        ("v100", {0.6: 0.89, 0.7: 0.93, 0.8: 0.96}),
        ("rtx6000", {0.6: 0.88, 0.7: 0.92, 0.8: 0.95}),
        ("a40", {0.6: 0.85, 0.7: 0.96, 0.8: 0.99}),
        ("p100", {0.6: 0.95, 0.7: 0.98, 0.8: 1.0}),
    ],
)
def test_the_model_tells_what_was_measured(kind: str, measured: dict[float, float]) -> None:
    """Medians of Zeus's power-hungry programs, by cap over the power limit, beside a program of their mean draw."""
    power = device_power(kind)
    for share, work in measured.items():
        told = work_share(kind, active_w(kind), share * power.limit_w)
        assert told == pytest.approx(work, abs=0.06)


@settings(deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(("v100", "a40", "p100-pcie", "a100", "h100-80gb-hbm3", "some-gpu")),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.floats(0.0, 500.0),
)
def test_caps_slow_down_no_more_than_allowed_and_save_energy(
    kind: str, utilisation: float, may_slow: float, least_w: float
) -> None:
    free = shape(2, kind=kind, active_w=active_w(kind, utilisation=utilisation))
    for capped in with_caps([free], may_slow, {kind: least_w})[1:]:
        assert max(least_w, least_cap_w(kind)) <= capped.cap_w <= device_power(kind).limit_w
        assert free.run_s <= capped.run_s <= free.run_s * (1 + may_slow)
        assert capped.work_j < free.work_j
        assert capped.active_w == capped.cap_w - device_power(kind).bare_idle_w


def test_only_whole_accelerators_of_kinds_that_may_be_capped_get_caps() -> None:
    part = replace(shape(), share=500, isolation=Isolation.NONE)
    shapes = [shape(), part, shape(kind="cpu"), shape(kind="v100")]
    caps = with_caps(shapes, 0.1, {"h100": 0.0, "cpu": 0.0})[len(shapes) :]
    assert {each.kind for each in caps} == {"h100"}
    assert all(not each.shared for each in caps)
    assert with_caps(shapes, 0.0, {"h100": 0.0}) == tuple(shapes)


def test_a_plan_caps_where_that_saves_and_the_agent_can() -> None:
    able = problem([CAPPING], [slowed("j1", 0.05)])
    plan = solve(able)
    assert verify(able, plan) == []
    assert [each.cap_w > 0 for each in chosen(able, plan)] == [True]
    assert plan.status == "optimal"
    unable = problem([node("a", h100=4)], [slowed("j1", 0.05)])
    assert [each.cap_w for each in chosen(unable, solve(unable))] == [0.0]


def test_a_node_that_stays_on_longer_for_it_makes_a_cap_not_worth_it() -> None:
    alone = replace(CAPPING, can_switch=True, power=replace(CAPPING.power, base_w=5000.0))
    plan = solve(problem([alone], [slowed("j1", 0.05)]))
    assert plan.placements[0].shape == 0


def test_more_jobs_fit_a_power_budget_when_they_are_capped() -> None:
    jobs = [slowed(f"j{number}", 0.1) for number in range(2)]
    budget = PowerBudget(name="hall", watts=1000.0 + 780.0, nodes=("a",))
    tight = replace(problem([CAPPING], jobs), budgets=(budget,))
    plan = solve(tight)
    assert verify(tight, plan) == []
    assert len(plan.placements) == 2
    rigid = replace(tight, jobs=tuple(job(each.id) for each in jobs))
    assert len(solve(rigid).placements) == 1


def test_the_checker_refuses_caps_that_are_not_allowed() -> None:
    good = problem([CAPPING], [slowed("j1", 0.05)])
    plan = solve(good)
    planned = good.jobs[0]
    part = replace(planned, shapes=tuple(replace(each, share=500) for each in planned.shapes))
    wrong = {
        "too_slow": replace(good, jobs=(replace(planned, may_slow=0.02),)),
        "cannot_cap": replace(good, nodes=(replace(CAPPING, can_cap=False),)),
        "capped_share": replace(good, jobs=(part,)),
    }
    for code, other in wrong.items():
        assert code in {violation.code for violation in verify(other, plan)}
    for code in ("too_slow", "capped_share"):
        with pytest.raises(ValueError, match=r"run_s is .* may_slow|only whole accelerators"):
            solve(wrong[code])


def test_a_capped_plan_costs_the_same_joules_in_planner_and_simulator() -> None:
    planned = slowed("j1", 0.05)
    plan = solve(problem([CAPPING], [planned], pue=1.2))
    arrival = Arrival(at_s=0.0, job=planned, runs_s=tuple(each.run_s for each in planned.shapes))
    window = simulate([CAPPING], [arrival], ours, Switching(idle_s=0.0), pue=1.2)
    assert window.runs[0].shape == plan.placements[0].shape > 0
    assert HOUR < window.end_s <= 1.05 * HOUR
    assert window.work_j == pytest.approx(plan.cost.work_j)

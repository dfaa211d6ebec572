"""What every plan must be, against an oracle that tries them all."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.problems import draw_problem
from scheduler import search
from scheduler import solve as recipe
from scheduler.greedy import complete
from scheduler.objective import waiting
from scheduler.plan import Outcome, Plan, PowerStep
from scheduler.problem import Budget, Problem
from scheduler.solve import PlannerError, solve, solve_greedily
from scheduler.verify import Violation, verify
from tests import oracle, strategies
from tests.builders import HOUR, job, node, problem, shape, switchable

AMPLE = Budget(deterministic_s=5.0, watchdog_s=60.0)
STARVED = Budget(deterministic_s=1e-9)
"""The solver gets no further than its first look: greedy rules and the linear relaxation do the work."""

NO_SOLVER = Budget(deterministic_s=0.0)

tiny = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


def nodes_of(plan: Plan) -> dict[str, list[str]]:
    """Where each placed job runs."""
    return {placement.job: [member.node for member in placement.members] for placement in plan.placements}


def rank(which: Problem, plan: Plan) -> tuple[tuple[int, ...], float]:
    return waiting(which, plan.placements), plan.objective_j


@tiny
@given(strategies.problems())
def test_with_time_the_plan_is_the_best_there_is_and_proven(tried: Problem) -> None:
    plan = solve(tried, AMPLE)
    assert verify(tried, plan) == []
    true = oracle.best(tried)
    assert waiting(tried, plan.placements) == true.waiting
    # The solver counts in whole steps, each a small fraction of the largest coefficient.
    assert plan.objective_j == pytest.approx(true.cost_j, rel=1e-6, abs=1.0)
    assert plan.bound_j == pytest.approx(true.cost_j, rel=1e-6, abs=1.0)
    assert plan.status == "optimal"


@tiny
@given(strategies.problems(max_jobs=5), st.sampled_from((STARVED, NO_SOLVER)))
def test_without_time_the_plan_is_sound_and_its_bound_is_true(tried: Problem, budget: Budget) -> None:
    plan = solve(tried, budget)
    assert verify(tried, plan) == []
    true = oracle.best(tried)
    assert plan.bound_j <= true.cost_j * (1 + 1e-9)
    assert rank(tried, plan) >= (true.waiting, true.cost_j * (1 - 1e-9))
    assert rank(tried, plan) <= rank(tried, solve_greedily(tried))
    if plan.status == "optimal":
        assert waiting(tried, plan.placements) == true.waiting
        assert plan.objective_j == pytest.approx(true.cost_j, rel=1e-6, abs=1.0)


@tiny
@given(strategies.problems(), st.randoms(use_true_random=False))
def test_the_order_of_nodes_and_jobs_in_the_problem_does_not_matter(tried: Problem, random: object) -> None:
    nodes, jobs = list(tried.nodes), list(tried.jobs)
    random.shuffle(nodes)
    random.shuffle(jobs)
    shuffled = replace(tried, nodes=tuple(nodes), jobs=tuple(jobs))
    one, other = solve(tried), solve(shuffled)
    assert one.placements == other.placements
    assert [verdict.job for verdict in other.verdicts] == [job.id for job in jobs]


@tiny
@given(strategies.problems())
def test_one_more_idle_node_keeps_nobody_waiting_longer(tried: Problem) -> None:
    possible = {verdict.job for verdict in solve(tried).verdicts if verdict.outcome != Outcome.IMPOSSIBLE}
    tried = replace(tried, reservation=None, jobs=tuple(job for job in tried.jobs if job.id in possible))
    more = replace(tried, nodes=(*tried.nodes, node("extra", h100=2, cpu=2, cores=4)))
    before, after = solve(tried, AMPLE), solve(more, AMPLE)
    # Weights are counted with the stakes of one problem: new nodes can make a smaller shape possible.
    assert waiting(more, after.placements) <= waiting(more, before.placements)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_crowded_cluster_is_planned_soundly_twice_the_same(seed: int) -> None:
    drawn = draw_problem(np.random.default_rng(seed), jobs=60, nodes=24)
    plan = solve(drawn)
    assert verify(drawn, plan) == []
    assert plan.status in ("optimal", "feasible")
    assert rank(drawn, plan) < rank(drawn, solve_greedily(drawn)), "the problem has no tension: nothing to improve"
    assert plan.gap < 0.05
    assert solve(drawn) == plan


HASH_CASE = """
import sys
import numpy as np
from bench.problems import draw_problem
from scheduler.codec import encode_plan
from scheduler.solve import solve
sys.stdout.buffer.write(encode_plan(solve(draw_problem(np.random.default_rng(3), jobs=60, nodes=24))))
"""


def test_another_process_makes_the_same_plan() -> None:
    """The order of sets differs from process to process; no plan may follow it."""
    plans = {
        subprocess.run(
            [sys.executable, "-c", HASH_CASE],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(plans) == 1


def test_an_empty_queue_and_an_empty_cluster_are_problems_too() -> None:
    idle = problem([node("a", h100=8)], [])
    plan = solve(idle)
    assert plan.placements == ()
    assert plan.objective_j == 1000.0 * 8 * HOUR
    assert (plan.gap, plan.status, plan.method) == (0.0, "optimal", "greedy")
    nowhere = solve(problem([], [job("j1")]))
    assert [verdict.outcome for verdict in nowhere.verdicts] == [Outcome.IMPOSSIBLE]


def test_many_small_jobs_do_not_outbid_one_of_higher_priority() -> None:
    wide = job("wide-9", shape(8), priority=1)
    small = [job(f"small-{number}", shape(1, active_w=1.0), wait_w=1e5) for number in range(8)]
    plan = solve(problem([node("a", h100=8)], [*small, wide]))
    assert nodes_of(plan) == {"wide-9": ["a"]}


def test_within_a_priority_the_larger_weight_starts_and_greedy_alone_would_not_see_it() -> None:
    first, wide = job("first-1", shape(1)), job("wide-2", shape(4))
    crowded = problem([node("a", h100=4)], [first, wide])
    assert nodes_of(solve_greedily(crowded)) == {"first-1": ["a"]}
    plan = solve(crowded)
    assert nodes_of(plan) == {"wide-2": ["a"]}
    assert (plan.method, plan.status) == ("cpsat", "optimal")


def test_a_tier_that_is_not_settled_says_nothing_of_those_below(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to the greedy rule alone, the first job and the cheap one start; in the best plan it is the wide one.

    The bound must admit the best plan, in which the cheap job waits, though in ours it does not.
    """
    monkeypatch.setattr(search, "follow", lambda pool, *_, **__: complete(pool, {}))
    jobs = [
        job("first-1", shape(1), priority=1),
        job("wide-2", shape(4), priority=1),
        job("cheap-3", shape(3), wait_w=1.0),
    ]
    crowded = problem([node("a", h100=4)], jobs)
    plan = solve(crowded, NO_SOLVER)
    assert sorted(nodes_of(plan)) == ["cheap-3", "first-1"]
    true = oracle.best(crowded)
    assert [sorted(best) for best in true.plans] == [["wide-2"]]
    assert plan.status == "feasible"
    assert plan.bound_j <= true.cost_j < plan.objective_j


def test_of_jobs_that_ask_for_the_same_the_first_in_line_starts() -> None:
    jobs = [job(f"j{number}", shape(2)) for number in (5, 3, 4, 1, 2)]
    plan = solve(problem([node("a", h100=4)], jobs))
    assert sorted(nodes_of(plan)) == ["j1", "j2"]


def test_a_job_that_fits_starts_even_if_a_node_must_be_switched_on() -> None:
    dear = switchable(node("a", h100=8), on=False)
    plan = solve(problem([dear], [job("j1", shape(1), wait_w=0.0)]))
    assert nodes_of(plan) == {"j1": ["a"]}
    on_j = 990.0 * HOUR
    assert plan.power_steps == (PowerStep(node="a", on=True, saves_j=-(360_000.0 + on_j)),)


def test_short_jobs_join_the_node_that_a_long_one_keeps_on() -> None:
    nodes = [switchable(node("a", h100=4), on=True), switchable(node("b", h100=4), on=True)]
    jobs = [
        job("short-1", shape(2, run_s=HOUR)),
        job("short-2", shape(2, run_s=HOUR)),
        job("long-3", shape(2, run_s=6 * HOUR)),
        job("long-4", shape(2, run_s=6 * HOUR)),
    ]
    plan = solve(problem(nodes, jobs))
    where = nodes_of(plan)
    assert where["long-3"] == where["long-4"]
    assert where["short-1"] == where["short-2"]
    assert plan.cost.on_j == 990.0 * (6 + 1) * HOUR


def test_an_empty_node_with_a_power_hook_is_planned_off_and_priced() -> None:
    plan = solve(problem([node("a", h100=1), switchable(node("b", h100=1))], [], pue=1.5))
    assert plan.power_steps == (PowerStep(node="b", on=False, saves_j=1.5 * 990.0 * 8 * HOUR),)
    assert plan.cost.off_j + plan.cost.on_j == 1.5 * (1000.0 + 10.0) * 8 * HOUR


def test_a_node_with_work_or_closed_is_not_planned_off() -> None:
    held = switchable(node("a", h100=2, busy=1, busy_s=60.0))
    cordoned = switchable(node("b", h100=2, is_open=False))
    assert solve(problem([held, cordoned], [])).power_steps == ()


def test_a_job_takes_the_shape_that_costs_less_energy_in_all() -> None:
    quick = shape(1, kind="h100", run_s=HOUR, active_w=450.0)
    slow = shape(1, kind="t4", run_s=4 * HOUR, active_w=50.0)
    plan = solve(problem([node("a", h100=1), node("b", t4=1)], [job("j1", quick, slow)]))
    assert plan.placements[0].shape == 1
    assert plan.cost.work_j == 50.0 * 4 * HOUR


def test_devices_that_are_shared_or_held_are_never_given_out() -> None:
    shared = node("a", h100=3, busy=1)
    shared = replace(shared, devices=(shared.devices[0], replace(shared.devices[1], free=500), shared.devices[2]))
    plan = solve(problem([shared], [job("j1"), job("j2")]))
    assert [placement.members[0].devices for placement in plan.placements] == [("a-h100-2",)]


def test_every_verdict_says_why() -> None:
    nodes = [node("a", h100=4), node("b", h100=4, busy=4)]
    jobs = [
        job("now-1", shape(4)),
        job("behind-2", shape(4)),
        job("busy-3", shape(4, members=2)),
        job("never-4", shape(5)),
    ]
    verdicts = {verdict.job: verdict for verdict in solve(problem(nodes, jobs)).verdicts}
    assert verdicts["now-1"].outcome == Outcome.PLACED
    assert verdicts["behind-2"].reasons[0].code == "behind_others"
    assert verdicts["busy-3"].reasons[0].code == "nodes_busy"
    assert verdicts["never-4"].outcome == Outcome.IMPOSSIBLE
    assert verdicts["never-4"].reasons[0].code == "too_few_devices"


def test_a_watchdog_that_fires_is_on_the_record() -> None:
    crowded = draw_problem(np.random.default_rng(1), jobs=60, nodes=24)
    plan = solve(crowded, Budget(deterministic_s=1e6, watchdog_s=1e-3))
    assert plan.status == "watchdog"
    assert verify(crowded, plan) == []


def test_a_plan_that_fails_the_checker_is_replaced_by_the_greedy_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """And if that fails as well, nothing is handed out."""
    crowded = problem([node("a", h100=4)], [job("first-1", shape(1)), job("wide-2", shape(4))])

    def suspicious(which: Problem, plan: Plan) -> list[Violation]:
        return [Violation(code="test", message="no")] if plan.method == "cpsat" else []

    monkeypatch.setattr(recipe, "verify", suspicious)
    plan = solve(crowded)
    assert (plan.method, plan.status) == ("greedy", "fallback")
    assert plan.bound_j <= plan.objective_j

    monkeypatch.setattr(recipe, "verify", lambda *_: [Violation(code="test", message="no")])
    with pytest.raises(PlannerError, match="test: no"):
        solve(crowded)


def test_a_problem_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="job j1: shape 0: devices is 0 and kind 'h100'; a kind goes with devices"):
        solve(problem([node("a", h100=1)], [job("j1", shape(0))]))

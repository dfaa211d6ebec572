"""The linear relaxation never claims more than the truth, and what it says is worth something."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from bench.problems import draw_problem
from scheduler import lp
from scheduler.bound import charge_floor, waiting_floor
from scheduler.candidates import charge_j, find_candidates, pools, waiting_of
from scheduler.greedy import complete
from scheduler.lp import Known, relax
from scheduler.objective import evaluate
from scheduler.problem import Problem
from tests import oracle, strategies
from tests.builders import HOUR, job, node, problem, shape, switchable

tiny = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


def bounds_of(tried: Problem) -> tuple[tuple[int, ...], float]:
    """Bounds of a problem from the relaxation alone: waiting by tier, given the true waiting above it, and cost."""
    true = oracle.best(tried)
    candidates = find_candidates(tried)
    stuck = [candidate for candidate in candidates.line if not candidate.options]
    floors = [sum(c.stake.weight for c in stuck if c.tier == tier) for tier in range(candidates.tiers)]
    idle = evaluate(tried, ())
    cost = idle.off_j + idle.on_j + idle.deferred_j + sum(candidate.stake.wait_j for candidate in stuck)
    plan = true.plans[0]
    for pool in pools(candidates):
        relaxation = relax(pool)
        least = [0] * pool.tiers
        for candidate in pool.line:
            if candidate.job.id not in plan:
                least[candidate.tier] += candidate.stake.weight
        known = [Known(floor=value, cap=value) for value in least]
        for tier in range(pool.tiers):
            floors[tier] += waiting_floor(pool, relaxation, tier, known[:tier])
        cost += charge_floor(relaxation, known)[0]
    return tuple(floors), cost


@tiny
@given(strategies.problems())
def test_bounds_are_never_above_the_truth(tried: Problem) -> None:
    true = oracle.best(tried)
    waits, cost = bounds_of(tried)
    assert all(floor <= value for floor, value in zip(waits, true.waiting, strict=True))
    assert cost <= true.cost_j * (1 + 1e-9)


def test_a_solve_cut_short_still_proves_something_true(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pools(find_candidates(draw_problem(np.random.default_rng(1), jobs=60, nodes=24)))[0]
    relaxation = relax(pool)
    full = relaxation.charge_floor([])[0]
    monkeypatch.setattr(lp, "MAX_ITERATIONS", 3)
    assert -math.inf < relaxation.charge_floor([])[0] < full


def test_coarse_steps_weaken_the_bound_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = max(
        pools(find_candidates(draw_problem(np.random.default_rng(1), jobs=60, nodes=24))), key=lambda p: len(p.line)
    )
    exact = relax(pool).charge_floor([])[0]
    monkeypatch.setattr(lp, "EXACT_PLACES", 0)
    monkeypatch.setattr(lp, "FEW_ENDS", 4)
    coarse = relax(pool).charge_floor([])[0]
    assert 0 < coarse < exact


def test_a_node_that_carries_any_job_is_charged_whole() -> None:
    nodes = [switchable(node("a", h100=8), on=False)]
    (pool,) = pools(find_candidates(problem(nodes, [job("j1", shape(1, run_s=HOUR))])))
    known = [Known(floor=0, cap=0)]
    assert charge_floor(relax(pool), known)[0] == pytest.approx(360_000 + 990.0 * HOUR)


def test_gangs_that_leave_gaps_are_seen() -> None:
    """Two nodes with 7 free devices hold two gangs of 4 and not three, though 14 devices are free."""
    nodes = [node(name, h100=7) for name in "ab"]
    (pool,) = pools(find_candidates(problem(nodes, [job(f"j{number}", shape(4)) for number in range(3)])))
    assert waiting_floor(pool, relax(pool), 0, []) == 4 * 125_000


def test_the_bound_of_waiting_rises_to_what_whole_jobs_can_leave() -> None:
    """Split, a third of one job waits; but jobs wait whole, and either weighs 300 W."""
    jobs = [job("wide-1", shape(3), wait_w=100.0), job("slim-2", shape(2), wait_w=150.0)]
    (pool,) = pools(find_candidates(problem([node("a", h100=4)], jobs)))
    relaxation = relax(pool)
    assert relaxation.waiting_floor(0, []) == pytest.approx(100_000)
    assert waiting_floor(pool, relaxation, 0, []) == 300_000


def test_what_is_known_of_waiting_narrows_the_bound_of_cost() -> None:
    """One device, two jobs: without knowledge the relaxation may let both wait; the node is dearer than a wait."""
    nodes = [switchable(node("a", h100=1))]
    jobs = [job(f"j{number}", shape(1, run_s=8 * HOUR), wait_w=1.0) for number in range(2)]
    (pool,) = pools(find_candidates(problem(nodes, jobs)))
    relaxation = relax(pool)
    assert charge_floor(relaxation, [])[0] == pytest.approx(2 * 1.0 * 8 * HOUR)
    one_waits = 1.0 * 8 * HOUR + 990.0 * 8 * HOUR
    assert charge_floor(relaxation, [Known(floor=1000, cap=1000)])[0] == pytest.approx(one_waits)
    assert charge_floor(relaxation, [Known(floor=0, cap=1000)])[0] == pytest.approx(one_waits)
    assert charge_floor(relaxation, [Known(floor=1000, cap=2000)])[0] == pytest.approx(2 * 1.0 * 8 * HOUR)


@pytest.mark.parametrize("seed", range(4))
def test_parts_add_up_to_the_whole(seed: int) -> None:
    drawn = draw_problem(np.random.default_rng(seed), jobs=80, nodes=24)
    candidates = find_candidates(drawn)
    parts = pools(candidates)
    assert len(parts) > 1
    sites = [site.node.id for pool in parts for site in pool.sites]
    assert len(sites) == len(set(sites))
    whole = complete(candidates, {})
    starts = [complete(pool, {}) for pool in parts]
    stuck = [candidate for candidate in candidates.line if not candidate.options]
    waits = [sum(c.stake.weight for c in stuck if c.tier == tier) for tier in range(candidates.tiers)]
    for pool, start in zip(parts, starts, strict=True):
        waits = [total + part for total, part in zip(waits, waiting_of(pool, start), strict=True)]
    assert waiting_of(candidates, whole) == tuple(waits)
    charge = sum(charge_j(pool, start) for pool, start in zip(parts, starts, strict=True))
    assert charge_j(candidates, whole) == pytest.approx(charge + sum(c.stake.wait_j for c in stuck))

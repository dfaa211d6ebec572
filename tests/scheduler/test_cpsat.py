"""The two exact models by themselves, without greedy rules, relaxation or checker to cover for them."""

import math
from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings

from bench.problems import draw_problem
from scheduler.candidates import Candidates, Choices, charge_j, find_candidates, pools, waiting_of
from scheduler.cpsat import Effort, least_charge, least_waiting
from scheduler.problem import NodePower, PowerBudget, Problem
from tests import oracle, strategies
from tests.builders import HOUR, job, node, problem, shape, switchable

AMPLE = Effort(deterministic_s=5.0, wall_s=60.0, workers=1, seed=1)
NOTHING = Effort(deterministic_s=1e-9, wall_s=60.0, workers=1, seed=1)

tiny = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


def solved(pool: Candidates) -> tuple[tuple[int, ...], Choices, float]:
    """Least waiting of each tier in turn, then the cheapest choices that have it, and their proven charge."""
    caps: list[int] = []
    for tier in range(pool.tiers):
        answer = least_waiting(pool, tier, caps, 0, {}, AMPLE)
        assert answer.optimal
        assert answer.choices is not None
        caps.append(waiting_of(pool, answer.choices)[tier])
        assert answer.bound == caps[-1]
    answer = least_charge(pool, caps, None, AMPLE)
    assert answer.optimal
    assert answer.choices is not None
    return tuple(caps), answer.choices, answer.bound


def starts(pool: Candidates, choices: Choices) -> dict[str, oracle.Start]:
    """Choices in the oracle's words."""
    return {
        pool.line[index].job.id: (
            pool.line[index].options[choice.option].shape,
            tuple(pool.sites[site].node.id for site in choice.sites),
        )
        for index, choice in choices.items()
    }


@tiny
@given(strategies.problems(max_jobs=5))
def test_the_models_alone_find_a_best_plan(tried: Problem) -> None:
    true = oracle.best(tried)
    plan: dict[str, oracle.Start] = {}
    for pool in pools(find_candidates(tried)):
        waits, choices, bound_j = solved(pool)
        assert waiting_of(pool, choices) == waits
        assert abs(charge_j(pool, choices) - bound_j) <= 1e-6 * charge_j(pool, choices) + 1.0
        plan |= starts(pool, choices)
    assert plan in true.plans


def test_the_models_alone_keep_a_power_budget() -> None:
    """A boot and what starts where it boots: the dearer job, first in line, would leave room for no other."""
    asleep = switchable(node("a", h100=2, power=NodePower(base_w=300.0, boot_s=100.0, boot_j=50_000.0)), on=False)
    jobs = [job(f"j{number}", shape(active_w=active_w)) for number, active_w in enumerate((500.0, 300.0, 300.0))]
    nodes = [asleep, node("b", h100=1, power=NodePower(base_w=100.0))]
    budgets = (PowerBudget(name="hall", watts=1000.0, nodes=("a", "b")),)
    (pool,) = pools(find_candidates(replace(problem(nodes, jobs), budgets=budgets)))
    waits, choices, _ = solved(pool)
    assert waits == (125_000,)
    assert starts(pool, choices).keys() == {"j1", "j2"}


def test_of_twins_the_first_in_line_start() -> None:
    jobs = [job(f"j{number}", shape(2)) for number in (4, 2, 3, 1)]
    (pool,) = pools(find_candidates(problem([node("a", h100=2), node("b", h100=3)], jobs)))
    assert sorted(starts(pool, solved(pool)[1])) == ["j1", "j2"]


def test_cpu_and_memory_are_counted_where_devices_would_do() -> None:
    nodes = [node("a", h100=4, cores=5, memory=100), node("b", h100=4, cores=100, memory=5)]
    jobs = [job(f"j{number}", shape(1, cores=2, memory=2)) for number in range(8)]
    (pool,) = pools(find_candidates(problem(nodes, jobs)))
    waits, choices, _ = solved(pool)
    assert waits == (4 * 125_000,)
    assert sorted(where for _, where in starts(pool, choices).values()) == [("a",), ("a",), ("b",), ("b",)]


def test_a_search_without_time_claims_nothing() -> None:
    pool = max(pools(find_candidates(draw_problem(np.random.default_rng(1)))), key=lambda pool: len(pool.line))
    answer = least_charge(pool, [10**12] * pool.tiers, None, NOTHING)
    assert (answer.choices, answer.optimal, answer.stopped) == (None, False, False)
    assert answer.bound == -math.inf
    assert least_waiting(pool, 0, [], 7, {}, NOTHING).bound == 7


def test_jobs_of_equal_length_are_paired() -> None:
    nodes = [switchable(node(name, h100=2)) for name in "ab"]
    jobs = [job(f"j{number}", shape(1, run_s=hours * HOUR)) for number, hours in enumerate((1, 6, 1, 6))]
    (pool,) = pools(find_candidates(problem(nodes, jobs)))
    answer = least_charge(pool, [0], None, AMPLE)
    assert answer.choices is not None
    assert charge_j(pool, answer.choices) == 990.0 * (6 + 1) * HOUR

"""The search on pools: fractional plans are followed, thinned models prove nothing, budgets are kept to."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from bench.problems import draw_problem
from scheduler import search
from scheduler.bound import charge_floor
from scheduler.candidates import charge_j, find_candidates, places, pools, thinned, waiting_of
from scheduler.cpsat import Answer
from scheduler.greedy import complete, follow
from scheduler.lp import NO_GUIDE, Known, relax
from scheduler.problem import Budget, Problem
from scheduler.search import Allowance
from scheduler.solve import solve
from scheduler.verify import verify
from tests import oracle, strategies
from tests.builders import HOUR, job, node, problem, shape, switchable

tiny = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@tiny
@given(strategies.problems(max_jobs=5))
def test_a_pool_too_large_for_a_whole_model_is_planned_soundly(tried: Problem) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "MAX_PLACES", 0)
        plan = solve(tried, Budget(deterministic_s=5.0, watchdog_s=60.0))
    assert verify(tried, plan) == []
    true = oracle.best(tried)
    assert plan.bound_j <= true.cost_j * (1 + 1e-9) + 1e-6
    if plan.status == "optimal":
        assert plan.objective_j == pytest.approx(true.cost_j, rel=1e-6, abs=1.0)


@tiny
@given(strategies.problems(max_jobs=5))
def test_choices_that_follow_a_fractional_plan_are_sound_and_full(tried: Problem) -> None:
    for pool in pools(find_candidates(tried)):
        _, guide = charge_floor(relax(pool), [])
        for sure_first in (True, False):
            choices = follow(pool, guide.starts, sure_first=sure_first)
            assert complete(pool, choices) == choices
            for number, site in enumerate(pool.sites):
                there = [
                    pool.line[index].options[choice.option]
                    for index, choice in choices.items()
                    if number in choice.sites
                ]
                assert sum(option.millicores for option in there) <= site.node.free_millicores
                for kind, free in site.kinds.items():
                    assert sum(option.devices for option in there if option.kind == kind) <= free


def test_following_keeps_to_precedence_and_places_wide_gangs_first() -> None:
    jobs = [
        job("slim-1", shape(1)),
        job("wide-2", shape(3)),
        job("urgent-3", shape(1), priority=1),
        job("unwanted-4", shape(3, run_s=2 * HOUR)),
    ]
    (pool,) = pools(find_candidates(problem([node("a", h100=4)], jobs)))
    line = [candidate.job.id for candidate in pool.line]
    all_but_one = {(candidate.twin, 0): float(candidate.job.id != "unwanted-4") for candidate in pool.line}
    assert {line[index] for index in follow(pool, all_but_one, sure_first=False)} == {"urgent-3", "wide-2"}
    half_wide = {key: 0.5 if line[key[0]] == "wide-2" else share for key, share in all_but_one.items()}
    assert {line[index] for index in follow(pool, half_wide, sure_first=True)} == {"urgent-3", "slim-1"}
    assert follow(pool, {}, sure_first=True) == complete(pool, {})


def test_following_takes_the_preferred_shape_and_shares_it_among_twins() -> None:
    either = (shape(1, kind="h100", active_w=1.0), shape(1, kind="t4", active_w=9.0))
    jobs = [job(f"j{number}", *either) for number in range(3)]
    (pool,) = pools(find_candidates(problem([node("a", h100=4), node("b", t4=4)], jobs)))
    choices = follow(pool, {(0, 0): 1.0, (0, 1): 2.0}, sure_first=False)
    assert sorted(choice.option for choice in choices.values()) == [0, 1, 1]


def test_a_thinned_pool_keeps_the_places_of_the_guide_and_of_the_choices() -> None:
    nodes = [switchable(node("a", h100=2)), node("b", h100=2), node("c", h100=4)]
    jobs = [job("j1", shape(2, run_s=HOUR)), job("j2", shape(2, run_s=HOUR))]
    (pool,) = pools(find_candidates(problem(nodes, jobs)))
    choices = complete(pool, {})
    groups = [site.group for site in pool.sites]
    thin = thinned(pool, {(pool.line[0].twin, 0, groups[2])}, choices)
    assert [candidate.options[0].sites for candidate in thin.line] == [(1, 2), (2,)]
    assert charge_j(thin, choices) == charge_j(pool, choices)
    assert places(thinned(pool, NO_GUIDE.places, choices)) == len(choices)


def test_searches_keep_to_the_allowance_and_say_when_a_watchdog_ended_one() -> None:
    allowance = Allowance(Budget(deterministic_s=1.0, watchdog_s=10.0, seed=7))
    first = allowance.effort(0.25)
    assert first is not None
    assert (first.deterministic_s, first.wall_s, first.seed) == (0.25, 10.0, 7)
    spent = Answer(choices=None, bound=0.0, optimal=False, deterministic_s=0.5, wall_s=4.0, stopped=False)
    allowance.spend(spent)
    assert not allowance.stopped
    second = allowance.effort(1.0)
    assert second is not None
    assert (second.deterministic_s, second.wall_s) == (0.5, 6.0)
    allowance.spend(Answer(choices=None, bound=0.0, optimal=False, deterministic_s=0.1, wall_s=7.0, stopped=True))
    assert allowance.stopped
    assert allowance.effort(1.0) is None


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_what_the_search_finds_is_never_worse_than_its_start(seed: int) -> None:
    candidates = find_candidates(draw_problem(np.random.default_rng(seed), jobs=60, nodes=24))
    parts = pools(candidates)
    starts = [complete(pool, {}) for pool in parts]
    for pool, start, found in zip(parts, starts, search.search(parts, starts, Allowance(Budget())), strict=True):
        before = (waiting_of(pool, start), charge_j(pool, start))
        assert (waiting_of(pool, found.choices), charge_j(pool, found.choices)) <= before
        assert found.bound_j <= charge_j(pool, found.choices) * (1 + 1e-9)
        if found.settled:
            known = [Known(floor=waits, cap=waits) for waits in waiting_of(pool, found.choices)]
            assert charge_floor(relax(pool), known)[0] <= charge_j(pool, found.choices) * (1 + 1e-9)

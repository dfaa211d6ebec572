"""The search on pools: fractional plans are followed, thinned models prove nothing, budgets are kept to."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from bench.problems import draw_problem
from scheduler import search
from scheduler.bound import charge_floor
from scheduler.candidates import Candidates, Choices, charge_j, find_candidates, places, pools, thinned, waiting_of
from scheduler.cpsat import Answer
from scheduler.greedy import complete, follow
from scheduler.lp import NO_GUIDE, Known, relax
from scheduler.problem import Budget, Problem
from scheduler.search import Allowance, Found, polish, settle
from scheduler.solve import solve
from scheduler.verify import verify
from tests import oracle, strategies
from tests.builders import HOUR, job, node, problem, shape, switchable

AMPLE = Budget(deterministic_s=5.0, watchdog_s=60.0)

tiny = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


def names(pool: Candidates, choices: Choices) -> set[str]:
    return {pool.line[index].job.id for index in choices}


@tiny
@given(strategies.problems(max_jobs=5))
def test_a_pool_too_large_for_a_whole_model_is_planned_soundly(tried: Problem) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "MAX_PLACES", 0)
        plan = solve(tried, AMPLE)
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


def test_following_keeps_to_precedence() -> None:
    jobs = [job("slim-1", shape(1)), job("wide-2", shape(3)), job("urgent-3", shape(2), priority=1)]
    (pool,) = pools(find_candidates(problem([node("a", h100=4)], jobs)))
    all_start = {(candidate.twin, 0): 1.0 for candidate in pool.line}
    assert names(pool, follow(pool, all_start, sure_first=False)) == {"urgent-3", "slim-1"}


def test_following_places_what_the_plan_starts_and_wide_gangs_first() -> None:
    jobs = [job("slim-1", shape(2)), job("wide-2", shape(3)), job("unwanted-3", shape(4))]
    (pool,) = pools(find_candidates(problem([node("a", h100=4)], jobs)))
    slim, wide, _ = (candidate.twin for candidate in pool.line)
    assert names(pool, follow(pool, {(slim, 0): 1.0, (wide, 0): 0.5}, sure_first=False)) == {"wide-2"}
    assert names(pool, follow(pool, {(slim, 0): 1.0, (wide, 0): 0.5}, sure_first=True)) == {"slim-1"}
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


def test_only_a_model_of_all_places_proves_a_charge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thinned to the places it has, the greedy plan is the cheapest; among all places it is not."""
    nodes = [switchable(node(name, h100=2)) for name in "ab"]
    jobs = [job(f"j{number}", shape(1, run_s=hours * HOUR)) for number, hours in enumerate((1, 6, 6, 1))]
    (pool,) = pools(find_candidates(problem(nodes, jobs)))
    start = Found(choices=complete(pool, {}), bound_j=0.0, settled=True, proven=False, guide=NO_GUIDE)
    assert charge_j(pool, start.choices) == 990.0 * (6 + 6) * HOUR
    found = polish(pool, start, Allowance(AMPLE), 1.0)
    assert found.proven
    assert found.bound_j == pytest.approx(charge_j(pool, found.choices)) == 990.0 * (6 + 1) * HOUR
    monkeypatch.setattr(search, "MAX_PLACES", 0)
    thin = polish(pool, start, Allowance(AMPLE), 1.0)
    assert (thin.choices, thin.bound_j, thin.proven) == (start.choices, 0.0, False)


def test_only_a_model_of_all_places_proves_a_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_PLACES", 0)
    monkeypatch.setattr(search, "charge_floor", lambda *_: (0.0, NO_GUIDE))
    (pool,) = pools(find_candidates(problem([node("a", h100=4)], [job("first-1", shape(1)), job("wide-2", shape(4))])))
    found = settle(pool, complete(pool, {}), Allowance(AMPLE))
    assert names(pool, found.choices) == {"first-1"}
    assert not found.settled


def test_the_least_charge_is_no_proof_while_a_tier_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing costs anything here, so that every plan has the least charge; but another one lets less wait."""
    monkeypatch.setattr(search, "follow", lambda pool, *_, **__: complete(pool, {}))
    jobs = [job("first-1", shape(1), wait_w=0.0), job("wide-2", shape(4), wait_w=0.0)]
    (pool,) = pools(find_candidates(problem([node("a", h100=4)], jobs)))
    found = settle(pool, complete(pool, {}), Allowance(Budget(deterministic_s=0.0)))
    assert charge_j(pool, found.choices) == found.bound_j == 0.0
    assert (found.settled, found.proven) == (False, False)
    assert settle(pool, complete(pool, {}), Allowance(AMPLE)).proven


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

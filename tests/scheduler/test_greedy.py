"""The greedy rule: in line order, whole gangs, least added joules, tightest fit."""

from hypothesis import HealthCheck, given, settings

from scheduler.candidates import Choice, charge_j, find_candidates, to_placements, waiting_of
from scheduler.greedy import complete, repack
from scheduler.objective import evaluate, waiting
from scheduler.plan import Placement
from scheduler.problem import Problem
from scheduler.solve import solve_greedily
from scheduler.verify import verify
from tests import strategies
from tests.builders import HOUR, job, node, problem, shape, switchable

tiny = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


def place(one: Problem) -> dict[str, list[str]]:
    return {entry.job: [member.node for member in entry.members] for entry in solve_greedily(one).placements}


@tiny
@given(strategies.problems(max_jobs=6))
def test_a_greedy_plan_is_sound_and_leaves_nothing_that_fits(tried: Problem) -> None:
    plan = solve_greedily(tried)
    assert verify(tried, plan) == []
    candidates = find_candidates(tried)
    choices = complete(candidates, {})
    assert complete(candidates, choices) == choices
    assert plan.placements == to_placements(candidates, choices)


@tiny
@given(strategies.problems(max_jobs=6))
def test_the_searches_count_as_the_evaluator_does(tried: Problem) -> None:
    candidates = find_candidates(tried)
    choices = complete(candidates, {})
    placements = to_placements(candidates, choices)
    idle, busy = evaluate(tried, ()), evaluate(tried, placements)
    assert waiting(tried, placements) == waiting_of(candidates, choices)
    total = idle.off_j + idle.on_j + idle.deferred_j + charge_j(candidates, choices)
    assert abs(busy.total_j - total) <= 1e-9 * busy.total_j


@tiny
@given(strategies.problems(max_jobs=6))
def test_repacking_places_the_same_jobs_soundly(tried: Problem) -> None:
    candidates = find_candidates(tried)
    choices = complete(candidates, {})
    for keep_shapes in (True, False):
        again = repack(candidates, choices, keep_shapes=keep_shapes)
        if again is not None:
            assert again.keys() == choices.keys()
            assert all(again[job].option == choices[job].option for job in again) or not keep_shapes
            held: list[Placement] = list(to_placements(candidates, again))
            devices = [device for entry in held for member in entry.members for device in member.devices]
            assert len(devices) == len(set(devices))


def test_precedence_decides_who_gets_the_last_device() -> None:
    jobs = [job("late-3"), job("early-1"), job("urgent-9", priority=1), job("middle-2")]
    assert place(problem([node("a", h100=2)], jobs)) == {"urgent-9": ["a"], "early-1": ["a"]}


def test_a_gang_is_placed_whole_or_not_at_all() -> None:
    nodes = [node("a", h100=4), node("b", h100=3)]
    assert place(problem(nodes, [job("gang-1", shape(4, members=2)), job("small-2", shape(4))])) == {"small-2": ["a"]}


def test_a_tight_fit_is_preferred_so_that_wide_gangs_find_room() -> None:
    nodes = [node("a", h100=8), node("b", h100=8, busy=6), node("c", h100=8, busy=4)]
    assert place(problem(nodes, [job("j1", shape(2))])) == {"j1": ["b"]}


def test_a_cpu_job_leaves_gpu_nodes_alone_while_it_can() -> None:
    nodes = [node("a", h100=8, cpu=2), node("b", cpu=64)]
    assert place(problem(nodes, [job("j1", shape(2, kind="cpu"))])) == {"j1": ["b"]}


def test_a_node_that_is_on_anyway_comes_before_one_that_must_stay_on_and_that_before_one_to_boot() -> None:
    fixed = node("c", h100=1)
    on = switchable(node("b", h100=1))
    off = switchable(node("a", h100=1), on=False)
    jobs = [job(f"j{number}", shape(1, run_s=HOUR)) for number in (1, 2, 3)]
    assert place(problem([off, on, fixed], jobs)) == {"j1": ["c"], "j2": ["b"], "j3": ["a"]}


def test_repacking_lets_short_jobs_ride_along_with_long_ones() -> None:
    nodes = [switchable(node("a", h100=2)), switchable(node("b", h100=2))]
    jobs = [
        job("short-1", shape(1, run_s=HOUR)),
        job("long-2", shape(1, run_s=6 * HOUR)),
        job("long-3", shape(1, run_s=6 * HOUR)),
        job("short-4", shape(1, run_s=HOUR)),
    ]
    candidates = find_candidates(problem(nodes, jobs))
    greedy = complete(candidates, {})
    again = repack(candidates, greedy, keep_shapes=True)
    assert again is not None
    assert charge_j(candidates, greedy) == 990.0 * (6 + 6) * HOUR
    assert charge_j(candidates, again) == 990.0 * (6 + 1) * HOUR


def test_repacking_keeps_shapes_where_it_is_told_to() -> None:
    cheap, dear = shape(1, kind="h100", active_w=1.0), shape(1, kind="t4", active_w=9.0)
    candidates = find_candidates(problem([node("a", h100=1), node("b", t4=1)], [job("j1", cheap, dear)]))
    choices = {0: Choice(option=1, sites=(1,))}
    kept, free = (repack(candidates, choices, keep_shapes=keep) for keep in (True, False))
    assert kept == choices
    assert free == {0: Choice(option=0, sites=(0,))}

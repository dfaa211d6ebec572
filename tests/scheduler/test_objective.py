"""The objective against plans priced by hand."""

from dataclasses import replace

import pytest

from scheduler.objective import evaluate, stakes, waiting
from scheduler.plan import Cost
from scheduler.problem import NodePower
from tests.builders import HOUR, job, node, placement, problem, shape, switchable

POWER = NodePower(base_w=1000.0, off_w=10.0, boot_s=300.0, boot_j=360_000.0)
H = 8 * HOUR


def test_a_fixed_node_is_on_all_the_time_whatever_happens() -> None:
    one = problem([node("a", h100=2)], [job("j1", shape(2, run_s=HOUR, active_w=400.0))], pue=1.5)
    idle = evaluate(one, ())
    busy = evaluate(one, [placement("j1", ("a", ["a-h100-0", "a-h100-1"]))])
    assert idle.off_j == busy.off_j == 1.5 * 10.0 * H
    assert idle.on_j == busy.on_j == 1.5 * 990.0 * H
    assert busy == Cost(
        off_j=busy.off_j, on_j=busy.on_j, boot_j=0.0, work_j=1.5 * 2 * 400.0 * HOUR, deferred_j=0.0, wait_j=0.0
    )


def test_a_waiting_job_costs_its_work_and_the_wait_outside_pue() -> None:
    idle = evaluate(problem([node("a", h100=2)], [job("j1", shape(2), wait_w=125.0)], pue=1.5), ())
    assert idle.deferred_j == 1.5 * 2 * 400.0 * HOUR
    assert idle.wait_j == 125.0 * 2 * H
    assert idle.total_j == idle.off_j + idle.on_j + idle.deferred_j + idle.wait_j


def test_deferred_work_is_that_of_the_cheapest_possible_shape_and_the_smallest_waits() -> None:
    wide = shape(4, run_s=HOUR, active_w=100.0)
    slim = shape(1, run_s=6 * HOUR, active_w=100.0)
    never = shape(1, kind="t4", run_s=60.0, active_w=1.0)
    cost = evaluate(problem([node("a", h100=4)], [job("j1", wide, slim, never, wait_w=100.0)]), ())
    assert cost.deferred_j == 4 * 100.0 * HOUR
    assert cost.wait_j == 100.0 * 1 * H


def test_a_job_that_can_never_run_costs_nothing() -> None:
    cost = evaluate(problem([node("a", h100=2)], [job("j1", shape(3))]), ())
    assert (cost.deferred_j, cost.wait_j) == (0.0, 0.0)
    assert waiting(problem([node("a", h100=2)], [job("j1", shape(3))]), ()) == ()


@pytest.mark.parametrize(
    ("on", "busy_s", "runs_s", "on_s", "boots"),
    [
        (True, 0.0, [], 0.0, 0),
        (True, 1800.0, [], 1800.0, 0),
        (True, 1800.0, [HOUR], HOUR, 0),
        (True, 2 * HOUR, [HOUR], 2 * HOUR, 0),
        (True, 0.0, [HOUR, 3 * HOUR], 3 * HOUR, 0),
        (True, 100 * HOUR, [], H, 0),
        (True, 0.0, [100 * HOUR], H, 0),
        (False, 0.0, [], 0.0, 0),
        (False, 0.0, [HOUR, 2 * HOUR], 2 * HOUR, 1),
    ],
)
def test_a_switchable_node_is_on_until_its_last_job_ends(
    on: bool, busy_s: float, runs_s: list[float], on_s: float, boots: int
) -> None:
    machine = replace(switchable(node("a", h100=4, power=POWER), on=on), busy_s=busy_s)
    jobs = [job(f"j{number}", shape(1, run_s=run_s, active_w=0.0)) for number, run_s in enumerate(runs_s)]
    placements = [placement(f"j{number}", ("a", [f"a-h100-{number}"])) for number in range(len(jobs))]
    cost = evaluate(problem([machine], jobs), placements)
    assert cost.off_j == 10.0 * H
    assert cost.on_j == 990.0 * on_s
    assert cost.boot_j == boots * 360_000.0


def test_a_node_that_is_off_for_good_draws_its_off_power() -> None:
    cost = evaluate(problem([node("a", h100=1, on=False)], []), ())
    assert (cost.off_j, cost.on_j) == (10.0 * H, 0.0)


def test_a_gang_keeps_each_of_its_nodes_on() -> None:
    nodes = [switchable(node(name, h100=1)) for name in "abc"]
    gang = job("j1", shape(1, members=2, run_s=HOUR))
    cost = evaluate(problem(nodes, [gang]), [placement("j1", ("a", ["a-h100-0"]), ("c", ["c-h100-0"]))])
    assert cost.on_j == 2 * 990.0 * HOUR
    assert cost.work_j == 2 * 400.0 * HOUR


def test_waiting_is_counted_by_priority_in_whole_thousandths_of_a_watt() -> None:
    jobs = [
        job("low-1", shape(2), wait_w=100.0),
        job("high-2", shape(1), wait_w=33.3333, priority=5),
        job("free-3", shape(3), wait_w=0.0),
    ]
    one = problem([node("a", h100=4)], jobs)
    assert waiting(one, ()) == (33_333, 200_000 + 3)
    assert waiting(one, [placement("low-1", ("a", ["a-h100-0", "a-h100-1"]))]) == (33_333, 3)


def test_stakes_speak_of_possible_shapes_only() -> None:
    choosy = job("j1", shape(1, kind="t4"), shape(4), shape(2))
    stake = stakes(problem([node("a", h100=4, busy=4)], [choosy]))["j1"]
    assert stake.shapes == (1, 2)
    assert stake.weight == 125_000 * 2


def test_a_job_of_several_sizes_pays_for_not_running_in_the_fastest_of_its_kind() -> None:
    slow, fast, other = (
        shape(2, members=members, kind=kind, run_s=hours * HOUR)
        for members, kind, hours in ((1, "h100", 4), (2, "h100", 3), (1, "t4", 9))
    )
    nodes = [node("a", h100=2), node("b", h100=2), node("c", t4=2)]
    one = problem(nodes, [job("j1", slow, fast, other, wait_w=125.0)], pue=1.5)
    there = [("a", ["a-h100-0", "a-h100-1"]), ("b", ["b-h100-0", "b-h100-1"]), ("c", ["c-t4-0", "c-t4-1"])]
    on_one, on_two, elsewhere = (
        evaluate(one, [placement("j1", *there[chosen], shape=index)])
        for index, chosen in enumerate((slice(0, 1), slice(0, 2), slice(2, 3)))
    )
    assert on_one.late_j == 125.0 * 2 * HOUR
    assert on_two.late_j == elsewhere.late_j == evaluate(one, ()).late_j == 0.0
    capped = replace(slow, cap_w=500.0, active_w=300.0, run_s=1.05 * slow.run_s, slower=1.05)
    allowed = problem(nodes, [job("j1", slow, fast, capped, wait_w=125.0)], pue=1.5)
    assert evaluate(allowed, [placement("j1", there[0], shape=2)]).late_j == pytest.approx(on_one.late_j)
    rigid = problem(nodes, [job("j1", slow, replace(fast, members=1), wait_w=125.0)])
    assert evaluate(rigid, [placement("j1", there[0])]).late_j == 0.0

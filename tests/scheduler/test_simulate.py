"""The planner driven over virtual time: what windows hold, and that their joules are the planner's."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.time.policies import best_fit, easy, fifo, pwr_fgd, shortest_first, spread
from bench.time.policies import ours as planned
from scheduler.objective import evaluate
from scheduler.plan import Placement
from scheduler.problem import Job, Node, NodePower, Problem, Shape
from scheduler.simulate import Arrival, Decision, Moving, Planner, Switching, Window, energy_gap, simulate
from tests.builders import node, placement

POWER = NodePower(base_w=1000.0, off_w=10.0, boot_s=300.0, boot_j=360_000.0)
SMALL = NodePower(base_w=200.0, off_w=10.0, boot_s=100.0, boot_j=24_000.0)
AT_ONCE = Switching(idle_s=0.0, suspend_s=0.0)
OFTEN = Moving(per_job=2.0, restart_s=10.0, save_s=60.0)
POLICIES: list[Callable[[], Planner]] = [
    lambda: fifo(spread),
    lambda: fifo(best_fit),
    lambda: easy,
    lambda: shortest_first,
    lambda: pwr_fgd(0.1),
    lambda: planned,
]


def machine(name: str, kind: str = "a100", devices: int = 4, power: NodePower = POWER) -> Node:
    return node(name, power=power, on=False, can_switch=True, **{kind: devices})


def arrival(name: str, at_s: float, run_s: float, size: int = 1, members: int = 1, kinds: str = "a100") -> Arrival:
    shapes = tuple(
        Shape(members=members, devices=size, kind=kind, millicores=0, memory_bytes=0, run_s=run_s, active_w=100.0)
        for kind in kinds.split()
    )
    number = int(name.strip("abcdefghijklmnopqrstuvwxyz") or 0)
    job = Job(id=name, priority=0, order=number, shapes=shapes, wait_w=50.0)
    return Arrival(at_s=at_s, job=job, runs_s=(run_s,) * len(shapes))


def waits(window: Window) -> dict[str, float]:
    return {run.job: run.wait_s for run in window.runs}


def test_one_job_on_one_node_by_hand() -> None:
    window = simulate([machine("n")], [arrival("j1", 50.0, 3600.0, size=2)], planned, AT_ONCE, pue=1.5)
    assert waits(window) == {"j1": 300.0}
    assert window.end_s == 50.0 + 300.0 + 3600.0
    assert window.off_j == pytest.approx(1.5 * 10.0 * 3950.0)
    assert window.boot_j == 1.5 * 360_000.0
    assert window.on_j == pytest.approx(1.5 * 990.0 * 3600.0)
    assert window.held_j == pytest.approx(window.on_j / 2)
    assert window.work_j == pytest.approx(1.5 * 2 * 100.0 * 3600.0)
    assert window.idle_device_s == pytest.approx(2 * 3600.0)
    assert (window.boots, window.resting_w, window.resting_devices) == (1, 15.0, 0)


def test_the_planner_sees_all_that_is_known_of_a_node() -> None:
    told = replace(machine("n"), container_fault="no engine", can_cap=True)
    seen: list[Problem] = []

    def watching(problem: Problem) -> Decision:
        seen.append(problem)
        return planned(problem)

    simulate([told], [arrival("j1", 50.0, 3600.0)], watching, AT_ONCE)
    assert seen[0].nodes == (told,)


def test_an_empty_node_goes_off_after_the_timer_and_draws_until_it_has_gone() -> None:
    switching = Switching(idle_s=600.0, suspend_s=60.0)
    window = simulate([machine("n")], [arrival("j1", 0.0, 3600.0)], planned, switching)
    assert window.end_s == 300.0 + 3600.0 + 600.0 + 60.0
    assert window.on_j == pytest.approx(990.0 * 4260.0)


def test_a_gang_begins_when_the_last_of_its_nodes_is_ready() -> None:
    nodes = [replace(machine("n1"), on=True), machine("n2")]
    window = simulate(nodes, [arrival("j1", 0.0, 1000.0, size=4, members=2)], planned, AT_ONCE)
    assert waits(window) == {"j1": 300.0}
    # The node that was on all the time waited for the other.
    assert window.idle_device_s == pytest.approx(4 * 300.0)


def test_a_job_that_comes_while_a_node_boots_waits_for_the_rest_of_it() -> None:
    arrivals = [arrival("j1", 0.0, 1000.0), arrival("j2", 200.0, 1000.0)]
    assert waits(simulate([machine("n")], arrivals, planned, AT_ONCE)) == {"j1": 300.0, "j2": 100.0}


def test_what_follows_the_end_of_a_window_is_its_resting_draw() -> None:
    window = simulate([machine("n")], [arrival("j1", 0.0, 3600.0)], planned, AT_ONCE, pue=1.2)
    later = window.until(window.end_s + 1000.0)
    assert later.total_j - window.total_j == pytest.approx(1.2 * 10.0 * 1000.0)
    with pytest.raises(ValueError, match="must be at least 3900"):
        window.until(10.0)


def test_a_planner_that_breaks_the_rules_is_told() -> None:
    def twice(problem: Problem) -> Decision:
        placements: Sequence[Placement] = planned(replace(problem, jobs=problem.jobs[:1])).placements
        both = [replace(placement, job=job.id) for placement in placements for job in problem.jobs]
        return Decision(placements=tuple(both))

    with pytest.raises(ValueError, match="job j2 does not fit on node n"):
        simulate([machine("n")], [arrival("j1", 0.0, 10.0), arrival("j2", 0.0, 10.0)], twice, AT_ONCE)
    with pytest.raises(ValueError, match="1 jobs were never placed, j1 among them"):
        simulate([machine("n")], [arrival("j1", 0.0, 10.0, size=5)], planned, AT_ONCE)
    shared = replace(arrival("j1", 0.0, 10.0).job.shapes[0], share=500)
    half = replace(arrival("j1", 0.0, 10.0), job=replace(arrival("j1", 0.0, 10.0).job, shapes=(shared,)))
    with pytest.raises(ValueError, match="whole devices"):
        simulate([machine("n")], [half], planned, AT_ONCE)


def test_who_is_blocked_keeps_its_place_under_easy_and_loses_it_to_whoever_fits_otherwise() -> None:
    nodes = [machine("n", devices=4)]
    # j2 needs all of the node at 1300; j3 would still hold a device then, j4 would not.
    arrivals = [
        arrival("j1", 0.0, 1000.0, size=2),
        arrival("j2", 400.0, 100.0, size=4),
        arrival("j3", 410.0, 5000.0, size=1),
        arrival("j4", 420.0, 500.0, size=1),
    ]
    by_easy = waits(simulate(nodes, arrivals, easy, AT_ONCE))
    assert (by_easy["j2"], by_easy["j4"]) == (900.0, 0.0)
    assert by_easy["j3"] >= 900.0
    assert waits(simulate(nodes, arrivals, shortest_first, AT_ONCE))["j3"] == 0.0
    by_fifo = waits(simulate(nodes, arrivals, fifo(best_fit), AT_ONCE))
    assert by_fifo["j4"] >= by_fifo["j2"] == 900.0


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[Node], list[Arrival]]:
    nodes = [machine(f"a{number}") for number in range(draw(st.integers(1, 2)))]
    nodes += [machine(f"t{number}", "t4", 2, SMALL) for number in range(draw(st.integers(0, 2)))]
    arrivals: list[Arrival] = []
    for number in range(draw(st.integers(1, 6))):
        size = draw(st.sampled_from((1, 1, 2, 4)))
        kinds = "a100" if size == 4 else draw(st.sampled_from(("a100", "a100 t4")))
        one = arrival(f"j{number}", draw(st.sampled_from((0.0, 100.0, 1500.0))), 600.0, size, 1, kinds)
        runs_s = tuple(draw(st.sampled_from((30.0, 900.0, 7200.0))) for _ in one.runs_s)
        arrivals.append(replace(one, runs_s=runs_s))
    return nodes, arrivals


@given(windows(), st.sampled_from(POLICIES), st.sampled_from((0.0, 700.0)), st.sampled_from((None, OFTEN)))
@settings(max_examples=25, deadline=None)
def test_energy_is_the_sum_of_its_parts_and_never_below_the_physical_bound(
    drawn: tuple[list[Node], list[Arrival]], policy: Callable[[], Planner], idle_s: float, moving: Moving | None
) -> None:
    nodes, arrivals = drawn
    window = simulate(nodes, arrivals, policy(), Switching(idle_s=idle_s), pue=1.2, moving=moving)
    gap = energy_gap(nodes, arrivals, window, pue=1.2)
    assert sorted(run.job for run in window.runs) == sorted(one.job.id for one in arrivals)
    assert all(run.wait_s >= 0 for run in window.runs)
    assert min(gap.idle_j, gap.boot_j) >= -1e-6
    assert gap.shape_j >= -1e-6 * gap.bound_j
    assert window.total_j == pytest.approx(gap.bound_j + gap.idle_j + gap.boot_j + gap.shape_j)
    assert gap.share >= -1e-9
    assert window == simulate(nodes, arrivals, policy(), Switching(idle_s=idle_s), pue=1.2, moving=moving)


@given(windows())
@settings(max_examples=15, deadline=None)
def test_a_plan_costs_the_same_joules_in_the_planner_and_over_time(drawn: tuple[list[Node], list[Arrival]]) -> None:
    """All jobs that start at 0, on nodes that are off, with estimates that are right."""
    nodes, arrivals = drawn
    exact = [replace(one, at_s=0.0, runs_s=tuple(shape.run_s for shape in one.job.shapes)) for one in arrivals]
    first: list[Decision] = []

    def noted(problem: Problem) -> Decision:
        first.append(planned(problem))
        return first[-1]

    simulate(nodes, exact, noted, AT_ONCE, pue=1.2)
    placed = {placement.job for placement in first[0].placements}
    started = [one for one in exact if one.job.id in placed]
    window = simulate(nodes, started, lambda problem: first[0] if problem.jobs else planned(problem), AT_ONCE, pue=1.2)
    problem = Problem(nodes=tuple(nodes), jobs=tuple(one.job for one in started), horizon_s=window.end_s, pue=1.2)
    cost = evaluate(problem, first[0].placements)
    assert (cost.off_j, cost.boot_j) == pytest.approx((window.off_j, window.boot_j))
    assert (cost.on_j, cost.work_j) == pytest.approx((window.on_j, window.work_j))


def test_what_is_on_is_charged_to_whoever_uses_it() -> None:
    shape = Shape(members=1, devices=2, kind="a100", millicores=0, memory_bytes=0, run_s=60.0, active_w=100.0)
    job = Job(id="j", priority=0, order=0, shapes=(shape, replace(shape, kind="t4")), wait_w=1.0)
    nodes = (machine("a"), replace(machine("t", "t4", 2, SMALL), can_switch=False, on=True))
    problem = Problem(nodes=nodes, jobs=(job,), fill=0.8).shared_out()
    assert problem.fill == 0.0
    assert problem.nodes[0].power.base_w == pytest.approx(10.0 + 0.2 * 990.0)
    assert problem.nodes[1] == nodes[1]
    by_kind = {shape.kind: shape.active_w for shape in problem.jobs[0].shapes}
    assert by_kind == pytest.approx({"a100": 100.0 + 0.8 * 990.0 / 4, "t4": 100.0})


def test_a_node_that_others_will_fill_too_is_not_charged_to_the_first_job_alone() -> None:
    """A slow small node is the cheaper one for a job that stays alone, and the dearer one beside a node that fills."""
    nodes = (machine("a", devices=8), machine("t", "t4", 2, SMALL))
    fast = Shape(members=1, devices=1, kind="a100", millicores=0, memory_bytes=0, run_s=36_000.0, active_w=300.0)
    slow = replace(fast, kind="t4", run_s=108_000.0, active_w=60.0)
    job = Job(id="j", priority=0, order=0, shapes=(fast, slow), wait_w=1.0)

    def goes_to(fill: float) -> str:
        problem = Problem(nodes=nodes, jobs=(job,), fill=fill, horizon_s=200_000.0)
        return planned(problem).placements[0].members[0].node

    assert (goes_to(0.0), goes_to(1.0)) == ("t", "a")


def test_a_job_that_moves_goes_on_from_what_it_has_saved() -> None:
    """It saves every 600 s and moves after 1000: 400 s are lost, and the restart takes 60."""

    def moves_once(problem: Problem) -> Decision:
        first, second = problem.nodes[0], problem.nodes[1]
        if problem.moves:
            (one,) = problem.running
            assert (one.may_move, one.move_j) == (True, pytest.approx(460.0 * (100.0 + 990.0 / 4)))
            assert one.job.shapes[0].run_s == pytest.approx(2600.0)
            assert one.job.shapes[1].run_s == pytest.approx(1300.0)
            went = placement("j1", (second.id, [second.devices[0].id]))
            came = placement("j2", (second.id, [second.devices[1].id]))
            return Decision(placements=(came,), moves=(went,))
        return Decision(placements=tuple(placement(job.id, (first.id, [first.devices[0].id])) for job in problem.jobs))

    quick = arrival("j1", 0.0, 3600.0, kinds="a100 h100")
    shapes = (quick.job.shapes[0], replace(quick.job.shapes[1], run_s=1800.0))
    arrivals = [replace(quick, job=replace(quick.job, shapes=shapes)), arrival("j2", 1000.0, 100.0)]
    nodes = [replace(machine(name), on=True) for name in ("n1", "n2")]
    window = simulate(nodes, arrivals, moves_once, AT_ONCE, moving=Moving(per_job=0.5))
    (run,) = [run for run in window.runs if run.job == "j1"]
    assert (run.nodes, run.began_s, run.ended_s) == (("n2",), 0.0, 1000.0 + 60.0 + 3000.0)
    assert window.work_j == pytest.approx(100.0 * (4060.0 + 100.0))
    assert window.held_j == pytest.approx(990.0 / 4 * (4060.0 + 100.0))

"""Making jobs that run larger or smaller: what that is worth is worked out here a second time, by the definition."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.codec import decode_problem, encode_problem
from scheduler.consolidate import LEAST_GAIN
from scheduler.plan import Placement
from scheduler.problem import Hold, Job, Node, NodePower, PowerBudget, Problem, Reservation, Running
from scheduler.solve import solve
from scheduler.verify import verify
from tests.builders import HOUR, job, node, placement, shape, switchable
from tests.scheduler.test_consolidate import cluster

POWER = NodePower(base_w=1000.0, boot_s=300.0, boot_j=360_000.0)
MOVE_J = 50_000.0


def machine(name: str, devices: int = 1) -> Node:
    return node(name, power=POWER, h100=devices)


def elastic(name: str, homes: str, sizes: dict[int, float], *, priority: int = 0, move_j: float = MOVE_J) -> Running:
    """A job that holds one device on each of these nodes, and on so many nodes takes so many hours from now."""
    shapes = {members: shape(members=members, run_s=hours * HOUR) for members, hours in sizes.items()}
    own = shapes.pop(len(homes))
    return Running(
        job=job(name, own, priority=priority),
        shape=0,
        members=tuple(Hold(node=home, devices=(f"{home}-h100-0",)) for home in homes),
        move_j=move_j,
        may_move=False,
        resizes=tuple(shapes.values()),
    )


def ground(nodes: Sequence[Node], *those: Running, jobs: Sequence[Job] = (), resizes: int = 9) -> Problem:
    """The problem in which these jobs run on the nodes, and others wait."""
    return replace(cluster(nodes, *those, moves=0), jobs=tuple(jobs), resizes=resizes)


def where(of: Problem, moves: Sequence[Placement]) -> dict[str, str]:
    """The nodes of each job that is resized; the plan is a good one."""
    every = {one.job.id: one.every_shape for one in of.running}
    assert all(len(move.members) == every[move.job].shapes[move.shape].members for move in moves)
    return {move.job: "".join(member.node for member in move.members) for move in moves}


def resized(of: Problem) -> tuple[dict[str, str], list[str]]:
    """The nodes of each job that the plan resizes, and the jobs that start. A recorded problem has the same plan."""
    plan = solve(of)
    assert verify(of, plan) == []
    assert solve(decode_problem(encode_problem(of))) == plan
    return where(of, plan.moves), [one.job for one in plan.placements]


THREE = [machine("a"), machine("b"), machine("c")]
ALONE = elastic("j1", "a", {1: 6.0, 2: 3.0, 3: 2.0})
WIDE = elastic("j1", "abc", {1: 6.0, 2: 3.0, 3: 2.1})


def test_a_job_is_made_larger_where_nodes_are_free_and_keeps_its_own() -> None:
    of = ground(THREE, ALONE)
    plan = solve(of)
    assert resized(of) == ({"j1": "abc"}, [])
    assert plan.moves[0].members[0].devices == ("a-h100-0",)
    assert solve(replace(of, resizes=0)).moves == ()


def test_growth_must_save_what_a_restart_costs_all_its_devices_several_times_over() -> None:
    two = elastic("j1", "a", {1: 6.0, 2: 4.0})
    # It ends two hours sooner, which is worth the price of waiting; its devices work for eight hours and not for six.
    saves_j = 2 * HOUR * 125.0 - (2 * 4.0 - 6.0) * HOUR * 400.0
    assert saves_j < 0
    assert resized(ground(THREE, two))[0] == {}
    two = elastic("j1", "a", {1: 6.0, 2: 3.0})
    saves_j = 3 * HOUR * 125.0
    at_most = saves_j / LEAST_GAIN / 2
    for move_j, nodes in ((at_most - 1, {"j1": "ab"}), (at_most + 1, {})):
        assert resized(ground(THREE, replace(two, move_j=move_j)))[0] == nodes


@pytest.mark.parametrize(
    "changed", [{"open": False}, {"on": False}, {"booting": True}, {"free_millicores": 0}, {"free_memory_bytes": 0}]
)
def test_no_job_grows_onto_a_node_that_cannot_take_it_at_once(changed: dict[str, object]) -> None:
    two = elastic("j1", "a", {1: 6.0, 2: 3.0})
    of = ground([machine("a"), replace(machine("b"), **changed)], two)  # pyright: ignore[reportArgumentType]
    assert resized(of)[0] == {}
    closed = ground([replace(machine("a"), open=False), machine("b"), machine("c")], two)
    assert resized(closed)[0] == {}, "it could not go on where it is"


def test_nothing_grows_while_a_job_waits_that_finds_no_room() -> None:
    wide = job("j9", shape(2, run_s=0.1 * HOUR), wait_w=0.0)
    of = ground([*THREE, node("d", power=POWER, busy=1, h100=2)], ALONE)
    assert resized(of)[0] == {"j1": "abc"}
    assert resized(replace(of, jobs=(wide,))) == ({}, [])


def test_a_job_is_made_smaller_for_one_that_waits_by_as_little_as_that_needs() -> None:
    of = ground(THREE, WIDE, jobs=[job("j2")])
    plan = solve(of)
    assert resized(of) == ({"j1": "ab"}, ["j2"])
    assert plan.placements[0].members[0].node == "c"
    assert resized(ground(THREE, WIDE, jobs=[job("j2", shape(members=2))])) == ({"j1": "a"}, ["j2"])
    # One who needs all of it waits: no job is made smaller than its fewest nodes.
    assert resized(ground(THREE, WIDE, jobs=[job("j2", shape(members=3))])) == ({}, [])


def test_a_job_grows_onto_nodes_that_are_on_anyway_and_keeps_those_when_it_leaves_others() -> None:
    fixed = Running(job=job("j3", shape(run_s=9 * HOUR)), shape=0, members=(Hold(node="c", devices=("c-h100-1",)),))
    nodes = [switchable(machine("a")), switchable(machine("b")), switchable(machine("c", 2))]
    assert resized(ground(nodes, elastic("j1", "a", {1: 6.0, 2: 3.0}), fixed))[0] == {"j1": "ac"}
    wide = elastic("j1", "abc", {1: 3.0, 3: 2.5})
    assert resized(ground(nodes, wide, fixed, jobs=[job("j2")])) == ({"j1": "c"}, ["j2"])


def test_who_waits_starts_in_the_shape_that_costs_least_of_those_for_which_there_is_room() -> None:
    either = job("j2", shape(members=2, run_s=1.0 * HOUR), shape(run_s=1.1 * HOUR))
    of = ground(THREE, elastic("j1", "abc", {1: 3.0, 3: 2.5}), jobs=[either])
    assert resized(of) == ({"j1": "a"}, ["j2"])
    assert [one.shape for one in solve(of).placements] == [1]


def test_room_that_is_left_over_goes_to_the_next_in_line() -> None:
    wide = elastic("j1", "abc", {1: 3.0, 3: 2.5})
    assert resized(ground(THREE, wide, jobs=[job("j2"), job("j3"), job("j4")])) == ({"j1": "a"}, ["j2", "j3"])


def test_no_job_is_made_smaller_for_one_of_a_lower_priority_or_for_a_short_wait() -> None:
    assert resized(ground(THREE, elastic("j1", "abc", {2: 3.0, 3: 2.1}, priority=1), jobs=[job("j2")])) == ({}, [])
    ends_soon = elastic("j1", "abc", {2: 0.2, 3: 0.15}, move_j=MOVE_J)
    assert resized(ground(THREE, ends_soon, jobs=[job("j2")])) == ({}, [])
    # Another ends soon and leaves its node.
    soon = Running(job=job("j3", shape(run_s=60.0)), shape=0, members=(Hold(node="d", devices=("d-h100-0",)),))
    assert resized(ground([*THREE, machine("d")], WIDE, soon, jobs=[job("j2")])) == ({}, [])


def test_room_on_nodes_that_are_kept_for_another_is_only_for_that() -> None:
    kept = Reservation(job="j3", nodes=("c",), free_s=HOUR)
    of = ground(THREE, WIDE, jobs=[job("j2"), job("j3")], resizes=1)
    assert resized(of) == ({"j1": "ab"}, ["j2"])
    assert resized(replace(of, reservation=kept)) == ({"j1": "ab"}, ["j3"])


def test_the_checker_finds_one_resize_too_many_and_one_of_a_job_that_may_not_be() -> None:
    of = ground(THREE, ALONE)
    plan = solve(of)
    codes = [{one.code for one in verify(other, plan)} for other in (replace(of, resizes=0), replace(of, moves=9))]
    assert codes == [{"resizes_exceeded"}, set()]
    fixed = replace(of, running=(replace(ALONE, resizes=()),))
    assert {one.code for one in verify(fixed, plan)} >= {"unknown_shape"}
    moved = replace(plan, moves=(placement("j1", ("b", ["b-h100-0"])),))
    assert {one.code for one in verify(of, moved)} == {"moves_exceeded", "may_not_move"}


def test_under_power_budgets_nothing_is_resized() -> None:
    of = replace(ground(THREE, ALONE), budgets=(PowerBudget(name="all", watts=1e6, nodes=("a", "b", "c")),))
    with pytest.raises(ValueError, match="nor resizes"):
        solve(of)


Stands = dict[str, tuple[int, frozenset[str]]]


def present(of: Problem) -> Stands:
    """Shape and nodes of each job that runs."""
    return {one.job.id: (0, frozenset(hold.node for hold in one.members)) for one in of.running}


@st.composite
def grounds(draw: st.DrawFn) -> Problem:
    """Up to four nodes of one or two devices with jobs that run on some, and perhaps one that waits."""
    nodes = [machine(name, draw(st.integers(1, 2))) for name in "abcd"[: draw(st.integers(2, 4))]]
    if draw(st.booleans()):
        nodes = [switchable(one) for one in nodes]
    free = {one.id: [device.id for device in one.devices] for one in nodes}
    those: list[Running] = []
    for number in range(1, draw(st.integers(2, 4))):
        homes = draw(st.permutations([name for name, devices in free.items() if devices]))
        homes = homes[: draw(st.integers(1, 3))]
        if not homes:
            continue
        hours = draw(st.sampled_from((0.5, 2.0, 9.0)))
        pace = draw(st.sampled_from((0.0, 0.1, 0.6, 1.2)))
        sizes = {members: hours * (pace + (1 - pace) / members) for members in {1, 2, 3, len(homes)}}
        one = elastic(f"j{number}", "".join(homes), sizes, move_j=draw(st.sampled_from((0.0, 1e4, 2e5))))
        holds = tuple(Hold(node=home, devices=(free[home].pop(0),)) for home in homes)
        those.append(replace(one, members=holds, job=replace(one.job, priority=draw(st.integers(0, 1)))))
    wide = job("j9", shape(draw(st.integers(1, 2)), members=draw(st.integers(1, 2))), priority=1)
    of = replace(ground(nodes, *those, resizes=1), fill=draw(st.sampled_from((0.0, 0.6))))
    stands, devices = present(of), wide.shapes[0].devices
    waits = fits_on(of, stands, devices) < wide.shapes[0].members <= fits_on(of, {}, devices)
    return replace(of, jobs=(wide,)) if waits and draw(st.booleans()) else of


def takes_j(of: Problem, stands: Stands) -> float:
    """What the jobs that run still draw in these shapes and on these nodes, and what their late ends cost, in J."""
    every = {one.job.id: one.every_shape for one in of.running}
    joules, ends = 0.0, dict[str, float]()
    switched = {one.id: one for one in of.nodes if one.can_switch}
    for name, (number, homes) in stands.items():
        one = every[name].shapes[number]
        # The least that a device of the kind carries of any node.
        shared_w = min(
            of.fill * POWER.base_w / len(each.devices) if each.can_switch else 0.0 for each in of.nodes if each.devices
        )
        joules += one.size * (one.active_w + shared_w) * one.run_s + every[name].late_j(number)
        for home in homes:
            ends[home] = max(ends.get(home, 0.0), one.run_s)
    return joules + sum(
        (1 - of.fill) * POWER.base_w * min(of.horizon_s, end_s) for home, end_s in ends.items() if home in switched
    )


def fits_on(of: Problem, stands: Stands, devices: int) -> int:
    """Nodes that have so many devices free, with the jobs that run standing so."""
    return sum(len(one.devices) - sum(one.id in homes for _, homes in stands.values()) >= devices for one in of.nodes)


def worth_j(of: Problem, now: Stands) -> float:
    """What it is worth that the job that waits starts now: it would wait until enough of the others have ended."""
    wanted = of.jobs[0].shapes[0]
    ends_s = sorted(one.job.shapes[0].run_s for one in of.running)
    for end_s in ends_s:
        left = {one.job.id: now[one.job.id] for one in of.running if one.job.shapes[0].run_s > end_s}
        if fits_on(of, left, wanted.devices) >= wanted.members:
            return of.jobs[0].wait_w * wanted.size * min(of.horizon_s, end_s)
    raise AssertionError("it would fit if all others had ended")


def single_resizes(of: Problem, now: Stands) -> Iterator[tuple[float, Stands]]:
    """Every resize there may be, with what it saves: growths, or with a job that waits what lets that start."""
    gain_j = worth_j(of, now) if of.jobs else 0.0
    for one in of.running:
        own = now[one.job.id][1]
        for number, new in list(enumerate(one.every_shape.shapes))[1:]:
            for homes in map(frozenset, combinations([each.id for each in of.nodes], new.members)):
                after = {**now, one.job.id: (number, homes)}
                if fits_on(of, after, 0) < len(of.nodes) or not (homes < own if of.jobs else own < homes):
                    continue
                if of.jobs and fits_on(of, after, of.jobs[0].shapes[0].devices) < of.jobs[0].shapes[0].members:
                    continue
                costs_j = LEAST_GAIN * one.move_j * max(len(own), new.members) / len(own)
                yield gain_j + takes_j(of, now) - takes_j(of, after) - costs_j, after


@settings(max_examples=100, deadline=None)
@given(grounds())
def test_the_only_resize_is_the_best_and_worth_what_it_must(of: Problem) -> None:
    now, plan = present(of), solve(of)
    assert verify(of, plan) == []
    resizes = list(single_resizes(of, now))
    best_j = max([0.0, *(saves_j for saves_j, _ in resizes)])
    after = now | {move.job: (move.shape, frozenset(each.node for each in move.members)) for move in plan.moves}
    got_j = next((saves_j for saves_j, stands in resizes if stands == after), 0.0)
    assert got_j == pytest.approx(best_j, abs=1.0)
    assert bool(plan.moves) == (after != now) == (got_j > 0)
    assert {one.job for one in plan.placements} == ({one.id for one in of.jobs} if plan.moves else set())

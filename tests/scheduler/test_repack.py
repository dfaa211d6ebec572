"""Nodes planned whole: patterns against all there are, and packing a fleet anew with a free hand."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.demand import Demand, NodeClass
from scheduler.packing import Packer
from scheduler.patterns import Pattern, Pricer, pattern_of
from scheduler.plan import Placement
from scheduler.problem import Job, NodePower, Problem
from scheduler.repack import repack
from scheduler.solve import solve
from scheduler.verify import verify
from scheduler.whole import plan_whole_nodes
from tests.builders import job, node, placement, problem, shape
from tests.scheduler.test_packing import after, packings, without_devices

CLASS = NodeClass(
    kind="h100", devices=2, millicores=8000, memory_bytes=4, socket_w=100.0, socket_millicores=4000, isolation=0
)


def demand(devices: int, part: int, cores: int, memory: int) -> Demand:
    return Demand(
        kinds=("h100",) if devices else (),
        active_w=(50.0,) if devices else (),
        devices=devices,
        share=part if devices else 0,
        millicores=1000 * cores,
        memory_bytes=memory,
    )


demands = st.lists(
    st.one_of(
        st.builds(demand, st.just(1), st.sampled_from((300, 500, 700)), st.integers(0, 4), st.integers(0, 3)),
        st.builds(demand, st.integers(1, 2), st.just(1000), st.integers(0, 8), st.integers(0, 3)),
        st.builds(demand, st.just(0), st.just(0), st.integers(1, 8), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=4,
    unique=True,
)


def devices_filled(some: Sequence[Demand], least: int = 0, room: int = 1000) -> Iterator[tuple[int, ...]]:
    """All ways to share one device."""
    yield ()
    for t in range(least, len(some)):
        if some[t].shared and some[t].share <= room:
            for rest in devices_filled(some, t, room - some[t].share):
                yield (t, *rest)


def all_patterns(some: Sequence[Demand]) -> Iterator[Pattern]:
    """Every pattern of `CLASS`, and some that are too large for it."""
    shares = [one for one in devices_filled(some) if one]
    wholes = [t for t, one in enumerate(some) if one.devices and not one.shared]
    hosts = [t for t, one in enumerate(some) if not one.devices]
    on_devices = [((), ())]
    on_devices += [((), (one,)) for one in shares] + [((), (one, two)) for one in shares for two in shares]
    on_devices += [((t,), ()) for t in wholes] + [((t,), (one,)) for t in wholes for one in shares]
    on_devices += [((t, u), ()) for t in wholes for u in wholes]
    for whole, shared in on_devices:
        for counts in np.ndindex(*[9] * len(hosts)):
            members = Counter(whole) + Counter(dict(zip(hosts, map(int, counts), strict=True)))
            yield pattern_of(0, CLASS, some, members, shared)


def fits(one: Pattern, some: Sequence[Demand]) -> bool:
    counts = one.counts
    devices = len(one.shared) + sum(some[t].devices * count for t, count in one.members)
    return (
        devices <= CLASS.devices
        and sum(some[t].millicores * count for t, count in counts.items()) <= CLASS.millicores
        and sum(some[t].memory_bytes * count for t, count in counts.items()) <= CLASS.memory_bytes
        and all(sum(some[t].share for t in device) <= 1000 for device in one.shared)
    )


@given(demands, st.lists(st.integers(0, 200), min_size=4, max_size=4))
@settings(max_examples=100, deadline=None)
def test_no_pattern_is_worth_more_than_the_best_one(some: list[Demand], prices: list[int]) -> None:
    without_memory = [replace(one, memory_bytes=0) for one in some]
    worth = np.array(prices[: len(some)], dtype=float)
    most, patterns = Pricer(0, CLASS, without_memory).best(worth)
    everything = [one for one in all_patterns(without_memory) if fits(one, without_memory)]
    gains = [sum(worth[t] * count for t, count in one.counts.items()) - one.watts for one in everything]
    assert most == pytest.approx(max(0.0, *gains))
    assert all(fits(one, without_memory) for one in patterns)
    # Memory is no part of the search, but of what it finds.
    assert all(fits(one, some) for one in Pricer(0, CLASS, some).best(worth)[1])


@given(demands, st.lists(st.integers(0, 5), min_size=4, max_size=4), st.integers(0, 4))
@settings(max_examples=25, deadline=None)
def test_whole_nodes_hold_what_is_wanted_or_tell_the_rest(some: list[Demand], counts: list[int], nodes: int) -> None:
    able = [one for one in some if one.fits_empty(CLASS)]
    found = plan_whole_nodes([CLASS], [nodes], able, counts[: len(able)], [])
    assert found.nodes.total() <= nodes
    assert all(fits(one, able) for one in found.nodes)
    held = Counter[int]()
    for one, number in found.nodes.items():
        for t, count in one.counts.items():
            held[t] += number * count
    assert [held[t] + found.left[t] for t in range(len(able))] == counts[: len(able)]


QUIET = NodePower(base_w=100.0)
HOT = job("j1", shape(1, kind="h100", active_w=400.0), shape(1, kind="t4", active_w=60.0))
COOL = job("j2", shape(1, kind="h100", active_w=100.0), shape(1, kind="t4", active_w=50.0), order=2)
FULL = problem([node("a", h100=1, power=QUIET), node("b", t4=1, power=QUIET)], [])
CROSSED = [(HOT, placement("j1", ("a", ["a-h100-0"]))), (COOL, replace(placement("j2", ("b", ["b-t4-0"])), shape=1))]


@pytest.mark.parametrize(
    ("moves", "move_w", "swapped"), [(2, 0.0, True), (1, 0.0, False), (2, 140.0, True), (2, 150.0, False)]
)
def test_two_jobs_change_places_where_neither_could_move_alone(moves: int, move_w: float, swapped: bool) -> None:
    """Crossed they draw 450 W, swapped 160 W."""
    now = after(FULL, CROSSED)
    running = tuple(replace(one, move_j=move_w * one.job.shapes[one.shape].run_s) for one in now.running)
    of = replace(now, moves=moves, anew=True, running=running)
    plan = solve(of)
    assert {move.job: move.members[0].node for move in plan.moves} == ({"j1": "b", "j2": "a"} if swapped else {})
    assert verify(of, plan) == []


@pytest.mark.parametrize(("moves", "swapped"), [(1, set[str]()), (2, {"j1", "j2"}), (4, {"j1", "j2", "j3", "j4"})])
def test_a_budget_goes_where_a_move_saves_most(moves: int, swapped: set[str]) -> None:
    """Two crossed pairs: the first would save 145 W a move, the second 25 W."""
    machines = [*FULL.nodes, node("c", h100=1, power=QUIET), node("d", t4=1, power=QUIET)]
    warm = job("j3", shape(1, kind="h100", active_w=170.0), shape(1, kind="t4", active_w=60.0), order=3)
    cold = job("j4", shape(1, kind="h100", active_w=110.0), shape(1, kind="t4", active_w=50.0), order=4)
    held = [*CROSSED, (warm, placement("j3", ("c", ["c-h100-0"])))]
    held.append((cold, replace(placement("j4", ("d", ["d-t4-0"])), shape=1)))
    of = replace(after(problem(machines, []), held), moves=moves, anew=True)
    plan = solve(of)
    assert {move.job for move in plan.moves} == swapped
    assert verify(of, plan) == []


def test_one_makes_room_for_another_that_makes_room_for_a_third() -> None:
    """Clearing one node cannot seat the H100's job: who is there has nowhere to go before somebody else has gone."""
    machines = [node("a", h100=1, power=QUIET), node("b", t4=1, power=QUIET), node("c", l4=1, power=QUIET)]
    first = job("j1", shape(1, kind="h100"), shape(1, kind="t4"), order=1)
    second = job("j2", shape(1, kind="t4"), shape(1, kind="l4"), order=2)
    held = [(first, placement("j1", ("a", ["a-h100-0"]))), (second, placement("j2", ("b", ["b-t4-0"])))]
    of = replace(
        after(problem(machines, []), held), jobs=(job("j9", shape(1, kind="h100"), order=9),), moves=2, anew=True
    )
    plan = solve(of)
    assert [placed.job for placed in plan.placements] == ["j9"]
    assert {move.job: move.members[0].node for move in plan.moves} == {"j1": "b", "j2": "c"}
    assert verify(of, plan) == []
    assert solve(replace(of, moves=0)).placements == ()


def test_a_node_with_a_member_of_a_gang_stays_as_it_is() -> None:
    gang = job("j3", shape(1, kind="h100", cores=0, memory=0, members=2))
    of = problem([node("a", h100=2, power=QUIET), node("b", h100=1, power=QUIET), node("c", t4=1, power=QUIET)], [])
    held = [
        (HOT, placement("j1", ("a", ["a-h100-0"]))),
        (gang, placement("j3", ("a", ["a-h100-1"]), ("b", ["b-h100-0"]))),
        (COOL, replace(placement("j2", ("c", ["c-t4-0"])), shape=1)),
    ]
    packer = Packer(after(of, held))
    residents = dict(packer.residents)
    assert repack(packer, [], {}, 9) == []
    assert packer.residents == residents


@given(packings())
@settings(max_examples=25, deadline=None)
def test_a_free_hand_stops_nothing_and_draws_no_more(of: Problem) -> None:
    half = replace(of, jobs=of.jobs[::2])
    jobs: dict[str, Job] = {one.id: one for one in half.jobs}
    held: list[tuple[Job, Placement]] = [(jobs[placed.job], placed) for placed in solve(half).placements]
    now = after(of, held)
    alone = replace(now, jobs=(), moves=len(held), anew=True)
    plan = solve(alone)
    assert verify(alone, plan) == []
    packer = Packer(replace(now, jobs=()))
    before, free = dict(packer.residents), [list(left) for left in packer.fleet.free]
    changed = repack(packer, [], dict.fromkeys(before, 1e9), len(before))
    assert changed == []
    assert packer.residents == before
    assert packer.fleet.free == free
    for moves in (1, len(held)):
        queue = replace(now, jobs=(*of.jobs[1::2], job("j98", without_devices(1), order=98)), moves=moves, anew=True)
        plan = solve(queue)
        assert verify(queue, plan) == []
        assert len(plan.moves) <= moves

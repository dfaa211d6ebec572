"""Shares of devices, jobs without devices, and the price-guided placement of one arrival after the other."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.classes import class_of, count_demands, demand_of, demands_of
from scheduler.codec import decode_problem, encode_problem
from scheduler.demand import Outlook
from scheduler.fleet import Fleet
from scheduler.fluid import least_power
from scheduler.packing import Packer
from scheduler.plan import Outcome, Placement
from scheduler.problem import Hold, Isolation, Job, Node, NodePower, Problem, Running, Shape
from scheduler.solve import solve
from scheduler.verify import verify
from tests.builders import HOUR, job, node, problem, shape

POWER = NodePower(base_w=100.0, socket_w=100.0, socket_millicores=16_000)


def share(thousandths: int, *, isolation: Isolation = Isolation.NONE, **options: object) -> Shape:
    return replace(shape(1, **options), share=thousandths, isolation=isolation)  # pyright: ignore[reportArgumentType]


def without_devices(cores: int, memory: int = 1) -> Shape:
    return replace(shape(1, cores=cores, memory=memory, active_w=0.0), devices=0, kind="")


def places(of: Problem) -> dict[str, tuple[str, ...]]:
    """Where each placed job of one member went: the node and its devices."""
    return {placed.job: (placed.members[0].node, *placed.members[0].devices) for placed in solve(of).placements}


def test_shares_meet_on_one_device_and_whole_jobs_keep_theirs() -> None:
    jobs = [job("j1", share(600)), job("j2", share(400)), job("j3", shape(1)), job("j4", share(1, cores=1))]
    where = places(problem([node("a", h100=2, power=POWER)], jobs))
    assert where["j1"] == where["j2"]
    assert where["j3"] != where["j1"]
    assert "j4" not in where, "both devices are full"


def test_a_share_that_nobody_can_give_says_so() -> None:
    half = node("a", h100=1)
    half = replace(half, devices=(replace(half.devices[0], free=500),))
    plan = solve(problem([half], [job("j1", share(501)), job("j2", share(1, isolation=Isolation.MEMORY))]))
    waiting, impossible = plan.verdicts
    assert (waiting.outcome, impossible.outcome) == (Outcome.WAITING, Outcome.IMPOSSIBLE)
    assert "501 thousandths of a h100" in waiting.reasons[0].message
    assert "ask for at most 500" in waiting.reasons[0].message
    assert impossible.reasons[0].code == "too_little_isolation"
    assert "memory" in impossible.reasons[0].message


def test_shapes_that_ask_for_the_same_without_a_device_are_one_demand() -> None:
    shapes = (without_devices(2), replace(without_devices(2), run_s=5 * HOUR), without_devices(3))
    asks = job("a", *shapes)
    demands = [demand for _, demand in demands_of(shapes)]
    assert [demand_of(asks, number) for number in range(3)] == [demands[0], demands[0], demands[1]]


def test_isolation_is_at_least_what_is_asked_for() -> None:
    plain, parted = node("a", h100=1), node("b", h100=1)
    parted = replace(parted, devices=(replace(parted.devices[0], isolation=Isolation.HARDWARE),))
    assert places(problem([plain, parted], [job("j1", share(100, isolation=Isolation.MEMORY))]))["j1"][0] == "b"


def test_a_job_without_devices_goes_where_no_device_is_stranded() -> None:
    nodes = [node("a", h100=1, cores=32, power=POWER), node("b", h100=0, cores=32, power=POWER)]
    nodes[1] = replace(nodes[1], devices=())
    assert places(problem(nodes, [job("j1", without_devices(32)), job("j2", shape(1, cores=8))])) == {
        "j1": ("b",),
        "j2": ("a", "a-h100-0"),
    }


def test_of_several_kinds_the_one_that_draws_less() -> None:
    nodes = [node("a", h100=1), node("b", t4=1)]
    either = job("j1", shape(1, kind="h100", active_w=400.0), shape(1, kind="t4", active_w=60.0))
    assert places(replace(problem(nodes, [either, job("j2", share(10))])))["j1"][0] == "b"


def test_a_gang_beside_shares_stands_on_nodes_of_its_own() -> None:
    nodes = [node(name, h100=2, power=POWER) for name in "abc"]
    plan = solve(problem(nodes, [job("j1", share(500)), job("j2", shape(2, members=2))]))
    gang = next(placed for placed in plan.placements if placed.job == "j2")
    assert [member.node for member in gang.members] == ["b", "c"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (share(0), "share is 0"),
        (share(1001), "share is 1001"),
        (replace(shape(2), share=500), "share is 500"),
        (replace(shape(1), kind=""), "a kind goes with devices"),
    ],
)
def test_shares_that_make_no_sense_are_refused(wrong: Shape, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        solve(problem([node("a", h100=2)], [job("j1", wrong)]))


def looking_ahead(nodes: list[Node], jobs: list[Job], *expected: tuple[Shape, float]) -> Problem:
    """A problem whose outlook expects so many jobs of each shape until the fleet is full, on whichever class."""
    of = problem(nodes, jobs)
    classes = tuple(sorted({class_of(machine) for machine in nodes}))
    demands = tuple(demand_of(job("x", one), 0) for one, _ in expected)
    rows = tuple(tuple(number / len(classes) for _ in classes) for _, number in expected)
    return replace(of, outlook=(Outlook(classes=classes, demands=demands, loads=(1.0,), members=(rows,)),))


def test_a_job_without_devices_leaves_the_cores_that_devices_need() -> None:
    """On `b` it wakes another socket, on `a` none; but there each core serves a device."""
    nodes = [node("a", h100=4, cores=32, free_cores=24, power=POWER), node("b", h100=2, cores=96, power=POWER)]
    of = looking_ahead(nodes, [job("j1", without_devices(8))], (shape(1, cores=6), 6.0), (without_devices(8), 3.0))
    assert places(of)["j1"] == ("b",)
    assert places(replace(of, outlook=()))["j1"] == ("a",)


@pytest.mark.parametrize(("wide", "home"), [(0.0, "a"), (60.0, "z")])
def test_a_whole_node_is_kept_where_a_wide_job_will_miss_it(wide: float, home: str) -> None:
    """The small job is asked to wake a socket of 1 kW on `z`, rather than to break the only whole node that is left."""
    nodes = [node(f"f{number}", h100=8, busy=8, cores=64) for number in range(8)]
    nodes += [node("a", h100=8, cores=64), node("z", h100=1, cores=64, power=replace(POWER, socket_w=1000.0))]
    of = looking_ahead(nodes, [job("j1", shape(1))], (shape(8), wide), (shape(1), 1000.0))
    assert places(of)["j1"][0] == home


# What follows holds for every fleet.

kinds = st.sampled_from(("h100", "t4"))
shapes = st.one_of(
    st.builds(
        lambda devices, cores, kind: shape(devices, cores=cores, kind=kind), st.integers(1, 3), st.integers(0, 9), kinds
    ),
    st.builds(
        lambda part, cores, kind: share(part, cores=cores, kind=kind), st.integers(1, 999), st.integers(0, 9), kinds
    ),
    st.builds(without_devices, st.integers(1, 9)),
)


@st.composite
def fleets(draw: st.DrawFn) -> list[Node]:
    machines: list[Node] = []
    for number in range(draw(st.integers(1, 5))):
        cores, kind = draw(st.sampled_from((8, 16, 20))), draw(kinds)
        machines.append(node(f"n{number}", cores=cores, memory=4, power=POWER, **{kind: draw(st.integers(1, 3))}))
    return machines


@st.composite
def packings(draw: st.DrawFn) -> Problem:
    queue: Sequence[Job] = [
        job(f"j{number}", *draw(st.lists(shapes, min_size=1, max_size=2)), priority=draw(st.sampled_from((0, 0, 5))))
        for number in range(draw(st.integers(1, 12)))
    ]
    return problem(draw(fleets()), [*queue, job("j99", without_devices(1))])


@given(packings())
@settings(max_examples=25, deadline=None)
def test_plans_pass_the_checker_and_do_not_depend_on_the_order(of: Problem) -> None:
    plan = solve(of)
    assert verify(of, plan) == []
    turned = replace(of, nodes=of.nodes[::-1], jobs=of.jobs[::-1])
    assert sorted(solve(turned).placements, key=lambda placed: placed.job) == sorted(
        plan.placements, key=lambda placed: placed.job
    )
    assert decode_problem(encode_problem(of)) == of


def after(of: Problem, running: list[tuple[Job, Placement]]) -> Problem:
    """The problem as one would read it with these jobs running."""
    nodes = {machine.id: machine for machine in of.nodes}
    for one, placed in running:
        taken = one.shapes[placed.shape]
        for member in placed.members:
            machine = nodes[member.node]
            nodes[member.node] = replace(
                machine,
                free_millicores=machine.free_millicores - taken.millicores,
                free_memory_bytes=machine.free_memory_bytes - taken.memory_bytes,
                devices=tuple(
                    replace(device, free=device.free - (taken.share if device.id in member.devices else 0))
                    for device in machine.devices
                ),
            )
    held = tuple(
        Running(
            job=one,
            shape=placed.shape,
            members=tuple(Hold(node=member.node, devices=member.devices) for member in placed.members),
        )
        for one, placed in running
    )
    return replace(of, nodes=tuple(nodes.values()), running=held)


def foreseen(of: Problem) -> tuple[Outlook, ...]:
    """An outlook by which twice as many jobs as there are come until the fleet is full, on the first class that can."""
    classes = tuple(sorted({class_of(machine) for machine in of.nodes}))
    expected = {
        demand: count for demand, count in count_demands(of.jobs).items() if any(map(demand.fits_empty, classes))
    }
    homes = [next(number for number, node in enumerate(classes) if one.fits_empty(node)) for one in expected]
    rows = [
        tuple(2.0 * count if number == home else 0.0 for number in range(len(classes)))
        for home, count in zip(homes, expected.values(), strict=True)
    ]
    return (Outlook(classes=classes, demands=tuple(expected), loads=(1.0,), members=(tuple(rows),)),)


@given(packings(), st.booleans(), st.data())
@settings(max_examples=25, deadline=None)
def test_a_fleet_that_lived_through_changes_answers_like_one_read_afresh(
    of: Problem, looks_ahead: bool, data: st.DataObject
) -> None:
    of = replace(of, outlook=foreseen(of) if looks_ahead else ())
    packer = Packer(of)
    running: list[tuple[Job, Placement]] = []
    for one in of.jobs:
        if running and data.draw(st.booleans()):
            packer.stop(*running.pop(data.draw(st.integers(0, len(running) - 1))))
        now = replace(after(of, running), jobs=of.jobs)
        # Without an outlook the mix is that of the jobs, which must not count twice.
        fresh = Packer(now if looks_ahead else replace(now, running=()))
        assert fresh.fleet.room_left.tolist() == packer.fleet.room_left.tolist()
        expected = fresh.start(one)
        assert packer.start(one) == expected
        if expected is not None:
            running.append((one, expected))


@given(shapes, st.lists(st.integers(0, 1000), min_size=1, max_size=4), st.integers(0, 40))
@settings(max_examples=50, deadline=None)
def test_room_is_how_many_members_a_node_takes_one_after_the_other(asks: Shape, free: list[int], cores: int) -> None:
    machine = node("a", h100=len(free), cores=40, free_cores=cores)
    devices = zip(machine.devices, free, strict=True)
    machine = replace(machine, devices=tuple(replace(device, free=left) for device, left in devices))
    demand = demand_of(job("j1", asks), 0)
    fleet = Fleet([machine], {demand: 1.0})
    (room,) = fleet.room_left.tolist()
    packer = Packer(problem([machine], []))
    taken = 0
    while demand.devices and taken < 40 and (spot := packer.least_cost(demand)) is not None:
        packer.fleet.take(spot.node, demand, spot.slot)
        taken += 1
    assert taken == min(room, 40)


@given(packings())
@settings(max_examples=25, deadline=None)
def test_no_packing_draws_less_than_the_fluid_one(of: Problem) -> None:
    plan = solve(replace(of, jobs=tuple(replace(one, shapes=one.shapes[:1]) for one in of.jobs)))
    placed = {entry.job for entry in plan.placements}
    first = {one.id: replace(one, shapes=one.shapes[:1]) for one in of.jobs}
    # Every job runs for an hour, so watts above idle are the work's joules by 3600 s.
    drawn_w = plan.cost.work_j / HOUR
    nodes: dict[object, int] = {}
    for machine in of.nodes:
        nodes[class_of(machine)] = nodes.get(class_of(machine), 0) + 1
    fluid = least_power(nodes, count_demands(first[name] for name in sorted(placed)))  # pyright: ignore[reportArgumentType]
    assert fluid.bound_w <= drawn_w + 1e-6 * max(1.0, drawn_w)
    assert fluid.unplaced.sum() == pytest.approx(0.0, abs=1e-6)

"""The mix that is expected after what came, and the outlook that is learned from it beside what is there."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from scheduler.booking import look_ahead
from scheduler.classes import class_of, count_demands, demand_of
from scheduler.demand import PERIOD, Outlook
from scheduler.learning import expected_mix, outlook_beside, outlook_of_past, variation
from scheduler.packing import Packer
from scheduler.problem import Hold, Job, NodePower, Problem, Running
from tests.builders import job, node, problem, shape
from tests.scheduler.test_packing import share, without_devices

POWER = NodePower(base_w=100.0, socket_w=100.0, socket_millicores=16_000)
SMALL = [shape(1, cores=4), share(500, cores=2), share(250, cores=1)]
LARGE = [shape(4, cores=16), shape(2, cores=8), without_devices(4)]
FLEET = problem([node(f"n{number:02d}", h100=4, cores=32 + 32 * (number % 2), power=POWER) for number in range(40)], [])
CLASSES = Counter(class_of(machine) for machine in FLEET.nodes)


def arrivals(count: int, seed: int, share_of_large: float) -> list[Job]:
    rng = random.Random(seed)
    return [job(f"j{number}", rng.choice(LARGE if rng.random() < share_of_large else SMALL)) for number in range(count)]


@pytest.mark.parametrize(("later", "changes"), [(0.1, False), (0.6, True)])
def test_only_another_mix_is_a_change(later: float, changes: bool) -> None:
    before, since = arrivals(5000, 1, 0.1), arrivals(PERIOD, 3, later)
    mix = expected_mix([count_demands(before), count_demands(since)])
    pooled = expected_mix([count_demands([*before, *since])])
    assert (variation(mix, pooled) > 0.1) == changes
    assert changes or mix == pytest.approx(pooled)


def test_a_change_is_found_where_it_was_and_all_that_came_since_counts() -> None:
    periods = [count_demands(arrivals(PERIOD, number, 0.1)) for number in range(6)]
    since = [count_demands(arrivals(PERIOD, number, 0.6)) for number in range(6, 9)]
    truth = count_demands(arrivals(50_000, 10, 0.6))
    true_mix = expected_mix([truth])
    assert variation(expected_mix([*periods, *since]), true_mix) < 0.08
    assert variation(expected_mix([*periods, *since]), expected_mix(since)) < 0.02


def test_what_is_rare_is_expected_as_often_among_its_width_as_it_ever_was() -> None:
    """Large jobs become four times as many: those that need all cores of a node, too, though none has come yet."""
    usual, demanding, small = (
        demand_of(job("j1", one), 0) for one in (shape(4, cores=16), shape(4, cores=32), SMALL[1])
    )
    mix = expected_mix([{usual: 490.0, demanding: 10.0, small: 4500.0}, {usual: 200.0, small: 300.0}])
    assert mix[demanding] == pytest.approx(0.4 * 0.02, rel=0.35)


def test_what_is_misplaced_is_to_be_made_good_by_what_comes() -> None:
    """What runs counts in the new outlook, wherever it is: it says again which class lacks what."""
    outlook = look_ahead(CLASSES, count_demands(arrivals(5000, 1, 0.3)))
    packer = Packer(Problem(nodes=FLEET.nodes, jobs=(), outlook=outlook))
    for one in arrivals(60, 2, 0.3):
        assert packer.start(one) is not None
    mix = outlook[0].mix()
    (learned,) = outlook_beside(packer, mix)
    assert learned.loads[0] == pytest.approx(packer.fleet.load())
    for demand, members in zip(learned.demands, learned.members[0], strict=True):
        assert sum(members) == pytest.approx(packer.there().get(demand, 0.0), abs=1e-2)
    elsewhere = Packer(Problem(nodes=FLEET.nodes, jobs=()))
    for one in arrivals(60, 2, 0.3):
        assert elsewhere.start(one) is not None
    assert elsewhere.fleet.free != packer.fleet.free
    assert outlook_beside(elsewhere, mix) == (learned,)


def test_a_full_fleet_has_no_outlook() -> None:
    packer = Packer(Problem(nodes=FLEET.nodes, jobs=()))
    for number in range(160):
        packer.start(job(f"j{number}", shape(1, cores=1)))
    assert outlook_beside(packer, count_demands(arrivals(100, 1, 0.1))) == ()


KINDS_OF_JOBS = tuple(job(f"j{number}", one) for number, one in enumerate([*SMALL, *LARGE]))
USUAL, OTHER = [300, 300, 300, 30, 30, 30], [10, 10, 10, 160, 160, 160]
PAST = replace(FLEET, jobs=KINDS_OF_JOBS)


def shares(learned: tuple[Outlook, ...]) -> list[float]:
    """The part that each of the jobs of the past has in what is expected."""
    mix = learned[0].mix()
    return [mix[next(iter(count_demands([one])))] / sum(mix.values()) for one in KINDS_OF_JOBS]


def test_what_came_is_expected_again_and_what_came_lately_most_where_it_differs() -> None:
    steady = outlook_of_past(PAST, [USUAL, [number // 2 for number in USUAL]])
    assert shares(steady) == pytest.approx([number / sum(USUAL) for number in USUAL], abs=0.01)
    changed = outlook_of_past(PAST, [USUAL, OTHER])
    assert shares(changed) == pytest.approx([number / sum(OTHER) for number in OTHER], abs=0.01)


def test_what_no_node_could_hold_and_an_empty_past_are_no_obstacle() -> None:
    unknown = job("j9", shape(1, kind="b200"))
    with_it = replace(PAST, jobs=(*KINDS_OF_JOBS, unknown))
    learned = outlook_of_past(with_it, [[*USUAL, 900]])
    assert shares(learned) == pytest.approx([number / sum(USUAL) for number in USUAL], abs=0.01)
    assert outlook_of_past(PAST, [[0] * 6]) == ()
    assert outlook_of_past(replace(PAST, nodes=()), [USUAL]) == ()


def test_what_runs_is_part_of_the_outlook_from_the_past() -> None:
    held = replace(PAST.nodes[0], free_millicores=0, devices=tuple(replace(d, free=0) for d in PAST.nodes[0].devices))
    hold = Hold(node=held.id, devices=tuple(device.id for device in held.devices))
    runs = Running(job=KINDS_OF_JOBS[3], shape=0, members=(hold,), may_move=False)
    now = replace(PAST, nodes=(held, *PAST.nodes[1:]), running=(runs,))
    (learned,) = outlook_of_past(now, [USUAL])
    assert learned.loads[0] == pytest.approx(1 / len(PAST.nodes))

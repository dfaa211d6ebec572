"""What comes is compared with what was expected, and the outlook learned anew beside what is there."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from scheduler.booking import look_ahead
from scheduler.classes import class_of, count_demands
from scheduler.demand import Outlook
from scheduler.learning import TRUST, WINDOW, Expectation, by_chance, outlook_of_past
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


@pytest.mark.parametrize("size", [200, 2000])
def test_samples_of_one_source_differ_by_what_chance_explains(size: int) -> None:
    frequencies = np.array([0.4, 0.3, 0.1, 0.1, 0.05, 0.03, 0.015, 0.005])
    samples = np.random.default_rng(1).multinomial(size, frequencies, 2000) / size
    sizes = np.array([1, 1, 2, 1, 4, 1, 8, 1])
    measured = np.abs(samples - frequencies) @ sizes / 2
    mean, deviation = by_chance(frequencies, sizes, size)
    assert mean == pytest.approx(measured.mean(), rel=0.1)
    assert deviation == pytest.approx(measured.std(), rel=0.2)


@pytest.mark.parametrize(("later", "changes"), [(0.1, False), (0.6, True)])
def test_only_another_mix_is_a_change(later: float, changes: bool) -> None:
    outlook = look_ahead(CLASSES, count_demands(arrivals(5000, 1, 0.1)))[0]
    expectation = Expectation(outlook)
    jobs = [*arrivals(2 * WINDOW, 2, 0.1), *arrivals(2 * WINDOW, 3, later)]
    changed = [number for number, one in enumerate(jobs) if expectation.changed(one)]
    assert bool(changed) == changes
    assert all(number >= 2 * WINDOW for number in changed)


def test_what_is_there_stays_in_the_new_outlook_and_the_new_mix_comes_beside_it() -> None:
    outlook = look_ahead(CLASSES, count_demands(arrivals(5000, 1, 0.0)))
    packer = Packer(Problem(nodes=FLEET.nodes, jobs=(), outlook=outlook))
    expectation = Expectation(outlook[0])
    for one in arrivals(60, 2, 0.0):
        assert packer.start(one) is not None
    there, load = packer.there(), packer.fleet.load()
    for one in arrivals(5 * WINDOW, 3, 1.0):
        if expectation.changed(one):
            break
    learned = expectation.learn(packer)[0]
    assert learned.loads[0] == pytest.approx(load)
    for t, demand in enumerate(learned.demands):
        held = [there.get((demand, kind), 0.0) for kind in learned.classes]
        assert learned.members[0][t] == pytest.approx(held)
        for level in learned.members[1:]:
            assert all(now >= before - 1e-2 for now, before in zip(level[t], held, strict=True))
    mix = learned.mix()
    large = count_demands(job("j1", one) for one in LARGE)
    assert sum(mix[demand] for demand in large) > 4 * sum(mix.values()) / 5


def test_a_full_fleet_has_no_outlook() -> None:
    outlook = look_ahead(CLASSES, count_demands(arrivals(100, 1, 0.1)))
    packer = Packer(Problem(nodes=FLEET.nodes, jobs=(), outlook=outlook))
    for number in range(160):
        packer.start(job(f"j{number}", shape(1, cores=1)))
    assert Expectation(outlook[0]).learn(packer) == ()


KINDS_OF_JOBS = tuple(job(f"j{number}", one) for number, one in enumerate([*SMALL, *LARGE]))
USUAL, OTHER = [300, 300, 300, 30, 30, 30], [10, 10, 10, 160, 160, 160]
PAST = replace(FLEET, jobs=KINDS_OF_JOBS)


def shares(learned: tuple[Outlook, ...]) -> list[float]:
    """The part that each of the jobs of the past has in what is expected."""
    mix = learned[0].mix()
    return [mix[next(iter(count_demands([one])))] / sum(mix.values()) for one in KINDS_OF_JOBS]


def test_what_came_is_expected_again_and_what_came_lately_most_where_it_differs() -> None:
    steady = outlook_of_past(PAST, USUAL, [number // 2 for number in USUAL])
    assert shares(steady) == pytest.approx([number / sum(USUAL) for number in USUAL], abs=0.01)
    changed = outlook_of_past(PAST, USUAL, OTHER)
    expected = [TRUST * usual / sum(USUAL) + other for usual, other in zip(USUAL, OTHER, strict=True)]
    assert shares(changed) == pytest.approx([number / sum(expected) for number in expected], abs=0.01)


def test_what_no_node_could_hold_and_an_empty_past_are_no_obstacle() -> None:
    unknown = job("j9", shape(1, kind="b200"))
    with_it = replace(PAST, jobs=(*KINDS_OF_JOBS, unknown))
    learned = outlook_of_past(with_it, [*USUAL, 900], [0] * 7)
    assert shares(learned) == pytest.approx([number / sum(USUAL) for number in USUAL], abs=0.01)
    assert outlook_of_past(PAST, [0] * 6, [0] * 6) == ()
    assert outlook_of_past(replace(PAST, nodes=()), USUAL, USUAL) == ()


def test_what_runs_is_part_of_the_outlook_from_the_past() -> None:
    held = replace(PAST.nodes[0], free_millicores=0, devices=tuple(replace(d, free=0) for d in PAST.nodes[0].devices))
    hold = Hold(node=held.id, devices=tuple(device.id for device in held.devices))
    runs = Running(job=KINDS_OF_JOBS[3], shape=0, members=(hold,), may_move=False)
    now = replace(PAST, nodes=(held, *PAST.nodes[1:]), running=(runs,))
    (learned,) = outlook_of_past(now, USUAL, [0] * 6)
    assert learned.loads[0] == pytest.approx(1 / len(PAST.nodes))

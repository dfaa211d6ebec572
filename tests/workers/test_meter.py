"""Counters become samples: wraps, resets, and CPU time of attempts that come and go."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers import procfs
from workers.meter import CpuClock, Meter, Rapl


class Counters:
    """The two readings NVML gives of a device, as a test sets them."""

    def __init__(self, energy_mj, busy):
        self.energy_mj = dict(energy_mj)
        self.busy = dict(busy)


def meter(counters=None, *, rapl=None, totals=None):
    counters = counters or Counters({}, {})
    return Meter(
        every_s=5,
        gpus=list(counters.energy_mj),
        rapl=rapl,
        clock=CpuClock(totals or {}),
        now_s=100,
        energy_mj=lambda uuid: counters.energy_mj[uuid],
        utilisation=lambda uuid: counters.busy[uuid],
    )


def write_zone(root, number, name, value, largest=1_000_000):
    zone = root / f"intel-rapl:{number}"
    zone.mkdir(exist_ok=True)
    for file, text in (("name", name), ("energy_uj", value), ("max_energy_range_uj", largest)):
        (zone / file).write_text(f"{text}\n")


def test_busy_cores_are_cpu_time_over_the_stretch():
    [reading] = meter().read({"a1": 6.0, "a2": 4.0}, 105)
    assert (reading.ended_s, reading.sample.seconds, reading.sample.busy_cores) == (105, 5, 2.0)
    assert (reading.sample.source, reading.sample.device, reading.sample.energy_j) == ("proc", None, None)


def test_the_age_counts_from_the_end_of_the_stretch():
    [reading] = meter().read({}, 105)
    assert reading.aged(112).age_s == 7


def test_a_reading_is_due_after_the_interval():
    metering = meter()
    assert metering.next_s() == 105
    metering.read({}, 107)
    assert metering.next_s() == 112


def test_attempts_of_before_are_not_counted():
    [reading] = meter(totals={"a1": 100.0}).read({"a1": 101.0}, 101)
    assert reading.sample.busy_cores == 1


@given(
    steps=st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(0, 10), st.sampled_from(["work", "close", "ask"])), max_size=30
    )
)
def test_no_cpu_time_is_lost_or_counted_twice(steps):
    clock, totals, spent, counted = CpuClock({}), {}, 0.0, 0.0
    for number, (name, seconds, step) in enumerate(steps):
        if step == "work":
            totals[name] = totals.get(name, 0.0) + seconds
            spent += seconds
        elif step == "ask":
            counted += clock.used_s({f"{key}": value for key, value in totals.items()})
        elif name in totals:
            clock.close(name, totals.pop(name))
        assert counted <= spent + 1e-6, f"step {number}"
    counted += clock.used_s(totals)
    assert counted == pytest.approx(spent)


def test_energy_of_a_gpu_is_the_difference_of_its_counter():
    counters = Counters({"GPU-1": 5_000_000}, {"GPU-1": 0.25})
    metering = meter(counters)
    counters.energy_mj["GPU-1"] += 700_000
    _node, reading = metering.read({}, 101)
    assert (reading.sample.device, reading.sample.energy_j) == ("GPU-1", 700.0)
    assert (reading.sample.utilisation, reading.sample.source) == (0.25, "nvml")


@pytest.mark.parametrize(("before", "after"), [(5_000, 100), (None, 100), (5_000, None)])
def test_a_counter_that_started_anew_tells_nothing_for_one_stretch(before, after):
    counters = Counters({"GPU-1": before}, {"GPU-1": None})
    metering = meter(counters)
    counters.energy_mj["GPU-1"] = after
    assert metering.read({}, 101)[1].sample.energy_j is None
    counters.energy_mj["GPU-1"] = (after or 0) + 3_000
    second = metering.read({}, 102)[1].sample.energy_j
    assert second == (3.0 if after is not None else None)


def test_rapl_adds_packages_and_knows_the_wrap(tmp_path):
    write_zone(tmp_path, 0, "package-0", 900_000)
    write_zone(tmp_path, 1, "package-1", 100)
    write_zone(tmp_path, 2, "psys", 0)
    rapl = Rapl(tmp_path)
    write_zone(tmp_path, 0, "package-0", 300_000)
    write_zone(tmp_path, 1, "package-1", 500_100)
    write_zone(tmp_path, 2, "psys", 999_999)
    [reading] = meter(rapl=rapl).read({}, 105)
    assert reading.sample.energy_j == pytest.approx(0.4 + 0.5)
    assert reading.sample.source == "rapl"
    assert reading.sample.busy_cores == 0


def test_a_machine_without_rapl_is_metered_by_its_cores(tmp_path):
    [reading] = meter(rapl=Rapl(tmp_path)).read({}, 105)
    assert (reading.sample.energy_j, reading.sample.source) == (None, "proc")


def test_the_process_table_has_this_process_and_its_cpu_time():
    table = procfs.read_processes()
    me = table[os.getpid()]
    assert me.parent == os.getppid()
    assert me in procfs.descendants(me.parent, table)
    assert 0 < me.cpu_s <= sum(os.times()[:4]) + 0.05
    assert procfs.is_alive(me.pid, me.start)
    assert not procfs.is_alive(me.pid, me.start + 1), "the number alone is not enough"

"""Watts and joules against cases worked out by hand."""

import pytest

from scheduler.power import (
    Holding,
    InstalledDevice,
    Inventory,
    Reading,
    active_w,
    cpu_active_w,
    cpu_power,
    default_wait_w,
    device_power,
    host_base_w,
    node_power,
    price_stretch,
)
from scheduler.problem import NodePower
from tests.builders import node, shape


def gpu_node(kind: str, count: int, *, threads: int = 10, gigabytes: int = 0) -> Inventory:
    return Inventory(
        cpu_threads=threads,
        memory_bytes=gigabytes * 10**9,
        devices=tuple(InstalledDevice(id=f"g{number}", kind=kind) for number in range(count)),
    )


def cpu_node(slots: int = 4, *, threads: int = 4) -> Inventory:
    """Unknown CPU: 0.5 W idle and 4 W at peak for each thread; no memory."""
    devices = tuple(InstalledDevice(id=f"c{number}", kind="cpu") for number in range(slots))
    return Inventory(cpu_threads=threads, memory_bytes=0, devices=devices)


@pytest.mark.parametrize(
    ("kind", "limit_w"),
    [
        ("h100", 700),
        ("h100-80gb-hbm3", 700),
        ("h100-pcie", 350),
        ("nvidia-a100-sxm4-80gb", 400),
        ("a100-pcie-40gb", 300),
        ("a10g", 150),
        ("tesla-t4", 70),
        ("l4", 72),
        ("l40s", 350),
        ("quadro-rtx-6000", 260),
    ],
)
def test_a_kind_is_known_by_how_it_begins(kind: str, limit_w: float) -> None:
    assert device_power(kind).limit_w == limit_w


@pytest.mark.parametrize("kind", ["l40", "a1000", "gb300", "h1000"])
def test_another_number_is_another_device(kind: str) -> None:
    """Unknown: everything follows from the power limit, 200 W here."""
    power = device_power(kind, 200.0)
    assert (power.bare_idle_w, power.context_idle_w, power.training_w) == (0.11 * 200, 0.30 * 200, 0.75 * 200)


def test_every_device_draws_more_the_more_it_does() -> None:
    for kind in (
        "k80",
        "p100",
        "v100",
        "t4",
        "a10",
        "l4",
        "l40s",
        "a40",
        "a100",
        "h100",
        "h200",
        "b200",
        "mi300x",
        "x",
    ):
        power = device_power(kind)
        assert 0 < power.bare_idle_w <= power.context_idle_w < power.training_w <= power.limit_w


def test_a_lower_limit_caps_the_training_draw() -> None:
    assert device_power("h100").training_w == pytest.approx(0.75 * 700)
    assert device_power("h100", 400.0).training_w == 400.0
    assert device_power("h100", 900.0) == device_power("h100")


def test_active_draw_is_counted_from_bare_idle() -> None:
    # H100: 71.8 W bare, 121.7 W with a context, 0.75 * 700 W in training.
    assert active_w("h100") == pytest.approx(525.0 - 71.8)
    assert active_w("h100", utilisation=0.5) == pytest.approx(121.7 + 0.5 * (525.0 - 121.7) - 71.8)
    assert active_w("h100", utilisation=0.0) == pytest.approx(121.7 - 71.8)
    assert active_w("cpu") == 4.0 - 0.5


@pytest.mark.parametrize(
    ("model", "idle_w"),
    [
        ("AMD EPYC 7742 64-Core Processor", 0.36),
        ("AMD EPYC 7763 64-Core Processor", 0.41),
        ("Intel(R) Xeon(R) CPU E5-2682 v4 @ 2.50GHz", 0.51),
        ("Intel(R) Xeon(R) Platinum 8163 CPU @ 2.50GHz", 0.49),
        ("Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz", 0.46),
        ("Intel(R) Xeon(R) Platinum 8358 CPU @ 2.60GHz", 0.79),
        ("Intel(R) Core(TM) i7", 0.5),
        ("", 0.5),
    ],
)
def test_a_cpu_is_known_by_its_model(model: str, idle_w: float) -> None:
    assert cpu_power(model).idle_w == idle_w


def test_cpu_draw_rises_steeply_first_and_never_falls() -> None:
    # 4 threads, 3.5 W between idle and peak: 14 W * (2u - u^2).
    inventory = cpu_node()
    assert cpu_active_w(inventory, 0.0) == 0.0
    assert cpu_active_w(inventory, 2.0) == pytest.approx(14.0 * 0.75)
    assert cpu_active_w(inventory, 4.0) == pytest.approx(14.0)
    assert cpu_active_w(inventory, 9.0) == pytest.approx(14.0), "more than all threads cannot be busy"
    draws = [cpu_active_w(inventory, cores / 10) for cores in range(41)]
    assert draws == sorted(draws)


def test_base_of_a_cpu_node_is_its_threads_and_memory() -> None:
    inventory = Inventory(cpu_threads=64, memory_bytes=100 * 10**9, devices={})
    power = node_power(inventory, boot_s=100.0)
    assert power.base_w == pytest.approx(64 * 0.5 + 100 * 0.392)
    assert power == NodePower(base_w=power.base_w, off_w=15.0, boot_s=100.0, boot_j=1.2 * power.base_w * 100.0)


def test_base_of_a_gpu_node_is_its_chassis_and_idle_gpus() -> None:
    # 8xA100: 600 W outside the GPUs, 8 * 53.7 W inside: what a small CPU and no memory draw is part of the 600 W.
    assert node_power(gpu_node("a100", 8)).base_w == pytest.approx(600 + 8 * 53.7)
    # 1000 threads and 1000 GB draw 500 + 392 W, more than the 4 * 40 W of a T4 chassis.
    assert host_base_w(gpu_node("t4", 4, threads=1000, gigabytes=1000)) == pytest.approx(500 + 392)


def test_off_never_draws_more_than_on() -> None:
    power = node_power(Inventory(cpu_threads=1, memory_bytes=0, devices={}))
    assert power.off_w == power.base_w == 0.5


def test_a_waiting_device_costs_the_idle_share_of_the_cheapest_node() -> None:
    big = node("a", h100=8, power=NodePower(base_w=1600.0))
    small = node("b", t4=4, power=NodePower(base_w=200.0))
    mixed = node("c", h100=2, cpu=8, power=NodePower(base_w=480.0))
    assert default_wait_w([shape(kind="h100")], [big, small]) == 200.0
    assert default_wait_w([shape(kind="h100"), shape(kind="t4")], [big, small]) == 50.0
    assert default_wait_w([shape(kind="cpu")], [mixed]) == 60.0
    assert default_wait_w([shape(kind="h100")], [mixed]) == 240.0
    assert default_wait_w([shape(kind="h100")], [small]) == 0.0


def test_energy_of_a_gpu_node_is_split_between_holders_and_idle() -> None:
    # 2xH100 for 100 s. g0 is held and counted at 40 kJ, g1 is free and not counted: bare idle, 71.8 W.
    # Chassis: 2 * 125 W, half of it for each device. CPU: 5 of 10 threads busy, 35 W * 0.75, all for the only holder.
    bill = price_stretch(
        gpu_node("h100", 2),
        Reading(seconds=100.0, busy_cores=5.0, device_energy_j={"g0": 40_000.0}),
        [Holding(holder="j1", devices={"g0": 1000}, millicores=5000)],
    )
    assert bill.by_holder == {"j1": pytest.approx(40_000 + 12_500 + 35 * 0.75 * 100)}
    assert bill.idle_j == pytest.approx(12_500 + 7_180)
    assert bill.total_j == pytest.approx(40_000 + 12_500 + 2_625 + 12_500 + 7_180)
    assert bill.quality == "mixed"


def test_what_nobody_measures_is_modelled_as_the_planner_promised() -> None:
    # A full node for 10 s, each GPU busy: base plus 8 times the active draw, exactly what a plan charges.
    inventory = gpu_node("a100", 8)
    held = Holding(holder="j1", devices={f"g{number}": 1000 for number in range(8)}, millicores=0)
    bill = price_stretch(inventory, Reading(seconds=10.0), [held])
    promised_w = node_power(inventory).base_w + 8 * active_w("a100")
    assert bill.by_holder == {"j1": pytest.approx(10.0 * promised_w)}
    assert (bill.idle_j, bill.quality) == (0.0, "modelled")


def test_utilisation_sets_the_modelled_draw_of_a_held_device() -> None:
    # T4: 8 W bare, 21 W context, 52.5 W training; 40 W of chassis.
    reading = Reading(seconds=1.0, utilisation={"g0": 0.5})
    held = Holding(holder="j1", devices={"g0": 1000}, millicores=0)
    assert price_stretch(gpu_node("t4", 1), reading, [held]).by_holder == {
        "j1": pytest.approx(40 + 21 + 0.5 * (52.5 - 21))
    }


def test_a_cpu_node_is_shared_over_slots_and_busy_cores() -> None:
    # 4 slots of 4 threads for 10 s: 2 W base, 0.5 W a slot; 3 threads busy: 14 W * (1.5 - 0.5625), by cores 2 to 1.
    holdings = [
        Holding(holder="j1", devices={"c0": 1000, "c1": 1000}, millicores=2000),
        Holding(holder="j2", devices={"c2": 1000}, millicores=1000),
    ]
    bill = price_stretch(cpu_node(), Reading(seconds=10.0, busy_cores=3.0), holdings)
    cpu_j = 14.0 * 0.9375 * 10.0
    assert bill.by_holder == {
        "j1": pytest.approx(2 * 0.5 * 10 + cpu_j * 2 / 3),
        "j2": pytest.approx(1 * 0.5 * 10 + cpu_j * 1 / 3),
    }
    assert bill.idle_j == pytest.approx(0.5 * 10)


def test_a_counted_cpu_replaces_the_model_of_it() -> None:
    # 100 J counted over 10 s, of which 4 threads * 0.5 W * 10 s = 20 J are idle draw that the base has already.
    held = Holding(holder="j1", devices={}, millicores=4000)
    bill = price_stretch(cpu_node(), Reading(seconds=10.0, cpu_energy_j=100.0, busy_cores=4.0), [held])
    assert bill.by_holder == {"j1": pytest.approx(80.0)}
    assert bill.idle_j == pytest.approx(20.0)


def test_two_holdings_of_one_holder_add_up() -> None:
    holdings = [
        Holding(holder="u", devices={"c0": 1000}, millicores=0),
        Holding(holder="u", devices={"c1": 1000}, millicores=0),
    ]
    bill = price_stretch(cpu_node(), Reading(seconds=10.0), holdings)
    assert bill.by_holder == {"u": pytest.approx(2 * 0.5 * 10)}


def test_an_idle_node_is_all_idle() -> None:
    bill = price_stretch(gpu_node("a100", 8), Reading(seconds=3600.0, busy_cores=0.0), [])
    assert bill.total_j == bill.idle_j == pytest.approx(3600 * (600 + 8 * 53.7))
    assert bill.by_holder == {}


def test_nothing_is_lost_when_a_stretch_is_cut_in_two() -> None:
    inventory = gpu_node("h100", 2)
    held = [Holding(holder="j1", devices={"g1": 1000}, millicores=1000)]

    def bill(seconds: float) -> tuple[float, float, float]:
        reading = Reading(seconds=seconds, busy_cores=2.0, device_energy_j={"g1": 300.0 * seconds})
        priced = price_stretch(inventory, reading, held)
        return priced.total_j, priced.idle_j, priced.by_holder["j1"]

    assert bill(100.0) == pytest.approx([a + b for a, b in zip(bill(30.0), bill(70.0), strict=True)])


@pytest.mark.parametrize(
    ("holdings", "complaint"),
    [
        ([Holding(holder="j1", devices={"g9": 1000}, millicores=0)], "names device g9, which the node does not have"),
        (
            [Holding(holder=name, devices={"g0": 1000}, millicores=0) for name in ("j1", "j2")],
            "j1, j2 hold more than the whole of device g0 at once",
        ),
    ],
)
def test_holdings_that_cannot_be_are_refused(holdings: list[Holding], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        price_stretch(gpu_node("h100", 2), Reading(seconds=1.0), holdings)

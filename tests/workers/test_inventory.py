"""What a node offers."""

import os

import pytest

from workers.inventory import (
    device_kind,
    machine_id,
    offers_whole_machine,
    parse_slots,
    take_inventory,
    total_memory_bytes,
)
from workers.nvml import Gpu

CORES = sorted(os.sched_getaffinity(0))
H100 = Gpu(uuid="GPU-1", name="NVIDIA H100 80GB HBM3", index=0, memory_bytes=80 << 30, power_limit_w=700.0)


def inventory(**changes):
    values = {"address": "10.0.0.1", "gpus": [], "slots": None, "memory_bytes": None, "labels": {}}
    values |= {"containment": "none", "containers": ("podman", "")}
    return take_inventory(**(values | changes))


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("4", [0, 1, 2, 3]),
        ("0", []),
        ("0-3", [0, 1, 2, 3]),
        ("0,2", [0, 2]),
        ("2-2", [2]),
        ("6,0-1,1", [0, 1, 6]),
        (" 1 , 3", [1, 3]),
    ],
)
def test_slots(text, slots):
    assert parse_slots(text) == slots


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-1", "0,,1", "1.5"])
def test_slots_that_are_none(text):
    with pytest.raises(ValueError, match="CPU slots"):
        parse_slots(text)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb-hbm3"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm4-40gb"),
        ("Tesla V100-SXM2-16GB", "tesla-v100-sxm2-16gb"),
        ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090"),
        ("NVIDIA RTX 6000 (Ada) / MaxQ", "rtx-6000-ada-maxq"),
        ("NVIDIA", "gpu"),
    ],
)
def test_the_kind_of_a_gpu(name, kind):
    assert device_kind(name) == kind


def test_without_a_gpu_every_core_is_a_slot():
    report = inventory()
    assert [device.kind for device in report.devices] == ["cpu"] * len(CORES)
    assert report.cpu_cores == len(CORES)
    assert report.memory_bytes == total_memory_bytes()
    assert report.cpu_threads == len(CORES)


def test_slots_take_their_share_of_the_memory():
    report = inventory(slots=CORES[:1])
    assert report.cpu_cores == 1
    assert report.memory_bytes == total_memory_bytes() // len(CORES)
    assert inventory(slots=CORES[:1], memory_bytes=1000).memory_bytes == 1000


def test_with_a_gpu_no_slot_is_offered_unless_asked_for():
    report = inventory(gpus=[H100])
    [device] = report.devices
    assert (device.id, device.kind, device.memory_bytes, device.power_limit_w) == (
        "GPU-1",
        "h100-80gb-hbm3",
        80 << 30,
        700,
    )
    assert (report.cpu_cores, report.memory_bytes) == (len(CORES), total_memory_bytes())
    assert [device.kind for device in inventory(gpus=[H100], slots=[0]).devices] == ["h100-80gb-hbm3", "cpu"]


def test_two_agents_on_a_machine_collide_where_their_slots_overlap():
    first = {device.id for device in inventory(slots=[0, 1]).devices}
    second = {device.id for device in inventory(slots=[1, 2]).devices}
    assert first & second == {f"cpu:{machine_id()}:1"}


def test_indexes_are_unique_on_a_node():
    report = inventory(gpus=[H100], slots=[5, 7])
    assert [device.index for device in report.devices] == [0, 1, 2]


def test_two_agents_on_a_machine_answer_for_its_threads_once():
    parts = [CORES[:1], CORES[1:]]
    threads = [inventory(slots=part).cpu_threads for part in parts if part]
    assert sum(threads) == len(CORES)
    assert inventory(slots=[CORES[0], 9_999]).cpu_threads == 1, "a slot that is no thread draws nothing"
    assert inventory(gpus=[H100], slots=CORES[:1]).cpu_threads == os.cpu_count(), "GPUs take their host with them"


def test_only_an_agent_with_all_cores_offers_the_whole_machine():
    assert offers_whole_machine(inventory(slots=range(os.cpu_count())))
    assert not offers_whole_machine(inventory(slots=range(os.cpu_count() - 1)))


def test_a_slot_beyond_the_cores_is_offered_with_a_warning(caplog):
    assert len(inventory(slots=[0, 9_999]).devices) == 2
    assert "9999" in caplog.text

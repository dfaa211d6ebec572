"""What takes devices out of use: the administrator's program, and what the driver says."""

import os
import signal

import pynvml
import pytest

from protocol.nodes import DeviceReport
from tests.tmpfs import needs_root, small_disk
from workers import health, nvml
from workers.health import Health, ask, judge

SLOTS = ["cpu:m:0", "cpu:m:1"]


@pytest.fixture
def program(tmp_path):
    """An executable script."""

    def write(script):
        path = tmp_path / "check"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return write


@pytest.mark.parametrize(
    ("said", "unfit"),
    [
        ("fan broken\nmore", dict.fromkeys(SLOTS, "fan broken")),
        ("", dict.fromkeys(SLOTS, "the health check ended with code 3")),
        ("looking\ncpu:m:1 too hot\n", {"cpu:m:1": "too hot"}),
        ("cpu:m:1: too hot\ncpu:m:0", {"cpu:m:1": "too hot", "cpu:m:0": "the health check ended with code 3"}),
        ("cpu:m:9 not ours", dict.fromkeys(SLOTS, "cpu:m:9 not ours")),
        ("x" * 9_999, dict.fromkeys(SLOTS, "x" * 500)),
    ],
)
def test_what_a_check_means_that_fails(said, unfit):
    assert judge(3, said, SLOTS) == unfit


def test_a_check_that_ends_well_takes_nothing_out(program):
    assert ask(program("echo cpu:m:0 fine"), SLOTS) == {}


def test_a_check_that_fails_is_heard_on_both_of_its_streams(program):
    assert ask(program("echo cpu:m:0 hot; echo cpu:m:1 hotter >&2; exit 1"), SLOTS) == {
        "cpu:m:0": "hot",
        "cpu:m:1": "hotter",
    }


def test_a_check_that_is_killed_or_cannot_be_run_takes_the_node_out(program, tmp_path):
    assert ask(program("kill -KILL $$"), SLOTS) == dict.fromkeys(
        SLOTS, f"the health check ended with code {-signal.SIGKILL}"
    )
    assert "No such file" in ask(tmp_path / "absent", SLOTS)["cpu:m:0"]


def test_a_check_that_hangs_takes_the_node_out(program, monkeypatch):
    monkeypatch.setattr(health, "LIMIT_S", 0.1)
    assert "did not end in 0.1 s" in ask(program("exec sleep 1000"), SLOTS)["cpu:m:0"]


def test_the_check_does_not_see_the_agents_secrets(program, monkeypatch):
    monkeypatch.setenv("ERGON_TOKEN", "secret")
    assert ask(program('[ -z "$ERGON_TOKEN" ]'), SLOTS) == {}


def test_driver_and_program_are_put_together(program, tmp_path):
    devices = [DeviceReport(id="GPU-1", kind="h100", index=0), DeviceReport(id="cpu:m:0", kind="cpu", index=1)]
    asked = []

    def gpu_fault(uuid):
        asked.append(uuid)
        return "lost"

    both = Health(devices, folder=tmp_path, gpu_fault=gpu_fault, program=program("exit 1"), every_s=1, ring=os.getpid)
    looked = both.look()
    assert looked == {"GPU-1": "lost", "cpu:m:0": "the health check ended with code 1"}
    assert asked == ["GPU-1"]


@needs_root
def test_a_node_with_little_room_left_is_taken_out_and_comes_back():
    devices = [DeviceReport(id=slot, kind="cpu", index=number) for number, slot in enumerate(SLOTS)]
    with small_disk(16) as disk:
        node = Health(devices, folder=disk.folder, gpu_fault=str, program=None, every_s=1, ring=os.getpid)
        assert node.look() == {}
        disk.fill(leave=3 << 20)
        why = f"{disk.free() >> 20} MiB are free on the disk of the state folder {disk.folder}; make room there"
        assert node.look() == dict.fromkeys(SLOTS, why)
        disk.make_room()
        assert node.look() == {}


# -- the driver's word. There is no GPU where these run: its answers are given here.


@pytest.fixture
def driver(monkeypatch):
    """The answers of a driver with one healthy GPU, to be changed."""
    events = []
    answers = {
        "nvmlEventSetCreate": lambda: "events",
        "nvmlDeviceRegisterEvents": lambda handle, kind, events: None,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetUUID": lambda handle: handle,
        "nvmlDeviceGetMemoryInfo": lambda handle: None,
        "nvmlDeviceGetTotalEccErrors": lambda handle, kind, counter: 0,
        "nvmlDeviceGetRemappedRows": lambda handle: (0, 0, 0, 0),
        "nvmlEventSetWait_v2": lambda events_, timeout: events.pop(0) if events else refuse(),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    monkeypatch.setattr(pynvml, "events", events, raising=False)
    return monkeypatch


def refuse(*_arguments):
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


class Event:
    def __init__(self, xid):
        self.device, self.eventData = "GPU-1", xid


@pytest.mark.parametrize(
    ("question", "answer", "said"),
    [
        ("nvmlDeviceGetTotalEccErrors", lambda *_: 2, "2 uncorrectable memory errors"),
        ("nvmlDeviceGetTotalEccErrors", refuse, None),
        ("nvmlDeviceGetRemappedRows", lambda _: (1, 1, 0, 0), None),
        ("nvmlDeviceGetRemappedRows", lambda _: (0, 1, 1, 0), "reset the GPU"),
        ("nvmlDeviceGetRemappedRows", lambda _: (0, 1, 0, 1), "must be replaced"),
        ("nvmlDeviceGetRemappedRows", refuse, None),
        ("nvmlDeviceGetMemoryInfo", refuse, "the driver does not reach it"),
        ("nvmlDeviceRegisterEvents", refuse, None),
    ],
)
def test_what_the_driver_says_is_wrong(driver, question, answer, said):
    driver.setattr(pynvml, question, answer)
    fault = nvml.GpuFaults(["GPU-1"]).fault("GPU-1")
    assert (fault is None) == (said is None)
    assert said is None or said in fault


@pytest.mark.parametrize(("xid", "is_fault"), [(79, True), (31, False)])
def test_critical_events_of_the_hardware_count_until_the_agent_starts_again(driver, xid, is_fault):
    faults = nvml.GpuFaults(["GPU-1"])
    pynvml.events.append(Event(xid))
    for _time in range(2):
        assert (faults.fault("GPU-1") is not None) == is_fault
    assert nvml.GpuFaults(["GPU-1"]).fault("GPU-1") is None

"""What this node offers: GPUs, CPU slots, memory; and who it is."""

import hashlib
import logging
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path

from protocol.nodes import ContainerRuntime, Containment, DeviceReport, NodeReport
from workers.cgroups import Groups
from workers.nvml import Gpu

log = logging.getLogger(__name__)


def take_inventory(
    *,
    address: str,
    gpus: Sequence[Gpu],
    slots: Sequence[int] | None,
    memory_bytes: int | None,
    labels: dict[str, str],
    containment: Containment,
    containers: tuple[ContainerRuntime | None, str],
) -> NodeReport:
    """The report an agent registers with.

    Args:
        address: where other nodes reach this one.
        gpus: the devices of this machine.
        slots: numbers of the CPU slots to offer; None for every core if there is no GPU, and for none if there is.
        memory_bytes: main memory to offer; None for all of it, or for the slots' share if nothing but slots is offered.
        labels: for people and placement rules.
        containment: how the agent keeps the processes of an attempt together.
        containers: what runs containers here, and why nothing does, as `workers.containers.find_runtime` says.
    """
    cores = sorted(os.sched_getaffinity(0))
    if slots is None:
        slots = [] if gpus else cores
    beyond = [slot for slot in slots if slot not in cores]
    if beyond:
        log.warning("this machine has no core for CPU slots %s: ranks there will share cores", beyond)
    cpu_cores = len(cores) if gpus else len(slots)
    if memory_bytes is None:
        memory_bytes = total_memory_bytes() * min(cpu_cores, len(cores)) // len(cores)
    return NodeReport(
        address=address,
        boot_id=boot_id(),
        cpu_model=cpu_model(),
        cpu_cores=cpu_cores,
        cpu_threads=machine_threads() if gpus else max(1, len(set(slots) & set(cores))),
        memory_bytes=memory_bytes,
        devices=[_gpu_report(gpu) for gpu in gpus] + _slot_reports(slots, first_index=len(gpus)),
        labels=labels,
        containment=containment,
        container_runtime=containers[0],
        container_fault=containers[1],
    )


def offers_whole_machine(report: NodeReport) -> bool:
    """Whether no other agent can share this machine, so that what the machine draws is this node's."""
    return report.cpu_threads >= machine_threads()


def containment_of(groups: Groups | None) -> Containment:
    """How an agent with these control groups keeps the processes of an attempt together."""
    if groups is None:
        return "none"
    return "cgroup-v2" if groups.unified else "cgroup-v1"


def machine_threads() -> int:
    """Hardware threads of the whole machine."""
    return os.cpu_count() or 1


def parse_slots(text: str) -> list[int]:
    """The CPU slots that `--cpu-slots` names: a count (`4`), ranges and numbers (`0-3`, `0,2`, `0-1,6`), or none (`0`).

    Raises:
        ValueError: with the remedy.
    """
    if re.fullmatch(r"\d+", text):
        return list(range(int(text)))
    slots: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise ValueError(f"{text!r} is no list of CPU slots; write a count (4), a range (0-3) or numbers (0,2)")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"the range {part.strip()!r} of CPU slots runs backwards")
        slots.update(range(first, last + 1))
    return sorted(slots)


def device_kind(name: str) -> str:
    """The kind of a GPU from the driver's name for it: `NVIDIA H100 80GB HBM3` is `h100-80gb-hbm3`."""
    words = re.sub(r"[^a-z0-9._]+", "-", name.lower().removeprefix("nvidia")).strip("-._")
    return words[:63] or "gpu"


def machine_id() -> str:
    """32 hexadecimal digits that tell this machine from others, the same for every agent on it.

    They are derived from `/etc/machine-id`, which itself is not meant to leave the machine (machine-id(5)), or else
    from the host name.
    """
    try:
        seed = Path("/etc/machine-id").read_text().strip()
    except OSError:
        seed = ""
    return hashlib.sha256(f"ergon:{seed or socket.gethostname()}".encode()).hexdigest()[:32]


def boot_id() -> str:
    """Changes whenever the machine boots."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def cpu_model() -> str:
    """What the processor calls itself; empty where it does not say (most Arm machines)."""
    match = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1][:255] if match else ""


def total_memory_bytes() -> int:
    """Main memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _gpu_report(gpu: Gpu) -> DeviceReport:
    return DeviceReport(
        id=gpu.uuid,
        kind=device_kind(gpu.name),
        index=gpu.index,
        memory_bytes=gpu.memory_bytes,
        power_limit_w=gpu.power_limit_w,
    )


def _slot_reports(slots: Sequence[int], *, first_index: int) -> list[DeviceReport]:
    machine = machine_id()
    return [
        DeviceReport(id=f"cpu:{machine}:{slot}", kind="cpu", index=first_index + number)
        for number, slot in enumerate(slots)
    ]

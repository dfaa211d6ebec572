"""Seeded problems for benchmarks and tests: a mixed cluster, partly busy, and a queue of training jobs.

The cluster is a quarter 8xH100, a quarter 8xA100, an eighth each of 4xT4 and 4xL4, and a quarter CPU nodes. The random
generator is an argument: the same seed gives the same problem.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.power import CPU_KIND, InstalledDevice, Inventory, active_w, default_wait_w, node_power
from scheduler.problem import WHOLE_DEVICE, Device, Job, Node, Problem, Shape

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeModel:
    """A machine one can buy: devices of one kind, hardware threads, GiB of memory."""

    kind: str
    devices: int
    threads: int
    memory_gib: int
    cpu: str


H100 = NodeModel(kind="h100", devices=8, threads=192, memory_gib=2048, cpu="Intel(R) Xeon(R) Platinum 8468")
A100 = NodeModel(kind="a100", devices=8, threads=128, memory_gib=1024, cpu="AMD EPYC 7742 64-Core Processor")
T4 = NodeModel(kind="t4", devices=4, threads=48, memory_gib=192, cpu="Intel(R) Xeon(R) Platinum 8259CL")
L4 = NodeModel(kind="l4", devices=4, threads=48, memory_gib=192, cpu="AMD EPYC 7R13 Processor")
CPU = NodeModel(kind=CPU_KIND, devices=64, threads=64, memory_gib=256, cpu="AMD EPYC 7543 32-Core Processor")
CLUSTER = (H100, A100, T4, CPU, H100, A100, L4, CPU)

PRIORITIES = (0, 10, 50, 100)
PRIORITY_SHARES = (0.6, 0.25, 0.12, 0.03)
SIZES = (1, 2, 4, 8, 16)
SIZE_SHARES = {
    "narrow": (0.60, 0.22, 0.12, 0.05, 0.01),
    "mixed": (0.40, 0.22, 0.18, 0.15, 0.05),
    "wide": (0.20, 0.20, 0.20, 0.28, 0.12),
}
ALTERNATIVES = {"h100": (A100, 1.9), "a100": (H100, 0.55), "t4": (L4, 0.6), "l4": (T4, 1.7)}
"""The kind a job may also accept, and how its run time changes there (Gavel's measurements span 0.5-2)."""
ALTERNATIVE_SHARE = 0.3


def draw_problem(rng: np.random.Generator, *, jobs: int = 200, nodes: int = 64) -> Problem:
    """A problem of `jobs` jobs and `nodes` nodes. How busy the cluster and how wide the jobs are is drawn as well, so
    that some queues fit and others ask for several times what is free.
    """
    busy_share = rng.uniform(0.1, 0.7)
    widths = SIZE_SHARES[str(rng.choice(list(SIZE_SHARES)))]
    cluster = tuple(_node(rng, CLUSTER[number % len(CLUSTER)], number, busy_share) for number in range(nodes))
    present = list(dict.fromkeys(CLUSTER[:nodes]))
    queue = tuple(_job(rng, present, widths, cluster, number) for number in range(jobs))
    return Problem(nodes=cluster, jobs=queue, pue=round(float(rng.uniform(1.05, 1.6)), 2))


def _node(rng: np.random.Generator, model: NodeModel, number: int, busy_share: float) -> Node:
    name = f"{model.kind}-{number:03d}"
    ids = [f"{name}-{index}" for index in range(model.devices)]
    memory = model.memory_gib * GIB
    held, busy_s = 0, 0.0
    if rng.random() < busy_share:
        held = int(rng.integers(1, model.devices + 1))
        busy_s = _run_s(rng)
    can_switch = bool(rng.random() < 0.5)
    inventory = Inventory(
        cpu_threads=model.threads,
        memory_bytes=memory,
        devices=tuple(InstalledDevice(id=device, kind=model.kind) for device in ids),
        cpu_model=model.cpu,
    )
    share_left = 1 - held / model.devices * float(rng.uniform(0.6, 1.0))
    return Node(
        id=name,
        devices=tuple(
            Device(id=device, kind=model.kind, free=0 if index < held else WHOLE_DEVICE)
            for index, device in enumerate(ids)
        ),
        cpu_millicores=model.threads * 1000,
        free_millicores=round(model.threads * 1000 * share_left) if held else model.threads * 1000,
        memory_bytes=memory,
        free_memory_bytes=round(memory * share_left) if held else memory,
        power=node_power(inventory),
        on=held > 0 or not can_switch or bool(rng.random() < 0.5),
        can_switch=can_switch,
        open=bool(rng.random() < 0.97),
        busy_s=busy_s,
    )


def _job(
    rng: np.random.Generator,
    present: list[NodeModel],
    widths: tuple[float, ...],
    cluster: tuple[Node, ...],
    number: int,
) -> Job:
    model = present[int(rng.integers(len(present)))]
    size = int(rng.choice(SIZES, p=widths))
    if model is CPU:
        size *= int(rng.choice((1, 2, 4)))
    utilisation = float(rng.uniform(0.5, 1.0))
    run_s = _run_s(rng)
    cores_share, memory_share = float(rng.uniform(0.3, 1.0)), float(rng.uniform(0.1, 1.0))

    def shape(on: NodeModel, slowdown: float) -> Shape:
        devices = min(size, on.devices)
        return Shape(
            members=size // devices,
            devices=devices,
            kind=on.kind,
            millicores=devices * (1000 if on is CPU else round(on.threads / on.devices * 1000 * cores_share)),
            memory_bytes=round(devices * on.memory_gib * GIB / on.devices * memory_share),
            run_s=round(run_s * slowdown / 60) * 60.0 + 60.0,
            active_w=round(active_w(on.kind, utilisation=utilisation), 1),
        )

    shapes = [shape(model, 1.0)]
    if model.kind in ALTERNATIVES and rng.random() < ALTERNATIVE_SHARE:
        other, slowdown = ALTERNATIVES[model.kind]
        shapes.append(shape(other, slowdown * float(rng.uniform(0.85, 1.15))))
    return Job(
        id=f"job-{number:04d}",
        priority=int(rng.choice(PRIORITIES, p=PRIORITY_SHARES)),
        order=number,
        shapes=tuple(shapes),
        wait_w=default_wait_w(shapes, cluster),
    )


def _run_s(rng: np.random.Generator) -> float:
    """Log-normal, median 1.5 h, from 5 min to 48 h, in whole minutes."""
    return float(np.clip(round(90 * np.exp(rng.normal(0.0, 1.1))), 5, 48 * 60)) * 60.0

"""Clusters and arrivals for the benchmark over time. Seeded: the same seed gives the same window.

The mixed cluster is 16 nodes of 8xA100, 10 of 8xV100 and 8 of 4xT4: 34 nodes, 240 devices, with the base draws and
device draws that are usual for such machines (`NODES`). Load is offered work over what the cluster could do, both in
A100-seconds; of elastic jobs the work is that of the size which the same job has when it is rigid.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scheduler.caps import with_caps
from scheduler.power import BOOT_S, BOOT_SHARE, OFF_W
from scheduler.problem import Device, Job, Node, NodePower, Shape
from scheduler.simulate import Arrival
from scheduler.throughput import MEASURED, Curve

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Nodes of one kind: how many, devices each, W on and idle, W a busy device adds, and the median speed of a device
    beside an A100 (Gavel's measurements span 0.4 to 1.8 around such medians).
    """

    name: str
    nodes: int
    devices: int
    base_w: float
    device_w: float
    speed: float


NODES = (
    Kind(name="a100", nodes=16, devices=8, base_w=1032.0, device_w=300.0, speed=1.0),
    Kind(name="v100", nodes=10, devices=8, base_w=640.0, device_w=200.0, speed=0.5),
    Kind(name="t4", nodes=8, devices=4, base_w=190.0, device_w=55.0, speed=0.22),
)
CAPACITY = sum(kind.nodes * kind.devices * kind.speed for kind in NODES)
"""Of the mixed cluster, in A100s."""

SIZES = (1, 2, 4, 8, 16)
SIZE_SHARES = (0.55, 0.17, 0.13, 0.11, 0.04)
MEDIAN_RUN_S = 2400.0
RUN_SIGMA = 1.3
LONGEST_RUN_S = 12 * 3600.0
SPEED_SIGMA = 0.3
ESTIMATE_SIGMA = 0.5
"""Estimates are the true run time times a log-normal factor of this sigma."""

ACCEPTS = ((("a100", "v100", "t4"), 0.6), (("a100", "v100"), 0.25), (("a100",), 0.15))
"""Kinds that jobs accept, and how often."""

SPEEDUP = Curve(
    one_s=1.0,
    intra=MEASURED.intra,
    inter=MEASURED.inter,
    slope=MEASURED.slope,
    sizes=frozenset(),
    noise=0.0,
    size_sigma=MEASURED.size_sigma,
)
"""How run times of elastic jobs change with their size: the median of the programs that were measured."""

WAIT_W = 50.0
"""Price of a waiting device: below the idle draw of any device's share of its node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the arrivals are drawn from: devices and A100-seconds of one job, and how it comes."""

    at_s: float
    size: int
    run_s: float


def mixed_cluster() -> tuple[Node, ...]:
    """34 nodes, all off."""
    return tuple(_node(kind, number) for kind in NODES for number in range(kind.nodes))


def synthetic(seed: int, load: float, days: float, *, elastic: bool = False) -> tuple[Arrival, ...]:
    """Poisson arrivals of power-of-two gangs with log-normal run times. Elastic ones are the same jobs, each of which
    also accepts half and twice the devices.
    """
    rng = np.random.default_rng(seed)
    mean_size = float(np.dot(SIZES, SIZE_SHARES))
    sample = np.minimum(rng.lognormal(np.log(MEDIAN_RUN_S), RUN_SIGMA, 200_000), LONGEST_RUN_S)
    gap_s = mean_size * float(sample.mean()) / (load * CAPACITY)
    works: list[Work] = []
    at_s = 0.0
    while (at_s := at_s + float(rng.exponential(gap_s))) < days * DAY_S:
        run_s = min(float(rng.lognormal(np.log(MEDIAN_RUN_S), RUN_SIGMA)), LONGEST_RUN_S)
        works.append(Work(at_s=at_s, size=int(rng.choice(SIZES, p=SIZE_SHARES)), run_s=run_s))
    return _arrivals(works, rng, elastic=elastic)


def philly(data: Path, seed: int, load: float, days: float) -> tuple[Arrival, ...]:
    """A stretch of the busiest cluster of the Philly trace, its arrivals pressed together or apart to reach the load.

    Sizes and run times are the trace's (at most 16 devices and a day, at least a minute), rounded up to powers of two.
    """
    rng = np.random.default_rng(seed)
    with (data / "philly" / "philly.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    clusters: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        clusters.setdefault(row["cluster"], []).append(row)
    busiest = sorted(max(clusters.values(), key=len), key=lambda row: row["timestamp"])
    first = int(rng.integers(0, len(busiest) // 2))
    works: list[Work] = []
    begin, done = np.datetime64(busiest[first]["timestamp"]), 0.0
    for row in busiest[first:]:
        size = min(16, 1 << max(0, int(row["num_gpus"]) - 1).bit_length())
        run_s = min(max(float(row["duration"]), 60.0), LONGEST_RUN_S)
        came_s = float((np.datetime64(row["timestamp"]) - begin) / np.timedelta64(1, "s"))
        works.append(Work(at_s=came_s, size=size, run_s=run_s))
        done += size * run_s
        if done >= load * CAPACITY * days * DAY_S:
            break
    scale = days * DAY_S / max(works[-1].at_s, 1.0)
    return _arrivals([Work(at_s=one.at_s * scale, size=one.size, run_s=one.run_s) for one in works], rng)


def may_slow(arrivals: Sequence[Arrival], slower: float) -> tuple[Arrival, ...]:
    """The same jobs, which power caps may slow down by this fraction. They really do so as the model says."""
    return tuple(_may_slow(arrival, slower) for arrival in arrivals)


def _may_slow(arrival: Arrival, slower: float) -> Arrival:
    shapes = with_caps(arrival.job.shapes, slower, {kind.name: 0.0 for kind in NODES})
    free = {shape.kind: (shape.run_s, run_s) for shape, run_s in zip(arrival.job.shapes, arrival.runs_s, strict=True)}
    runs_s = tuple(shape.run_s / free[shape.kind][0] * free[shape.kind][1] for shape in shapes)
    return replace(arrival, job=replace(arrival.job, shapes=shapes, may_slow=slower), runs_s=runs_s)


def _arrivals(works: Sequence[Work], rng: np.random.Generator, *, elastic: bool = False) -> tuple[Arrival, ...]:
    return tuple(_arrival(work, number, rng, elastic=elastic) for number, work in enumerate(works))


def _arrival(work: Work, number: int, rng: np.random.Generator, *, elastic: bool) -> Arrival:
    kinds = ACCEPTS[int(rng.choice(len(ACCEPTS), p=[share for _, share in ACCEPTS]))][0]
    wrong = float(rng.lognormal(0.0, ESTIMATE_SIGMA))
    shapes: list[Shape] = []
    runs: list[float] = []
    for kind in (kind for kind in NODES if kind.name in kinds):
        speed = kind.speed if kind.speed == 1.0 else kind.speed * float(rng.lognormal(0.0, SPEED_SIGMA))
        asked = -(-work.size // kind.devices)
        for size in _sizes(work.size) if elastic else (work.size,):
            members = -(-size // kind.devices)
            run_s = work.run_s / speed * (SPEEDUP.run_s(size, members) / SPEEDUP.run_s(work.size, asked))
            runs.append(run_s)
            shapes.append(
                Shape(
                    members=members,
                    devices=size // members,
                    kind=kind.name,
                    millicores=0,
                    memory_bytes=0,
                    run_s=max(1.0, run_s * wrong),
                    active_w=kind.device_w,
                )
            )
    job = Job(id=f"job-{number:05d}", priority=0, order=number, shapes=tuple(shapes), wait_w=WAIT_W)
    return Arrival(at_s=work.at_s, job=job, runs_s=tuple(runs))


def _sizes(asked: int) -> list[int]:
    """What an elastic job accepts: first what the rigid one asks for, which policies prefer that take what fits."""
    return [asked, *(size for size in (asked // 2, asked * 2) if SIZES[0] <= size <= SIZES[-1])]


def _node(kind: Kind, number: int) -> Node:
    name = f"{kind.name}-{number:02d}"
    return Node(
        id=name,
        devices=tuple(Device(id=f"{name}-{index}", kind=kind.name) for index in range(kind.devices)),
        cpu_millicores=0,
        free_millicores=0,
        memory_bytes=0,
        free_memory_bytes=0,
        power=NodePower(base_w=kind.base_w, off_w=OFF_W, boot_s=BOOT_S, boot_j=BOOT_SHARE * kind.base_w * BOOT_S),
        on=False,
        can_switch=True,
        can_cap=True,
    )

"""The placements that Sia measured: time of a training step by program, cluster, batch of a device and placement."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from scheduler.throughput import Point

PROGRAMS = ("bert", "cifar10", "deepspeech2", "imagenet", "ncf", "yolov3")
CLUSTERS = ("aws", "azure", "dgx", "dgx-ext", "quad", "rtx")


class DataError(Exception):
    """The folder does not hold what the benchmark reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One program on one cluster with a fixed batch on each device, on one device and on several.

    A step on n devices does n times the work, so a point's `run_s` is the step's time divided by its devices.
    """

    program: str
    cluster: str
    alone: Point
    together: tuple[Point, ...]


def read_groups(data: Path) -> list[Group]:
    """Every group that was measured on one device and at least one larger placement.

    Raises:
        DataError: a file is missing or is not such a table.
    """
    return [
        group
        for program in PROGRAMS
        for cluster in CLUSTERS
        for group in _groups(program, cluster, data / "sia" / "traces" / program / f"placements-{cluster}.csv")
    ]


def _groups(program: str, cluster: str, path: Path) -> Iterable[Group]:
    steps: dict[int, dict[tuple[int, int], list[float]]] = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                members = [int(digit) for digit in row["placement"]]  # devices of each node, one digit a node
                sizes = steps.setdefault(int(row["local_bsz"]), {})
                sizes.setdefault((sum(members), len(members)), []).append(float(row["step_time"]))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give the folder that holds `sia/` with --data") from error
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} is not a table of local_bsz, placement and step_time: {error}") from error
    for sizes in steps.values():
        points = [
            Point(devices=devices, nodes=nodes, run_s=fmean(times) / devices)
            for (devices, nodes), times in sorted(sizes.items())
        ]
        alone = next((point for point in points if point.devices == 1), None)
        together = tuple(point for point in points if point.devices > 1)
        if alone is not None and together:
            yield Group(program=program, cluster=cluster, alone=alone, together=together)

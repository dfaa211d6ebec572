"""Node and pod lists in the columns of Alibaba's openb trace, as arrays, and the arrival sequence of a seed.

Nodes: `sn, cpu_milli, memory_mib, gpu, model`. Pods: `name, cpu_milli, memory_mib, num_gpu, gpu_milli` and optionally
`gpu_spec`, a `|`-separated list of models the pod accepts; other columns are ignored.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

WHOLE = 1000
"""Thousandths of a GPU that make the whole one."""

OVERFILL = 1.3
"""Arrivals go on until they have asked for this much of the cluster's GPUs."""


class TraceError(Exception):
    """A list cannot be read. The message names the file, the line and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeModel:
    """What nodes of one class have: GPUs of one model, thousandths of a CPU thread, MiB of memory."""

    model: str
    gpus: int
    cpu_milli: int
    memory_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PodType:
    """What pods of one type ask for: `gpus` GPUs with `gpu_milli` thousandths of each. `models` empty: any model."""

    cpu_milli: int
    memory_mib: int
    gpus: int
    gpu_milli: int
    models: tuple[str, ...]

    @property
    def gpu_total(self) -> int:
        """Thousandths of a GPU in all."""
        return self.gpus * self.gpu_milli


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Nodes in the order of their names. `node_class[i]` is the index of node i's model in `models`."""

    names: tuple[str, ...]
    models: tuple[NodeModel, ...]
    node_class: Ints

    @property
    def gpu_milli(self) -> int:
        """Thousandths of a GPU in the whole cluster."""
        return WHOLE * sum(self.models[index].gpus for index in self.node_class)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodList:
    """Pods in the order of their names: `pod_type[i]` is the index of pod i's type in `types`."""

    name: str
    types: tuple[PodType, ...]
    pod_type: Ints

    @property
    def counts(self) -> Ints:
        """Pods of each type."""
        return np.bincount(self.pod_type, minlength=len(self.types))


def read_nodes(path: Path) -> Cluster:
    """The nodes of a list. Raises TraceError."""
    models: dict[NodeModel, int] = {}
    found: list[tuple[str, int]] = []
    for line, row in _rows(path, ("sn", "cpu_milli", "memory_mib", "gpu", "model")):
        model = NodeModel(
            model=row["model"],
            gpus=_count(path, line, row, "gpu"),
            cpu_milli=_count(path, line, row, "cpu_milli"),
            memory_mib=_count(path, line, row, "memory_mib"),
        )
        found.append((row["sn"], models.setdefault(model, len(models))))
    found.sort()
    return Cluster(
        names=tuple(name for name, _ in found),
        models=tuple(models),
        node_class=np.array([index for _, index in found], dtype=np.int64),
    )


def read_pods(path: Path) -> PodList:
    """The pods of a list. Raises TraceError."""
    types: dict[PodType, int] = {}
    found: list[tuple[str, int]] = []
    for line, row in _rows(path, ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")):
        gpus, milli = _count(path, line, row, "num_gpu"), _count(path, line, row, "gpu_milli")
        if gpus and not (milli == WHOLE or (gpus == 1 and 0 < milli < WHOLE)):
            raise TraceError(
                f"{path}, line {line}: {gpus} GPUs with gpu_milli {milli}; shares are of one GPU, 1 to 999"
            )
        pod = PodType(
            cpu_milli=_count(path, line, row, "cpu_milli"),
            memory_mib=_count(path, line, row, "memory_mib"),
            gpus=gpus,
            gpu_milli=milli if gpus else 0,
            models=tuple(sorted(set(filter(None, (row.get("gpu_spec") or "").split("|"))))) if gpus else (),
        )
        found.append((row["name"], types.setdefault(pod, len(types))))
    found.sort()
    return PodList(name=path.stem, types=tuple(types), pod_type=np.array([index for _, index in found], dtype=np.int64))


def sequence(pods: PodList, capacity_milli: int, seed: int) -> Ints:
    """Types of the arrivals: all pods shuffled, then more drawn at random, up to `OVERFILL` of the capacity."""
    rng = np.random.default_rng(seed)
    arrivals = list(pods.pod_type[rng.permutation(len(pods.pod_type))])
    asked = sum(pods.types[index].gpu_total for index in arrivals)
    while True:
        index = pods.pod_type[rng.integers(len(pods.pod_type))]
        asked += pods.types[index].gpu_total
        if asked > OVERFILL * capacity_milli:
            return np.array(arrivals, dtype=np.int64)
        arrivals.append(index)


def typical(pods: PodList, share: float = 0.95) -> list[tuple[PodType, float]]:
    """The most frequent types, memory aside, that together make `share` of the pods, with weights that sum to 1."""
    counts: Counter[PodType] = Counter()
    for pod, count in zip(pods.types, pods.counts, strict=True):
        counts[
            PodType(cpu_milli=pod.cpu_milli, memory_mib=0, gpus=pod.gpus, gpu_milli=pod.gpu_milli, models=pod.models)
        ] += int(count)
    kept: list[tuple[PodType, int]] = []
    for pod, count in counts.most_common():
        kept.append((pod, count))
        if sum(number for _, number in kept) >= share * len(pods.pod_type):
            break
    total = sum(number for _, number in kept)
    return [(pod, number / total) for pod, number in kept]


def asked_milli(pods: PodList, arrivals: Sequence[int] | Ints) -> Ints:
    """Thousandths of a GPU asked for by each arrival."""
    per_type = np.array([pod.gpu_total for pod in pods.types], dtype=np.int64)
    return per_type[np.asarray(arrivals)]


def _rows(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise TraceError(f"{path} has no column {missing[0]}; wanted: {', '.join(columns)}")
            rows = list(enumerate(reader, start=2))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"cannot read {path}: {error}") from error
    if not rows:
        raise TraceError(f"{path} holds no rows")
    return rows


def _count(path: Path, line: int, row: dict[str, str], column: str) -> int:
    try:
        value = int(row[column])
    except (TypeError, ValueError):
        value = -1
    if value < 0:
        raise TraceError(f"{path}, line {line}: {column} is {row[column]!r}, must be a whole number from 0")
    return value

"""The published policies on a sequence of arrivals: our own implementations, with their integer scores and ties.

Every policy scores the nodes that take the pod in whole numbers from 0 to 100 and chooses the best, of equals the one
whose name comes first. That this decides much of FGD's quality is no mistake of ours: it is how it was measured.
"""
# numba ships no types.
# pyright: reportMissingTypeStubs=false, reportUntypedFunctionDecorator=false, reportArgumentType=false

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from bench.packing import kernels
from bench.packing.energy import gpu_watts
from bench.packing.kernels import (
    BEST_FIT,
    CPU,
    DOT_PROD,
    FGD,
    GPU_CLUSTERING,
    GPU_PACKING,
    GPUS,
    MEMORY,
    MILLI,
    PWR,
    RANDOM,
    WHOLE,
)
from bench.packing.trace import Cluster, Ints, PodList, PodType, typical


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Weights of the PWR and FGD scores where both are mixed; `code` of `bench.packing.kernels` otherwise."""

    name: str
    code: int
    power_weight: int = 0
    fragment_weight: int = 0


POLICIES = (
    Policy(name="Random", code=RANDOM),
    Policy(name="DotProd", code=DOT_PROD),
    Policy(name="GpuClustering", code=GPU_CLUSTERING),
    Policy(name="GpuPacking", code=GPU_PACKING),
    Policy(name="BestFit", code=BEST_FIT),
    Policy(name="FGD", code=FGD, fragment_weight=1),
    Policy(name="PWR", code=PWR, power_weight=1),
    Policy(name="PWR500+FGD500", code=FGD, power_weight=500, fragment_weight=500),
    Policy(name="PWR200+FGD800", code=FGD, power_weight=200, fragment_weight=800),
    Policy(name="PWR100+FGD900", code=FGD, power_weight=100, fragment_weight=900),
    Policy(name="PWR50+FGD950", code=FGD, power_weight=50, fragment_weight=950),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """What happened at each arrival: the node it went to (-1: none took it) and the cluster's draw after it, in W.

    `gpus[i]` is the GPU that a share got, -1 otherwise.
    """

    nodes: Ints
    gpus: Ints
    watts: np.ndarray


def run(policy: Policy, cluster: Cluster, pods: PodList, arrivals: Ints, seed: int) -> Fill:
    """Places one arrival after the other; nothing ever leaves, and what finds no place is dropped."""
    models = sorted({model.model for model in cluster.models})
    usual, weights = zip(*typical(pods), strict=True)
    classes = [cluster.models[index] for index in cluster.node_class]
    nodes, gpus, watts = _fill(
        policy.code,
        policy.power_weight,
        policy.fragment_weight,
        pod_rows(pods.types, models),
        pod_rows(usual, models),
        np.array(weights),
        np.array([model.cpu_milli for model in classes]),
        np.array([model.memory_mib for model in classes]),
        np.array([model.gpus for model in classes]),
        np.array([models.index(model.model) for model in classes]),
        np.array([gpu_watts(model.model) for model in classes]),
        arrivals,
        seed,
    )
    return Fill(nodes=nodes, gpus=gpus, watts=watts)


def pod_rows(types: tuple[PodType, ...] | list[PodType], models: list[str]) -> Ints:
    """Pod types as `bench.packing.kernels` reads them; a model that no node has is left out of the mask."""
    every = (1 << len(models)) - 1
    masks = [
        sum(1 << models.index(model) for model in pod.models if model in models) if pod.models else every
        for pod in types
    ]
    return np.array(
        [
            [pod.cpu_milli, pod.memory_mib, pod.gpus, pod.gpu_milli, mask]
            for pod, mask in zip(types, masks, strict=True)
        ],
        dtype=np.int64,
    )


@njit(cache=True)
def _fill(  # noqa: PLR0912, PLR0915 (one loop, compiled)
    code, power_weight, fragment_weight, pods, usual, weights, cpu, mem, gpus, model, gpu_w, arrivals, seed
):
    """Arrivals one by one: the node each goes to, the GPU of a share, the draw afterwards."""
    count = len(cpu)
    cpu_left, mem_left = cpu.copy(), mem.copy()
    gpu_left = np.zeros((count, gpus.max()), dtype=np.int64)
    affinities = np.zeros((count, gpus.max() + 1), dtype=np.int64)
    fragments = np.zeros(count)
    draw = np.zeros(count)
    for n in range(count):
        gpu_left[n, : gpus[n]] = WHOLE
        fragments[n] = kernels.fragments(usual, weights, cpu_left[n], mem_left[n], gpu_left[n], gpus[n], model[n])
        draw[n] = kernels.node_w(cpu[n], cpu_left[n], gpu_left[n], gpus[n], gpu_w[n, 0], gpu_w[n, 1])
    total_w = draw.sum()

    # Scores of a type on a node hold until the node changes.
    version = np.zeros(count, dtype=np.int64)
    known = np.full((len(pods), count), -1, dtype=np.int64)
    score = np.zeros((len(pods), count), dtype=np.int64)
    added = np.zeros((len(pods), count), dtype=np.int64)
    chosen = np.full((len(pods), count), -1, dtype=np.int64)
    takes = np.zeros((len(pods), count), dtype=np.bool_)

    nodes = np.full(len(arrivals), -1, dtype=np.int64)
    shares = np.full(len(arrivals), -1, dtype=np.int64)
    watts = np.zeros(len(arrivals))
    np.random.seed(seed)
    for step in range(len(arrivals)):
        t = arrivals[step]
        for n in range(count):
            if known[t, n] == version[n]:
                continue
            known[t, n] = version[n]
            takes[t, n] = kernels.fits(pods, t, cpu_left[n], mem_left[n], gpu_left[n], gpus[n], model[n])
            if not takes[t, n]:
                continue
            if code == FGD:
                gpu, after = kernels.least_fragments(
                    pods, usual, weights, t, cpu_left[n], mem_left[n], gpu_left[n], gpus[n], model[n]
                )
                score[t, n] = int(100 / (1 + math.exp(-(fragments[n] - after) / WHOLE)))
            else:
                gpu = kernels.gpu_of(code, pods, t, gpu_left[n], gpus[n])
                score[t, n] = kernels.score(code, pods, t, cpu_left[n], gpu_left[n], gpus[n], affinities[n])
            chosen[t, n] = gpu
            if power_weight > 0:
                row = gpu_left[n].copy()
                kernels.take(pods, t, row, gpus[n], gpu)
                after_w = kernels.node_w(cpu[n], cpu_left[n] - pods[t, CPU], row, gpus[n], gpu_w[n, 0], gpu_w[n, 1])
                added[t, n] = int(draw[n] - after_w)

        if code == RANDOM:
            best = kernels.random_true(takes[t])
        else:
            best = _best(takes[t], score[t], added[t], power_weight, fragment_weight)
        watts[step] = total_w
        if best < 0:
            continue
        gpu = chosen[t, best]
        if code == RANDOM and gpu >= 0:
            gpu = kernels.random_true(gpu_left[best] >= pods[t, MILLI])
        cpu_left[best] -= pods[t, CPU]
        mem_left[best] -= pods[t, MEMORY]
        kernels.take(pods, t, gpu_left[best], gpus[best], gpu)
        if pods[t, GPUS] > 0:
            affinities[best, kernels.affinity(pods, t)] += 1
        version[best] += 1
        total_w -= draw[best]
        draw[best] = kernels.node_w(
            cpu[best], cpu_left[best], gpu_left[best], gpus[best], gpu_w[best, 0], gpu_w[best, 1]
        )
        total_w += draw[best]
        fragments[best] = kernels.fragments(
            usual, weights, cpu_left[best], mem_left[best], gpu_left[best], gpus[best], model[best]
        )
        nodes[step], shares[step], watts[step] = best, gpu, total_w
    return nodes, shares, watts


@njit(cache=True)
def _best(takes, score, added, power_weight, fragment_weight):
    """The node of the highest score, the first of equals; -1 if none takes the pod.

    With a weight of power the watts saved, scaled to 0 to 100 over the nodes that take the pod, are mixed in.
    """
    least_w, most_w = 0, 0
    if power_weight > 0 and takes.any():
        least_w, most_w = added[takes].min(), added[takes].max()
    best, highest = -1, -1
    for n in range(len(takes)):
        if not takes[n]:
            continue
        total = score[n]
        if power_weight > 0:
            normal = 100 if most_w == least_w else (added[n] - least_w) * 100 // (most_w - least_w)
            total = fragment_weight * score[n] + power_weight * normal
        if total > highest:
            best, highest = n, total
    return best

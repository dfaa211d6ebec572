"""What one node is worth to one pod: feasibility, power, fragmentation and the scores of the published policies.

Compiled by numba. A node is (cpu_left, mem_left, gpu_left), in thousandths of a thread, MiB and thousandths of a GPU;
a pod is one row of `pods`: cpu, memory, GPUs, thousandths of each, models it accepts as a bit mask.
"""
# numba ships no types.
# pyright: reportMissingTypeStubs=false, reportUntypedFunctionDecorator=false

import math

import numpy as np
from numba import njit

from bench.packing.energy import SOCKET_CORES, SOCKET_FULL_W, SOCKET_IDLE_W

CPU, MEMORY, GPUS, MILLI, MODELS = range(5)
"""Columns of `pods`."""

WHOLE = 1000

RANDOM, BEST_FIT, DOT_PROD, GPU_PACKING, GPU_CLUSTERING, FGD, PWR = range(7)


@njit(cache=True)
def fits(pods, t, cpu_left, mem_left, gpu_left, gpus, model):
    """Whether a node takes a pod of type t now."""
    if pods[t, CPU] > cpu_left or pods[t, MEMORY] > mem_left:
        return False
    if pods[t, GPUS] == 0:
        return True
    if not (pods[t, MODELS] >> model) & 1:
        return False
    found = 0
    for g in range(gpus):
        if gpu_left[g] >= pods[t, MILLI]:
            found += 1
    return found >= pods[t, GPUS]


@njit(cache=True)
def node_w(cpu, cpu_left, gpu_left, gpus, idle_w, full_w):
    """Draw of a node in W: awake sockets at full draw, the others idle; a GPU with anything on it at full draw."""
    sockets = math.ceil(math.ceil(cpu / 2000) / SOCKET_CORES)
    awake = math.ceil((cpu // 2000 - cpu_left // 2000) / SOCKET_CORES)
    watts = sockets * SOCKET_IDLE_W + awake * (SOCKET_FULL_W - SOCKET_IDLE_W)
    for g in range(gpus):
        watts += full_w if gpu_left[g] < WHOLE else idle_w
    return watts


@njit(cache=True)
def fragments(pods, weights, cpu_left, mem_left, gpu_left, gpus, model):
    """Thousandths of a GPU left on the node that the next typical pod cannot use, in the mean over the typical pods."""
    idle = 0
    for g in range(gpus):
        idle += gpu_left[g]
    if idle == 0:
        return 0.0
    total = 0.0
    for t in range(len(weights)):
        if pods[t, GPUS] == 0 or not fits(pods, t, cpu_left, mem_left, gpu_left, gpus, model):
            total += weights[t] * idle
        else:
            unusable = 0
            for g in range(gpus):
                if gpu_left[g] < pods[t, MILLI]:
                    unusable += gpu_left[g]
            total += weights[t] * unusable
    return total


@njit(cache=True)
def tightest(pods, t, gpu_left, gpus):
    """The GPU with least left that still takes the share, the first of equals."""
    best = -1
    for g in range(gpus):
        if gpu_left[g] >= pods[t, MILLI] and (best < 0 or gpu_left[g] < gpu_left[best]):
            best = g
    return best


@njit(cache=True)
def awake_first(pods, t, gpu_left, gpus):
    """The first GPU that takes the share and draws nothing more for it; else the first that takes it."""
    best = -1
    for g in range(gpus):
        if gpu_left[g] >= pods[t, MILLI]:
            if gpu_left[g] < WHOLE:
                return g
            if best < 0:
                best = g
    return best


@njit(cache=True)
def take(pods, t, gpu_left, gpus, chosen):
    """Take the pod's GPUs: the chosen one of a share, else the first free ones."""
    if pods[t, MILLI] < WHOLE:
        if pods[t, GPUS]:
            gpu_left[chosen] -= pods[t, MILLI]
        return
    count = pods[t, GPUS]
    for g in range(gpus):
        if count > 0 and gpu_left[g] == WHOLE:
            gpu_left[g] = 0
            count -= 1


@njit(cache=True)
def least_fragments(pods, typical, weights, t, cpu_left, mem_left, gpu_left, gpus, model):
    """The GPU whose choice leaves least fragments on the node, -1 where there is no choice, and those fragments."""
    cpu, mem = cpu_left - pods[t, CPU], mem_left - pods[t, MEMORY]
    row = gpu_left.copy()
    if pods[t, GPUS] == 0 or pods[t, MILLI] == WHOLE:
        take(pods, t, row, gpus, -1)
        return -1, fragments(typical, weights, cpu, mem, row, gpus, model)
    best, least = -1, math.inf
    for g in range(gpus):
        if row[g] >= pods[t, MILLI]:
            row[g] -= pods[t, MILLI]
            after = fragments(typical, weights, cpu, mem, row, gpus, model)
            row[g] += pods[t, MILLI]
            if after < least - 1e-9:
                best, least = g, after
    return best, least


@njit(cache=True)
def packing_score(pods, t, gpu_left, gpus):
    """GpuPacking: prefer GPUs that are shared already, then nodes in use, then empty nodes."""
    if pods[t, GPUS] == 0:
        return 0
    free = 0
    for g in range(gpus):
        if gpu_left[g] == WHOLE:
            free += 1
    if pods[t, MILLI] < WHOLE:
        chosen = tightest(pods, t, gpu_left, gpus)
        if gpu_left[chosen] < WHOLE:
            return max(100 - gpu_left[chosen] // 10, 50)
    if free == gpus:
        return max(33 - free, free)
    return max(50 - (gpus - free), 33)


@njit(cache=True)
def clustering_score(affinities, kind, gpu_left, gpus):
    """GpuClustering: nodes with pods of the same number of GPUs only, with such among others, empty, the rest."""
    others = 0
    for k in range(len(affinities)):
        if k != kind and affinities[k] > 0:
            others += 1
    alone, beside = (75, 50) if affinities[kind] > 0 else (25, 0)
    base = alone if others == 0 else beside
    left = 0
    for g in range(gpus):
        left += gpu_left[g]
    return base + 25 * (8000 - left) // 8000


@njit(cache=True)
def affinity(pods, t):
    """What GpuClustering keeps together: shares, and pods of the same number of GPUs."""
    return 0 if pods[t, MILLI] < WHOLE else pods[t, GPUS]


@njit(cache=True)
def gpu_of(code, pods, t, gpu_left, gpus):
    """The GPU that a policy other than FGD gives a share; -1 for pods that take none or whole ones."""
    if pods[t, GPUS] == 0 or pods[t, MILLI] == WHOLE:
        return -1
    return awake_first(pods, t, gpu_left, gpus) if code == PWR else tightest(pods, t, gpu_left, gpus)


@njit(cache=True)
def score(code, pods, t, cpu_left, gpu_left, gpus, affinities):
    """Score of a policy that looks at the node alone, from 0 to 100."""
    left, asked = gpu_left.sum(), pods[t, GPUS] * pods[t, MILLI]
    if code == BEST_FIT:
        return int(100 * (1 - 0.5 * ((cpu_left - pods[t, CPU]) / 128000 + (left - asked) / 8000)))
    if code == DOT_PROD:
        return int(100 * (1 - 0.5 * (cpu_left / 128000 * pods[t, CPU] / 128000 + left / 8000 * asked / 8000)))
    if code == GPU_PACKING:
        return packing_score(pods, t, gpu_left, gpus)
    if code == GPU_CLUSTERING and pods[t, GPUS] > 0:
        return clustering_score(affinities, affinity(pods, t), gpu_left, gpus)
    return 0


@njit(cache=True)
def random_true(flags):
    """The index of one of the true flags, each as likely; -1 if there is none."""
    able = flags.sum()
    if able == 0:
        return -1
    wanted = np.random.randint(able)
    for index in range(len(flags)):
        if flags[index]:
            if wanted == 0:
                return index
            wanted -= 1
    return -1

"""The benchmark's nodes and pods in the planner's words, and its history as an outlook."""

from collections import Counter
from collections.abc import Iterable, Sequence

from bench.packing.energy import SOCKET_CORES, SOCKET_FULL_W, SOCKET_IDLE_W, gpu_watts
from bench.packing.trace import Cluster, PodList, PodType, sequence
from scheduler.booking import look_ahead
from scheduler.classes import class_of, count_demands
from scheduler.demand import Outlook
from scheduler.problem import Device, Job, Node, NodePower, Problem, Shape

MIB = 1 << 20

THREADS = 2
"""Hardware threads of a core."""

HISTORY_SEEDS = range(1000, 1005)
"""Sequences that the planner learns from; none of them is evaluated."""


def nodes_of(cluster: Cluster) -> tuple[Node, ...]:
    """The nodes, empty and on for good."""
    nodes: list[Node] = []
    for name, number in zip(cluster.names, cluster.node_class, strict=True):
        model = cluster.models[number]
        idle_w, _ = gpu_watts(model.model) if model.gpus else (0.0, 0.0)
        width = SOCKET_CORES * THREADS * 1000
        sockets = -(-model.cpu_milli // width)
        nodes.append(
            Node(
                id=name,
                devices=tuple(Device(id=f"{name}/{gpu}", kind=model.model) for gpu in range(model.gpus)),
                cpu_millicores=model.cpu_milli,
                free_millicores=model.cpu_milli,
                memory_bytes=model.memory_mib * MIB,
                free_memory_bytes=model.memory_mib * MIB,
                power=NodePower(
                    base_w=sockets * SOCKET_IDLE_W + model.gpus * idle_w,
                    socket_w=SOCKET_FULL_W - SOCKET_IDLE_W,
                    socket_millicores=width,
                ),
            )
        )
    return tuple(nodes)


def shapes_of(pod: PodType, models: Iterable[str]) -> tuple[Shape, ...]:
    """One shape for each model of the cluster that the pod accepts. Nothing ever ends: all run for the horizon."""
    run_s = Problem(nodes=(), jobs=()).horizon_s
    if not pod.gpus:
        kinds: Sequence[str] = ("",)
    else:
        kinds = [model for model in sorted(set(models)) if not pod.models or model in pod.models]
    return tuple(
        Shape(
            members=1,
            devices=pod.gpus,
            kind=kind,
            millicores=pod.cpu_milli,
            memory_bytes=pod.memory_mib * MIB,
            run_s=run_s,
            active_w=gpu_watts(kind)[1] - gpu_watts(kind)[0] if kind else 0.0,
            share=pod.gpu_milli if pod.gpus else 1000,
        )
        for kind in kinds
    )


def jobs_of(cluster: Cluster, pods: PodList, arrivals: Iterable[int]) -> list[Job]:
    """The arrivals as jobs, each later in line than the one before."""
    models = [model.model for model in cluster.models if model.gpus]
    shapes = [shapes_of(pod, models) for pod in pods.types]
    return [
        Job(id=f"pod-{number:05d}", priority=0, order=number, shapes=shapes[kind], wait_w=0.0)
        for number, kind in enumerate(arrivals)
    ]


def outlook_of(cluster: Cluster, nodes: Iterable[Node], pods: PodList) -> tuple[Outlook, ...]:
    """What the planner learns from past sequences of a pod list."""
    past = [job for seed in HISTORY_SEEDS for job in jobs_of(cluster, pods, sequence(pods, cluster.gpu_milli, seed))]
    return look_ahead(Counter(class_of(node) for node in nodes), count_demands(past))

"""Which class a node belongs to, and which demands a job makes."""

from collections.abc import Iterable, Sequence

from scheduler.demand import Demand, NodeClass
from scheduler.problem import Job, Node, Shape


def class_of(node: Node) -> NodeClass:
    """The class of a node. Raises ValueError for a node whose devices are of several kinds."""
    kinds = {device.kind for device in node.devices}
    if len(kinds) > 1:
        raise ValueError(f"node {node.id} has devices of several kinds: {', '.join(sorted(kinds))}")
    return NodeClass(
        kind=min(kinds, default=""),
        devices=len(node.devices),
        millicores=node.cpu_millicores,
        memory_bytes=node.memory_bytes,
        socket_w=node.power.socket_w,
        socket_millicores=node.power.socket_millicores,
        isolation=min((int(device.isolation) for device in node.devices), default=0),
        containers=not node.container_fault,
    )


def demands_of(shapes: Sequence[Shape]) -> dict[tuple[int, Demand], dict[str, int]]:
    """The demands among the shapes of a job, each with its number of members: shapes that differ in nothing but the
    kind of device are one. The values tell the shape of each kind. Those with a power cap are left to others.
    """
    groups: dict[tuple[int, ...], dict[str, int]] = {}
    for index, shape in enumerate(shapes):
        if shape.cap_w:
            continue
        groups.setdefault(_but_kind(shape), {}).setdefault(shape.kind if shape.devices else "", index)
    return {(members, _demand(shapes, kinds)): kinds for (members, *_), kinds in groups.items()}


def demand_of(job: Job, shape: int) -> Demand:
    """The demand that a job's shape belongs to."""
    wanted = _but_kind(job.shapes[shape])
    found = demands_of(job.shapes).items()
    return next(demand for (_, demand), kinds in found if _but_kind(job.shapes[min(kinds.values())]) == wanted)


def _but_kind(shape: Shape) -> tuple[int, ...]:
    """What a shape asks for, whatever the kind; its members come first."""
    return (
        shape.members,
        shape.devices,
        shape.share,
        shape.millicores,
        shape.memory_bytes,
        int(shape.isolation) if shape.shared else 0,
        shape.in_container,
    )


def count_demands(jobs: Iterable[Job]) -> dict[Demand, float]:
    """How often each demand occurs among the members of the jobs; a job of several counts with its first."""
    counts: dict[Demand, float] = {}
    for job in jobs:
        for members, demand in demands_of(job.shapes):
            counts[demand] = counts.get(demand, 0.0) + members
            break
    return counts


def _demand(shapes: Sequence[Shape], kinds: dict[str, int]) -> Demand:
    shape = shapes[next(iter(kinds.values()))]
    names = sorted(kinds) if shape.devices else []
    return Demand(
        kinds=tuple(names),
        active_w=tuple(shapes[kinds[name]].active_w for name in names),
        devices=shape.devices,
        share=shape.share if shape.devices else 0,
        millicores=shape.millicores,
        memory_bytes=shape.memory_bytes,
        isolation=int(shape.isolation) if shape.shared else 0,
        in_container=shape.in_container,
    )

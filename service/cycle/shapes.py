"""What a job asks for and how long it takes, in the planner's words."""

from collections.abc import Callable, Mapping, Sequence

from protocol.jobs import JobSpec
from scheduler.caps import with_caps
from scheduler.power import active_w
from scheduler.problem import WHOLE_DEVICE, Isolation, Node, Shape
from service.db import Record

NO_CAPS: Mapping[str, float] = {}


def least_caps_w(devices: Sequence[Record]) -> dict[str, float]:
    """The lowest power cap in W that every device takes that takes any, by kind; `devices` are rows."""
    found: dict[str, float] = {}
    for device in devices:
        if device.least_cap_w is not None:
            found[device.kind] = max(found.get(device.kind, 0.0), device.least_cap_w)
    return found


def shapes_of(
    spec: JobSpec,
    nodes: Sequence[Node],
    run_s: Callable[[str, int], float],
    device_w: Callable[[str], float] = active_w,
    size: int | None = None,
    caps: Mapping[str, float] = NO_CAPS,
) -> tuple[Shape, ...]:
    """One shape for each acceptable kind and each number of nodes, the fewest first. A job that accepts
    any kind gets one for each kind there is; one that wants no device gets one without a kind. One that may be slowed
    down gets some more, with power caps.

    Args:
        run_s: how long it runs on so many nodes with devices of a kind, in s.
        device_w: what a device of a kind draws above its bare idle while it runs, in W.
        size: the number of nodes that it has already.
        caps: the kinds that can be capped, as `least_caps_w` says.
    """
    kinds = spec.device_kinds or sorted({device.kind for node in nodes for device in node.devices}) or ["cpu"]
    if not spec.devices_per_node:
        kinds = [""]
    shapes = tuple(
        Shape(
            members=members,
            devices=spec.devices_per_node,
            kind=kind,
            millicores=round(spec.cores * 1000),
            memory_bytes=spec.memory_bytes_per_node,
            run_s=run_s(kind, members),
            active_w=device_w(kind) if kind else 0.0,
            in_container=spec.image is not None,
            share=round(spec.device_share * WHOLE_DEVICE),
            isolation=Isolation[spec.device_isolation.upper()],
        )
        for kind in dict.fromkeys(kinds)
        for members in (spec.sizes if size is None else (size,))
    )
    return with_caps(shapes, spec.may_slow, caps)

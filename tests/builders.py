"""Short ways to say a problem: nodes and jobs with only what a test is about."""

from dataclasses import replace

from scheduler.plan import MemberPlacement, Placement
from scheduler.problem import WHOLE_DEVICE, Device, Job, Node, NodePower, Problem, Shape

GIB = 1 << 30
HOUR = 3600.0


def node(
    name: str,
    *,
    busy: int = 0,
    cores: int = 64,
    free_cores: int | None = None,
    memory: int = 512,
    free_memory: int | None = None,
    power: NodePower | None = None,
    on: bool = True,
    can_switch: bool = False,
    is_open: bool = True,
    busy_s: float = 0.0,
    container_fault: str = "",
    **kinds: int,
) -> Node:
    """A node with devices by kind, such as `node("a", h100=8)`. The first `busy` devices are held whole.

    `cores` and `memory` (GiB) are free unless told otherwise. Devices are named `a-h100-0` and so on.
    """
    names = [(f"{name}-{kind}-{number}", kind) for kind, count in kinds.items() for number in range(count)]
    return Node(
        id=name,
        devices=tuple(
            Device(id=device, kind=kind, free=0 if index < busy else WHOLE_DEVICE)
            for index, (device, kind) in enumerate(names)
        ),
        cpu_millicores=cores * 1000,
        free_millicores=(cores if free_cores is None else free_cores) * 1000,
        memory_bytes=memory * GIB,
        free_memory_bytes=(memory if free_memory is None else free_memory) * GIB,
        power=power or NodePower(base_w=1000.0, off_w=10.0, boot_s=300.0, boot_j=360_000.0),
        on=on,
        can_switch=can_switch,
        open=is_open,
        busy_s=busy_s,
        container_fault=container_fault,
    )


def shape(
    devices: int = 1,
    *,
    members: int = 1,
    kind: str = "h100",
    cores: int = 1,
    memory: int = 1,
    run_s: float = HOUR,
    active_w: float = 400.0,
    in_container: bool = False,
) -> Shape:
    """One way to run a job; `memory` is in GiB."""
    return Shape(
        members=members,
        devices=devices,
        kind=kind,
        millicores=cores * 1000,
        memory_bytes=memory * GIB,
        run_s=run_s,
        active_w=active_w,
        in_container=in_container,
    )


def job(name: str, *shapes: Shape, priority: int = 0, order: int | None = None, wait_w: float = 125.0) -> Job:
    """A job; without shapes it asks for one H100 for an hour. Its place in line is the number its name ends with."""
    digits = "".join(letter for letter in name if letter.isdigit())
    return Job(
        id=name,
        priority=priority,
        order=int(digits or 0) if order is None else order,
        shapes=shapes or (shape(),),
        wait_w=wait_w,
    )


def problem(nodes: list[Node], jobs: list[Job], *, horizon_s: float = 8 * HOUR, pue: float = 1.0) -> Problem:
    return Problem(nodes=tuple(nodes), jobs=tuple(jobs), horizon_s=horizon_s, pue=pue)


def placement(name: str, *members: tuple[str, list[str]], shape: int = 0) -> Placement:
    """A placement, such as `placement("j1", ("a", ["a-h100-0"]))`."""
    return Placement(
        job=name,
        shape=shape,
        members=tuple(MemberPlacement(node=node, devices=tuple(devices)) for node, devices in members),
    )


def switchable(this: Node, *, on: bool = True) -> Node:
    """The same node with a power hook."""
    return replace(this, can_switch=True, on=on)

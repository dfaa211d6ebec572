"""Can a job ever run on the nodes that are present, can it start now, and if not, why not.

Every "no" carries the numbers and what would be accepted. Loads fast: the API calls it in its own process.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from scheduler.demand import WHOLE_DEVICE
from scheduler.plan import Reason
from scheduler.problem import Device, Isolation, Job, Node, Shape

MOST_FAULTS = 3
"""Different faults of nodes that one reason lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What `count` alike nodes have for one member each: whole devices by kind, thousandths of a core, bytes; and why
    they can run no container, if they cannot. `can_cap` is as nodes have it.

    `shares[kind][level]` is the largest part, in thousandths, of one device that isolates by that level at least.
    """

    devices: Mapping[str, int]
    shares: Mapping[str, tuple[int, ...]]
    millicores: int
    memory_bytes: int
    container_fault: str
    can_cap: bool
    count: int

    def holds(self, shape: Shape) -> bool:
        """Whether one such node takes a member of the shape."""
        return (
            self.gives(shape)
            and self.millicores >= shape.millicores
            and self.memory_bytes >= shape.memory_bytes
            and can_host(self, shape)
        )

    def gives(self, shape: Shape) -> bool:
        """Whether one such node has the devices for a member of the shape."""
        if shape.shared:
            return self.share(shape) >= shape.share
        return self.devices.get(shape.kind, 0) >= shape.devices

    def share(self, shape: Shape) -> int:
        """The largest part of one device that the shape could take, in thousandths."""
        return self.shares[shape.kind][shape.isolation] if shape.kind in self.shares else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Room of all nodes in total, of those that take work what is free, and of those that do not, in total."""

    total: tuple[Room, ...]
    free: tuple[Room, ...]
    closed: tuple[Room, ...]


def survey(nodes: Sequence[Node]) -> Survey:
    """What the verdicts of one cycle need to know of the nodes."""
    return Survey(
        total=total_room(nodes),
        free=free_room(nodes),
        closed=total_room(node for node in nodes if not takes_work(node)),
    )


def total_room(nodes: Iterable[Node]) -> tuple[Room, ...]:
    """Room of all nodes, were they empty, on and open; nodes with equal room are counted together."""
    return _grouped(
        (*_whole(node.devices), node.cpu_millicores, node.memory_bytes, node.container_fault, node.can_cap)
        for node in nodes
    )


def free_room(nodes: Iterable[Node]) -> tuple[Room, ...]:
    """Room that is free now on the nodes that take work."""
    return _grouped(
        (*_free(node.devices), node.free_millicores, node.free_memory_bytes, node.container_fault, node.can_cap)
        for node in nodes
        if takes_work(node)
    )


def takes_work(node: Node) -> bool:
    """Whether a job may start on the node now: it is open, and on or able to be switched on."""
    return node.open and (node.on or node.can_switch)


def free_devices(node: Node) -> Counter[str]:
    """Wholly free devices of the node by kind."""
    return Counter(device.kind for device in node.devices if device.free == WHOLE_DEVICE)


def is_empty(node: Node) -> bool:
    """Whether nothing runs on the node or holds any of it."""
    return (
        node.busy_s == 0
        and sum(free_devices(node).values()) == len(node.devices)
        and node.free_millicores == node.cpu_millicores
        and node.free_memory_bytes == node.memory_bytes
    )


def can_contain(place: Room | Node, shape: Shape) -> bool:
    """Whether a container can run there, if the shape needs one."""
    return not (shape.in_container and place.container_fault)


def can_host(place: Room | Node, shape: Shape) -> bool:
    """Whether the place can do what the shape needs beside devices, cores and memory: run a container, set a cap."""
    return can_contain(place, shape) and (place.can_cap or not shape.cap_w)


def fits(shape: Shape, rooms: Sequence[Room]) -> bool:
    """Whether every member of the gang finds a node of its own."""
    return sum(room.count for room in rooms if room.holds(shape)) >= shape.members


def possible_shapes(job: Job, rooms: Sequence[Room]) -> tuple[int, ...]:
    """Indices of the job's shapes that the nodes of `rooms` (of `total_room`) could carry, were all of them free."""
    return tuple(index for index, shape in enumerate(job.shapes) if fits(shape, rooms))


def why_impossible(shapes: Sequence[Shape], rooms: Sequence[Room]) -> tuple[Reason, ...]:
    """Why no set of the present nodes could ever run the job, shape by shape; empty if one could.

    `rooms` is `total_room` of the nodes.
    """
    if any(fits(shape, rooms) for shape in shapes):
        return ()
    if not shapes:
        return (Reason(code="no_shape", message="the job accepts no shape; give it at least one"),)
    return _unique(_lack(shape, rooms, _EVER) for shape in shapes if not shape.cap_w)


def why_not_now(job: Job, survey: Survey, placed: int) -> tuple[Reason, ...]:
    """Why a job that is possible was left waiting by a plan that starts `placed` other jobs; never empty.

    If the job would fit without those, they are the reason; otherwise the reasons say what live allocations and closed
    nodes leave too little of.
    """
    if any(fits(shape, survey.free) for shape in job.shapes):
        message = f"the free devices would do, but go to {_counted(placed, 'job')} that the plan starts now"
        return (Reason(code="behind_others", message=message),)
    reasons: list[Reason] = []
    for shape in job.shapes:
        if shape.cap_w or not fits(shape, survey.total):
            continue  # the same without a cap says what is lacking
        useful = sum(room.count for room in survey.closed if room.holds(shape))
        if useful:
            message = f"{_counted(useful, 'node')} that could take a member: lost, closed to new work or switched off"
            reasons.append(Reason(code="nodes_closed", message=message))
        reasons.append(_lack(shape, survey.free, _NOW))
    return _unique(reasons)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wording:
    """How a lack is named: what the nodes never have, or only lack now."""

    word: str
    able: str
    kind: str
    devices: str
    cores: str
    memory: str
    containers: str
    nodes: str
    isolation: str


_EVER = _Wording(
    word="present",
    able="can take one",
    kind="no_such_kind",
    devices="too_few_devices",
    cores="too_few_cores",
    memory="too_little_memory",
    containers="no_container_runtime",
    nodes="too_few_nodes",
    isolation="too_little_isolation",
)
_NOW = _Wording(
    word="free",
    able="can take one now",
    kind="devices_busy",
    devices="devices_busy",
    cores="cores_busy",
    memory="memory_busy",
    containers="container_nodes_busy",
    nodes="nodes_busy",
    isolation="devices_busy",
)


_Counts = tuple[tuple[str, int], ...]
"""Whole devices by kind."""

_Shares = tuple[tuple[str, tuple[int, ...]], ...]
"""The largest part of one device by kind and level of isolation."""

REMEMBERED = 1 << 14
"""Sets of devices of which is remembered what they come to: more than the nodes of any cluster. About 1 KB each."""


@lru_cache(maxsize=REMEMBERED)
def _whole(devices: tuple[Device, ...]) -> tuple[_Counts, _Shares]:
    return _kinds((device, WHOLE_DEVICE) for device in devices)


@lru_cache(maxsize=REMEMBERED)
def _free(devices: tuple[Device, ...]) -> tuple[_Counts, _Shares]:
    return _kinds((device, device.free) for device in devices)


def _kinds(parts: Iterable[tuple[Device, int]]) -> tuple[_Counts, _Shares]:
    counts: Counter[str] = Counter()
    most: dict[str, tuple[int, ...]] = {}
    for device, part in parts:
        if part == WHOLE_DEVICE:
            counts[device.kind] += 1
        known = most.get(device.kind, (0,) * len(Isolation))
        most[device.kind] = tuple(max(old, part * (device.isolation >= level)) for level, old in enumerate(known))
    return tuple(sorted(counts.items())), tuple(sorted(most.items()))


def _grouped(rooms: Iterable[tuple[_Counts, _Shares, int, int, str, bool]]) -> tuple[Room, ...]:
    return tuple(
        Room(
            devices=dict(devices),
            shares=dict(shares),
            millicores=millicores,
            memory_bytes=memory,
            container_fault=fault,
            can_cap=can_cap,
            count=count,
        )
        for (devices, shares, millicores, memory, fault, can_cap), count in Counter(rooms).items()
    )


def _lack(shape: Shape, rooms: Sequence[Room], say: _Wording) -> Reason:
    """The first thing the nodes have too little of for this shape, with what they have."""
    devices = _asked(shape)
    able = [room for room in rooms if room.gives(shape)]
    if not able:
        return _lack_of_devices(shape, rooms, say)
    cores = max(room.millicores for room in able) / 1000
    if cores < shape.millicores / 1000:
        message = (
            f"each member asks for {shape.millicores / 1000:g} CPU cores beside {devices}, and the most {say.word} on "
            f"such a node is {cores:g}; ask for at most {cores:g}"
        )
        return Reason(code=say.cores, message=message)
    able = [room for room in able if room.millicores >= shape.millicores]
    memory = max(room.memory_bytes for room in able)
    if memory < shape.memory_bytes:
        message = (
            f"each member asks for {shape.memory_bytes} bytes of memory beside {devices} and its CPU cores, and the "
            f"most {say.word} on such a node is {memory}; ask for at most {memory}"
        )
        return Reason(code=say.memory, message=message)
    able = [room for room in able if room.memory_bytes >= shape.memory_bytes]
    if not any(can_contain(room, shape) for room in able):
        message = f"the job runs in a container, and no such node that is {say.word} can run one: {_faults(able)}"
        return Reason(code=say.containers, message=message)
    count = sum(room.count for room in able if can_contain(room, shape))
    message = (
        f"the gang has {_counted(shape.members, 'member')} of {devices}, each on a node of its own, and "
        f"{_counted(count, 'node')} {say.able}; ask for at most {_counted(count, 'member')}"
    )
    return Reason(code=say.nodes, message=message)


def _faults(rooms: Iterable[Room]) -> str:
    """Why the nodes can run no container, each fault once, those of most nodes first."""
    counts: Counter[str] = Counter()
    for room in rooms:
        counts[room.container_fault] += room.count
    named = [f"{_counted(count, 'node')}: {fault}" for fault, count in counts.most_common(MOST_FAULTS)]
    more = len(counts) - len(named)
    return " | ".join([*named, f"and {_counted(more, 'other fault')}"] if more > 0 else named)


def _lack_of_devices(shape: Shape, rooms: Sequence[Room], say: _Wording) -> Reason:
    if not shape.devices:
        return Reason(code=say.nodes, message=f"no node is {say.word}")
    most = max((room.devices.get(shape.kind, 0) for room in rooms), default=0)
    part = max((room.share(shape) for room in rooms), default=0) if shape.shared else 0
    if most == 0 and not part:
        kinds = sorted({kind for room in rooms for kind, count in room.devices.items() if count})
        message = f"no {shape.kind} device is {say.word}; {say.word} kinds: {', '.join(kinds) or 'none'}"
        return Reason(code=say.kind, message=message)
    if not shape.shared:
        message = (
            f"each member asks for {_asked(shape)} on one node, and the most {say.word} on one node is {most}; "
            f"ask for at most {most}"
        )
        return Reason(code=say.devices, message=message)
    if not part:
        message = f"no {shape.kind} device {say.word} isolates jobs by {shape.isolation.name.lower()}; accept less"
        return Reason(code=say.isolation, message=message)
    message = (
        f"each member asks for {_asked(shape)}, and the most {say.word} of one such device is {part} thousandths; "
        f"ask for at most {part}"
    )
    return Reason(code=say.devices, message=message)


def _asked(shape: Shape) -> str:
    """The devices of a member in words."""
    if shape.shared:
        return f"{shape.share} thousandths of a {shape.kind}"
    return f"{shape.devices} {shape.kind}" if shape.devices else "no device"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _unique(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    return tuple(dict.fromkeys(reasons))

"""The planner's whole input. Frozen values; equal problems give equal plans.

Units: power in W, energy in J, durations in s, memory in bytes, CPU in thousandths of a core, shares of a device in
thousandths. All are integers where a constraint counts them, so that no solver rounds a capacity.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum

from scheduler.demand import WHOLE_DEVICE, Outlook

CPU_KIND = "cpu"
"""Kind of a CPU slot: one hardware thread of the node, as the operating system counts them."""


class Isolation(IntEnum):
    """How far jobs that share a device are kept apart; each level gives what the ones before it give.

    NONE: they take turns. MEMORY: each has its own memory, as with MPS limits. HARDWARE: each has its own part of the
    chip, as with MIG.
    """

    NONE = 0
    MEMORY = 1
    HARDWARE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePower:
    """What a node draws apart from what jobs add to it.

    `base_w` is the node on, all devices at bare idle. `boot_j` is the energy from pressing the button to ready, on top
    of nothing: during `boot_s` the node draws no `base_w` besides.
    A CPU socket with any of its cores in use draws `socket_w` more than idle; it is `socket_millicores` wide, and 0
    means that what the CPUs draw is part of `base_w` and of the jobs' `active_w`.
    """

    base_w: float
    off_w: float = 0.0
    boot_s: float = 0.0
    boot_j: float = 0.0
    socket_w: float = 0.0
    socket_millicores: int = 0

    def without(self, share: float) -> "NodePower":
        """The same with this share of what the node draws above off taken out."""
        return replace(self, base_w=self.base_w - share * (self.base_w - self.off_w))


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator or CPU slot of a node. `free` is the share no live allocation holds, in thousandths.

    `isolation` is how far it keeps jobs apart that share it.
    """

    id: str
    kind: str
    free: int = WHOLE_DEVICE
    isolation: Isolation = Isolation.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine. `free_*` is what live allocations leave.

    `on` tells whether it is on now; `can_switch` whether a power hook may switch it; a node without one is fixed on.
    `open` is false for a node that must not get new work (lost, cordoned, draining).
    `busy_s` is how long the present allocations are expected to hold it on, 0 when it is empty.
    `container_fault` is why no container can run here; empty if one can. `can_cap` tells that its agent sets the power
    limit of devices.
    `busy_w` is what the present allocations draw above `base_w`, in W. `booting` tells that a node that is `on` for the
    planner boots still. Only power budgets ask for these two.
    """

    id: str
    devices: tuple[Device, ...]
    cpu_millicores: int
    free_millicores: int
    memory_bytes: int
    free_memory_bytes: int
    power: NodePower
    on: bool = True
    can_switch: bool = False
    open: bool = True
    busy_s: float = 0.0
    container_fault: str = ""
    busy_w: float = 0.0
    booting: bool = False
    can_cap: bool = False

    def device_base_w(self, kind: str) -> float:
        """What one device of the kind answers for of what the node draws above off, in W: 0 if it cannot be switched.

        It is shared evenly over the accelerators, and over the CPU slots where those are what is asked for.
        """
        if not self.can_switch:
            return 0.0
        alike = sum((device.kind == CPU_KIND) == (kind == CPU_KIND) for device in self.devices)
        return (self.power.base_w - self.power.off_w) / alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One way to run a job: `members` nodes, each with `devices` devices of `kind`, for `run_s` seconds.

    `active_w` is what one device draws above its bare idle while the job runs on it. `in_container`: each of the nodes
    must be able to run a container.

    `share` is how much of each device it takes, in thousandths; less than the whole only where `devices` is 1, and then
    on devices that keep it apart from others by `isolation` at least. Without devices a member asks for cores and
    memory only, on nodes of any kind, and `kind` is empty.

    `cap_w` is the power limit that each of its devices gets, in W; 0 leaves it as it is. A shape with one comes beside
    the same without, and `run_s` is `slower` times that one's.
    """

    members: int
    devices: int
    kind: str
    millicores: int
    memory_bytes: int
    run_s: float
    active_w: float
    in_container: bool = False
    share: int = WHOLE_DEVICE
    isolation: Isolation = Isolation.NONE
    cap_w: float = 0.0
    slower: float = 1.0

    @property
    def shared(self) -> bool:
        """Whether it takes a part of a device."""
        return self.devices > 0 and self.share < WHOLE_DEVICE

    @property
    def size(self) -> int:
        """Devices of the whole gang, begun ones counted whole."""
        return self.members * self.devices

    @property
    def work_j(self) -> float:
        """Energy the job adds on top of the nodes that carry it wherever it runs, in J.

        A share adds none for sure: the device may be in use anyway (`scheduler.objective`).
        """
        return 0.0 if self.shared else self.size * self.active_w * self.run_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """Nodes that take so many seconds to fetch what a job needs, before it starts there."""

    seconds: float
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that waits. `order` is its place in line: within a priority the smaller one came first. By `may_slow`, as a
    fraction, a power cap may make its run longer.

    `stage_s` is how long a node takes to fetch what the job needs, in s, unless `staging` says something else of it.
    Its devices are held meanwhile, and its run begins when the last of its nodes has everything.
    """

    id: str
    priority: int
    order: int
    shapes: tuple[Shape, ...]
    wait_w: float
    """Price of one device waiting, in W (lambda of the objective). The planner's caller fills in the default."""
    may_slow: float = 0.0
    stage_s: float = 0.0
    staging: tuple[Staging, ...] = ()

    def staged_s(self, nodes: Iterable[str]) -> float:
        """How long after it was placed on these nodes its run begins there, in s."""
        if not self.staging:
            return self.stage_s
        seconds = {node: one.seconds for one in self.staging for node in one.nodes}
        return max(seconds.get(node, self.stage_s) for node in nodes)

    def stage_j(self, index: int, seconds: float) -> float:
        """The price of so many seconds before its run begins in this shape, in J: its user waits, and its devices
        stand idle.
        """
        return self.wait_w * max(1, self.shapes[index].size) * seconds

    @property
    def likeness(self) -> tuple[object, ...]:
        """Equal for jobs that differ in nothing but their place in line."""
        return (self.priority, self.shapes, self.wait_w, self.stage_s, self.staging)

    def late_j(self, index: int) -> float:
        """The price of running in this shape for longer than in the fastest of its kind, in J; 0 for a job whose size
        is given. Its user waits for its end as for its start: with the devices of its smallest shape. What a power cap
        adds is free: the user has allowed it.
        """
        if len({shape.size for shape in self.shapes}) < 2:
            return 0.0
        shape = self.shapes[index]
        fastest_s = min(other.run_s for other in self.shapes if other.kind == shape.kind)
        uncapped_s = shape.run_s / shape.slower
        return self.wait_w * min(other.size for other in self.shapes) * max(0.0, uncapped_s - fastest_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """One member of a job that runs: its node and its devices, by id."""

    node: str
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A job that runs, in the shape of its index `shape`. `run_s` of each shape is how much longer it would run in it.

    `move_j` is what stopping it and starting it elsewhere costs (restart, lost work), in J. One that may not move stays
    where it is whatever that would save. `resizes` are shapes of other numbers of nodes in which it may go on
    (`scheduler.resize`).
    """

    job: Job
    shape: int
    members: tuple[Hold, ...]
    move_j: float = 0.0
    may_move: bool = True
    resizes: tuple[Shape, ...] = ()

    @property
    def every_shape(self) -> Job:
        """The job with all shapes in which it may go on: a placement of one that runs counts in these."""
        return replace(self.job, shapes=(*self.job.shapes, *self.resizes)) if self.resizes else self.job


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """The job that others of its priority must not overtake any more (`scheduler.reserve`).

    It comes before them. `nodes` are kept for it until `free_s` from now, when the last of them is expected to have
    room for it: no other job of its priority or a lower one starts there unless it is expected to have ended by then.
    """

    job: str
    nodes: tuple[str, ...] = ()
    free_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerBudget:
    """What a group of nodes may draw together, in W: no job starts there that would bring it above. What runs already
    is never stopped for it (`scheduler.budgets`).
    """

    name: str
    watts: float
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What a kWh at the site's meter costs, in money or g of CO2, from `start_s` (s from now) until the next rate."""

    start_s: float
    per_kwh: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MayWait:
    """A job that may start up to `until_s` from now. `before_s` is when the plan before this one meant it to start, in
    s from now and in the past too; None if none did.
    """

    job: str
    until_s: float
    before_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What jobs that may wait are planned by (`scheduler.horizon`): what energy costs, the first rate now and the last
    for good, and who of the problem's jobs may wait for how long.
    """

    rates: tuple[Rate, ...]
    waits: tuple[MayWait, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One consistent read of the cluster and its queue. `free` and `free_*` of the nodes are net of all jobs that run.

    `horizon_s` is how far ahead on-time and waiting are charged. `pue` multiplies IT energy. `running` are the jobs
    that run and whose placement is known; `outlook` is what is expected to arrive, or nothing.
    The plan may move up to `moves` of the running jobs. With `anew` it plans nodes anew as a whole for that, where no
    node can be switched, which takes seconds on a large cluster. It may give up to `resizes` of them another number of
    nodes.

    `fill` is how much of the nodes that are on is expected to be in use, from 0 to 1: with other jobs to come what this
    plan leaves free will not stay free (`shared_out`). `boot_wait_w` is the price of waiting for a boot, in W: the
    planner's caller fills in the default (`scheduler.power.default_boot_wait_w`). `reservation` is for one of the jobs.
    Every one of the `budgets` holds. `ahead` is for those of the jobs that may wait; without it all are to start now.
    """

    nodes: tuple[Node, ...]
    jobs: tuple[Job, ...]
    horizon_s: float = 8 * 3600.0
    pue: float = 1.0
    running: tuple[Running, ...] = ()
    outlook: tuple[Outlook, ...] = ()
    moves: int = 0
    anew: bool = False
    resizes: int = 0
    fill: float = 0.0
    boot_wait_w: float = 0.0
    reservation: Reservation | None = None
    budgets: tuple[PowerBudget, ...] = ()
    ahead: Ahead | None = None

    def ranked(self) -> "Problem":
        """The same problem with a priority of its own for the job of the reservation, just above those of the same
        priority; itself if there is none. Only the order of priorities means anything.
        """
        if self.reservation is None:
            return self
        first = self.reservation.job
        jobs = (replace(job, priority=2 * job.priority + (job.id == first)) for job in self.jobs)
        return replace(self, jobs=tuple(jobs))

    def shares_w(self) -> dict[str, float]:
        """What `fill` charges to a device of each kind of what its node draws above off, in W."""
        shares: dict[str, float] = {}
        for node in self.nodes:
            for kind in {device.kind for device in node.devices}:
                shares[kind] = min(shares.get(kind, math.inf), self.fill * node.device_base_w(kind))
        return shares

    def shared_out(self) -> "Problem":
        """The same problem with `fill` in its prices and 0 in its place; itself if that is 0.

        Of what a switchable node draws above off, the share `fill` is charged to its devices, evenly, for as long as a
        job holds them, and only the rest for being on at all. Without it a free device on a node that is on seems free
        of charge, and a whole node is charged to the first job that wakes it up, though others will follow.
        """
        if not self.fill:
            return self
        shares = self.shares_w()
        powers = {power: power.without(self.fill) for power in {node.power for node in self.nodes}}
        shaped: dict[Shape, Shape] = {}
        for shape in {shape for job in self.jobs for shape in job.shapes}:
            shaped[shape] = replace(shape, active_w=shape.active_w + shares.get(shape.kind, 0.0))
        return replace(
            self,
            fill=0.0,
            nodes=tuple(replace(node, power=powers[node.power]) if node.can_switch else node for node in self.nodes),
            jobs=tuple(replace(job, shapes=tuple(shaped[shape] for shape in job.shapes)) for job in self.jobs),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much work a solve may do. `deterministic_s` is counted in the solver's own units, so that a replay agrees;
    `watchdog_s` of wall clock only stops a solve that went wrong. Every search runs with `seed`. One unit is about 2 s
    of an idle core; the default leaves a margin to 2 s of wall clock for 200 jobs on 64 nodes (`bench.solver`).
    """

    deterministic_s: float = 0.15
    watchdog_s: float = 10.0
    workers: int = 1
    seed: int = field(default=1)

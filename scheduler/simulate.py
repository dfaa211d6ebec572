"""The planner driven over virtual time: when each job would start, and what the cluster would draw meanwhile.

Jobs hold whole devices, run to their end where they started, and take as long as the caller says they really take;
the planner sees estimates only. A node that a placement needs and that is off boots first, and the gang starts when the
last of its nodes is ready. An empty node that the plan would switch off goes once it has been empty for
`Switching.idle_s`.

Energy is counted as `scheduler.objective.evaluate` counts it: every node its off draw all the time, what it draws above
that while it is on, its boots, and what jobs add. PUE multiplies all of it.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from scheduler.plan import Placement
from scheduler.power import default_boot_wait_w
from scheduler.problem import WHOLE_DEVICE, Hold, Job, Node, PowerBudget, Problem, Running
from scheduler.reserve import OVERTAKEN_S, reserve

OVERDUE_SHARE = 0.5
"""A job past its estimate is expected to need this share of its time so far on top: long runs stay long."""

MEMORY_S = 86_400.0
"""How far back a planner looks to see how full nodes are."""

LEAST_LEFT_S = 60.0
"""A job that runs is expected to need this much longer at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A job that comes at `at_s`. `runs_s` is how long it really runs in each of its shapes, in s; the shapes
    themselves hold the estimates that the planner sees.
    """

    at_s: float
    job: Job
    runs_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Switching:
    """How nodes are switched. An empty one stays on for `idle_s` at least; going off takes `suspend_s`, in which it
    draws what it draws when on.
    """

    idle_s: float
    suspend_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a planner answers: gangs that start now, and the ids of empty nodes that should not stay on."""

    placements: tuple[Placement, ...]
    off: Collection[str] = ()
    moves: tuple[Placement, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """How jobs are moved: `per_job` moves for each that has come, at most. One that moves goes on from its last
    checkpoint, of which it makes one every `save_s`, and holds its devices for `restart_s` before it computes again.
    """

    per_job: float
    restart_s: float = 60.0
    save_s: float = 600.0


Planner = Callable[[Problem], Decision]
"""Sees the queue in the order of arrival, and in `Problem.running` what runs, with `run_s` for what is expected to be
left (s)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One job of a window: when it came, started computing and ended, in s, and on what."""

    job: str
    shape: int
    nodes: tuple[str, ...]
    devices: int
    came_s: float
    began_s: float
    ended_s: float

    @property
    def wait_s(self) -> float:
        """From arrival to the first second of computing, boots included."""
        return self.began_s - self.came_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What happened from 0 to `end_s`, when the last job had ended and no node would still be switched.

    Energies in J, PUE included: `off_j` every node's off draw all the time, `on_j` above that while on, `boot_j`,
    `work_j` what jobs added. `held_j` is the part of `on_j` that fell to devices while jobs held them; the rest went to
    idle ones. `resting_w` is the draw after the end. `idle_device_s`: device-seconds on and held by nobody. `peaks_w`:
    the most that the nodes of each budget drew at any time, in W.
    """

    runs: tuple[Run, ...]
    end_s: float
    off_j: float
    on_j: float
    boot_j: float
    work_j: float
    held_j: float
    boots: int
    idle_device_s: float
    resting_w: float
    resting_devices: int
    peaks_w: tuple[float, ...] = ()

    @property
    def total_j(self) -> float:
        return self.off_j + self.on_j + self.boot_j + self.work_j

    def until(self, end_s: float) -> "Window":
        """The same window with the rest until `end_s`, in which nothing happens.

        Raises ValueError if `end_s` is before the end.
        """
        if end_s < self.end_s:
            raise ValueError(f"end_s is {end_s:g}, must be at least {self.end_s:g}, when the window ends")
        rest_s = end_s - self.end_s
        off_w = self.off_j / self.end_s if self.end_s else 0.0
        return replace(
            self,
            end_s=end_s,
            off_j=self.off_j + off_w * rest_s,
            on_j=self.on_j + (self.resting_w - off_w) * rest_s,
            idle_device_s=self.idle_device_s + self.resting_devices * rest_s,
        )


def simulate(
    nodes: Sequence[Node],
    arrivals: Sequence[Arrival],
    planner: Planner,
    switching: Switching,
    *,
    pue: float = 1.0,
    budgets: tuple[PowerBudget, ...] = (),
    moving: Moving | None = None,
) -> Window:
    """Runs the arrivals on the nodes, which are empty at first, until all jobs have ended.

    The planner is asked whenever something has happened and a job waits or an empty node may be switched. Equal
    arguments give equal windows.

    Raises ValueError for shares of devices, if the planner places what does not fit, or if jobs are left that it never
    places.
    """
    return _Simulation(nodes, arrivals, planner, switching, pue, budgets, moving).run()


class _Event(IntEnum):
    """Of what happens at one moment the ends come first, so that what is free then can be given anew."""

    END = 0
    READY = 1
    OFF = 2
    ARRIVAL = 3
    IDLE = 4


class _Machine:
    """A node over time. `on_since_s` is set while it draws its base."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.on = node.on
        self.ready_s = 0.0
        self.leaving = False
        self.on_since_s: float | None = 0.0 if node.on else None
        self.empty_since_s: float = 0.0
        self.holders: dict[str, tuple[str, ...]] = {}
        self.free = {device.id: device for device in node.devices if device.free == WHOLE_DEVICE}
        self.millicores = node.free_millicores
        self.memory_bytes = node.free_memory_bytes
        self.on_s = 0.0

    def stop_drawing(self, now: float) -> None:
        if self.on_since_s is not None:
            self.on_s += now - self.on_since_s
            self.on_since_s = None


class _Past:
    """How full the nodes that were on have been over the last `MEMORY_S`."""

    def __init__(self) -> None:
        self.devices: deque[tuple[float, int, int]] = deque()
        self.held_s = self.on_s = 0.0

    def note(self, now: float, machines: Collection[_Machine]) -> None:
        on = [machine for machine in machines if machine.on_since_s is not None]
        held = sum(len(devices) for machine in on for devices in machine.holders.values())
        if self.devices:
            self._count(self.devices[-1], now, 1)
        self.devices.append((now, held, sum(len(machine.node.devices) for machine in on)))
        while len(self.devices) > 1 and self.devices[1][0] < now - MEMORY_S:
            first = self.devices.popleft()
            self._count(first, self.devices[0][0], -1)

    def fill(self) -> float:
        """Device-seconds held over device-seconds on; 0 before anything was on."""
        return self.held_s / self.on_s if self.on_s > 0 else 0.0

    def _count(self, first: tuple[float, int, int], end_s: float, sign: int) -> None:
        at_s, held, on = first
        self.held_s += sign * held * (end_s - at_s)
        self.on_s += sign * on * (end_s - at_s)


@dataclass(slots=True)
class _Live:
    """A job that was placed: `began_s` is when the last of its nodes is ready.

    `goes_on_s` is when it computes what it has not yet done, and `done` how much of it that is, from 0 to 1. It differs
    from `began_s` for one that moved.
    """

    arrival: Arrival
    placement: Placement
    began_s: float
    ends_s: float
    goes_on_s: float
    first_s: float
    done: float = 0.0


class _Simulation:
    def __init__(
        self,
        nodes: Sequence[Node],
        arrivals: Sequence[Arrival],
        planner: Planner,
        switching: Switching,
        pue: float,
        budgets: tuple[PowerBudget, ...],
        moving: Moving | None,
    ) -> None:
        if any(shape.shared or not shape.devices for arrival in arrivals for shape in arrival.job.shapes):
            raise ValueError("every shape must ask for whole devices")
        self.machines = {node.id: _Machine(node) for node in nodes}
        self.planner = planner
        self.switching = switching
        self.pue = pue
        self.budgets = budgets
        self.moving = moving
        self.came = self.moved = 0
        self.peaks_w = [0.0] * len(budgets)
        self.now = 0.0
        self.events: list[tuple[float, int, int, str]] = []
        self.count = 0
        self.arrivals = {arrival.job.id: arrival for arrival in arrivals}
        self.queue: dict[str, Arrival] = {}
        self.live: dict[str, _Live] = {}
        self.runs: list[Run] = []
        self.boots_j = self.work_j = self.held_j = self.held_device_s = 0.0
        self.boots = 0
        self.past = _Past()
        self.boot_wait_w = default_boot_wait_w(nodes)
        for arrival in arrivals:
            self._later(arrival.at_s, _Event.ARRIVAL, arrival.job.id)
        for machine in self.machines.values():
            if machine.on and machine.node.can_switch:
                self._later(switching.idle_s, _Event.IDLE, machine.node.id)

    def run(self) -> Window:
        while self.events:
            self.now = self.events[0][0]
            looks = False
            while self.events and self.events[0][0] == self.now:
                _, event, _, name = heapq.heappop(self.events)
                looks = self._happen(_Event(event), name) or looks
            if looks:
                self._plan()
            self.past.note(self.now, self.machines.values())
            self._note_peaks()
        if self.queue:
            left = ", ".join(list(self.queue)[:3])
            raise ValueError(f"{len(self.queue)} jobs were never placed, {left} among them; no node may fit them")
        return self._window()

    def _note_peaks(self) -> None:
        for number, budget in enumerate(self.budgets):
            draw_w = sum(self._draw_w(self.machines[name]) for name in budget.nodes)
            self.peaks_w[number] = max(self.peaks_w[number], draw_w)

    def _draw_w(self, machine: _Machine) -> float:
        """What a node draws from this moment on until something happens."""
        power = machine.node.power
        if not machine.on:
            return power.off_w
        if self.now < machine.ready_s:
            return power.boot_j / power.boot_s
        return power.base_w + sum(
            self._active_w(self.live[name]) for name in machine.holders if self.now >= self.live[name].began_s
        )

    def _active_w(self, live: _Live) -> float:
        """What a job adds to each of its nodes, in W."""
        shape = live.arrival.job.shapes[live.placement.shape]
        return shape.devices * shape.active_w

    def _happen(self, event: _Event, name: str) -> bool:
        """Whether the planner should look at it."""
        if event is _Event.ARRIVAL:
            self.queue[name] = self.arrivals[name]
            self.came += 1
            return True
        if event is _Event.END:
            if name not in self.live or self.live[name].ends_s != self.now:
                return False  # it has moved meanwhile
            self._end(name)
            return True
        machine = self.machines[name]
        if event is _Event.READY:
            machine.on_since_s = self.now
            return False
        if event is _Event.OFF:
            machine.stop_drawing(self.now)
            machine.on = machine.leaving = False
            return bool(self.queue)
        return self._may_go(machine)

    def _may_go(self, machine: _Machine) -> bool:
        """Whether it may be switched off now: on, and empty for long enough."""
        empty_s = self.now - machine.empty_since_s
        free = not machine.holders and machine.on and not machine.leaving
        return free and machine.node.can_switch and empty_s >= self.switching.idle_s

    def _plan(self) -> None:
        decision = self.planner(self._problem())
        stopped = [(placement, self._stop(placement.job)) for placement in decision.moves]
        for placement, live in stopped:
            self._go_on(placement, live)
        for placement in decision.placements:
            self._start(placement)
        for name in decision.off:
            machine = self.machines[name]
            if self._may_go(machine):
                machine.leaving = True
                self._later(self.now + self.switching.suspend_s, _Event.OFF, name)

    def _problem(self) -> Problem:
        left = {name: self._left_s(live) for name, live in self.live.items()}
        problem = Problem(
            nodes=tuple(self._snapshot(machine, left) for machine in self.machines.values()),
            jobs=tuple(arrival.job for arrival in self.queue.values()),
            pue=self.pue,
            fill=self.past.fill(),
            boot_wait_w=self.boot_wait_w,
            budgets=self.budgets,
            moves=self._moves_left(),
            running=tuple(self._running(live, left[name]) for name, live in self.live.items()),
        )
        overtaken = [arrival.job for arrival in self.queue.values() if self.now - arrival.at_s >= OVERTAKEN_S]
        if not overtaken:
            return problem
        first = min(overtaken, key=lambda job: (-job.priority, job.order, job.id))
        return replace(problem, reservation=reserve(problem, first))

    def _left_s(self, live: _Live) -> float:
        """What the planner expects a placed job to need still, its wait for a boot included."""
        estimate = live.arrival.job.shapes[live.placement.shape].run_s
        estimate *= 1 - live.done
        if self.now < live.goes_on_s:
            return live.goes_on_s - self.now + estimate
        so_far = self.now - live.goes_on_s
        return max(estimate - so_far, LEAST_LEFT_S, OVERDUE_SHARE * so_far if so_far > estimate else 0.0)

    def _moves_left(self) -> int:
        return max(0, int(self.moving.per_job * self.came) - self.moved) if self.moving else 0

    def _running(self, live: _Live, left_s: float) -> Running:
        shapes = live.arrival.job.shapes
        scale = left_s / shapes[live.placement.shape].run_s
        members = tuple(Hold(node=member.node, devices=member.devices) for member in live.placement.members)
        shape = shapes[live.placement.shape]
        job = replace(live.arrival.job, shapes=tuple(replace(one, run_s=scale * one.run_s) for one in shapes))
        move_j = 0.0
        if self.moving:
            lost_s = self.moving.restart_s + self._unsaved_s(live)
            move_j = lost_s * shape.size * (shape.active_w + device_base_w(self.machines[members[0].node].node))
        may = self.moving is not None and self.now - live.goes_on_s >= self.moving.save_s
        return Running(job=job, shape=live.placement.shape, members=members, move_j=move_j, may_move=may)

    def _unsaved_s(self, live: _Live) -> float:
        assert self.moving
        return max(0.0, self.now - live.goes_on_s) % self.moving.save_s

    def _snapshot(self, machine: _Machine, left: dict[str, float]) -> Node:
        node = machine.node
        return replace(
            node,
            devices=tuple(
                device if device.id in machine.free or not device.free else replace(device, free=0)
                for device in node.devices
            ),
            free_millicores=machine.millicores,
            free_memory_bytes=machine.memory_bytes,
            on=machine.on,
            open=node.open and not machine.leaving,
            busy_s=max((left[holder] for holder in machine.holders), default=0.0),
            busy_w=sum(self._active_w(self.live[holder]) for holder in machine.holders),
            booting=machine.on and self.now < machine.ready_s,
        )

    def _start(self, placement: Placement) -> None:
        arrival = self.queue.pop(placement.job)
        self._place(placement, arrival, done=0.0, first_s=None, pause_s=0.0)

    def _go_on(self, placement: Placement, live: _Live) -> None:
        assert self.moving
        self.moved += 1
        self._place(placement, live.arrival, done=live.done, first_s=live.first_s, pause_s=self.moving.restart_s)

    def _place(
        self, placement: Placement, arrival: Arrival, *, done: float, first_s: float | None, pause_s: float
    ) -> None:
        shape = arrival.job.shapes[placement.shape]
        began_s = self.now
        for member in placement.members:
            machine = self.machines[member.node]
            fits = set(member.devices) <= machine.free.keys() and len(member.devices) == shape.devices
            if machine.leaving or not fits or shape.millicores > machine.millicores:
                raise ValueError(f"job {placement.job} does not fit on node {member.node}")
            for device in member.devices:
                del machine.free[device]
            machine.holders[placement.job] = member.devices
            machine.millicores -= shape.millicores
            machine.memory_bytes -= shape.memory_bytes
            if not machine.on:
                self._boot(machine)
            began_s = max(began_s, machine.ready_s)
        goes_on_s = began_s + pause_s
        ends_s = goes_on_s + (1 - done) * arrival.runs_s[placement.shape]
        self.live[placement.job] = _Live(
            arrival=arrival,
            placement=placement,
            began_s=began_s,
            goes_on_s=goes_on_s,
            ends_s=ends_s,
            done=done,
            first_s=began_s if first_s is None else first_s,
        )
        self._later(ends_s, _Event.END, placement.job)

    def _stop(self, job: str) -> _Live:
        """Takes a job that runs off its nodes; it has done what it has saved."""
        assert self.moving
        live = self._leave(job)
        saved_s = max(0.0, self.now - live.goes_on_s) - self._unsaved_s(live)
        return replace(live, done=live.done + saved_s / live.arrival.runs_s[live.placement.shape])

    def _boot(self, machine: _Machine) -> None:
        machine.on = True
        machine.ready_s = self.now + machine.node.power.boot_s
        self.boots += 1
        self.boots_j += machine.node.power.boot_j
        self._later(machine.ready_s, _Event.READY, machine.node.id)

    def _leave(self, job: str) -> _Live:
        """Frees what the job holds and counts what it drew there."""
        live = self.live.pop(job)
        shape = live.arrival.job.shapes[live.placement.shape]
        run_s = max(0.0, self.now - live.began_s)
        self.work_j += shape.size * shape.active_w * run_s
        for member in live.placement.members:
            machine = self.machines[member.node]
            devices = {device.id: device for device in machine.node.devices}
            for device in machine.holders.pop(job):
                machine.free[device] = devices[device]
            machine.millicores += shape.millicores
            machine.memory_bytes += shape.memory_bytes
            # Until the gang begins its nodes that are ready wait for the others: that is idling, not holding.
            self.held_device_s += shape.devices * run_s
            self.held_j += shape.devices * run_s * device_base_w(machine.node)
            if not machine.holders and machine.node.can_switch:
                machine.empty_since_s = self.now
                self._later(self.now + self.switching.idle_s, _Event.IDLE, machine.node.id)
        return live

    def _end(self, job: str) -> None:
        live = self._leave(job)
        shape = live.arrival.job.shapes[live.placement.shape]
        self.runs.append(
            Run(
                job=job,
                shape=live.placement.shape,
                nodes=tuple(member.node for member in live.placement.members),
                devices=shape.size,
                came_s=live.arrival.at_s,
                began_s=live.first_s,
                ended_s=self.now,
            )
        )

    def _later(self, at_s: float, event: _Event, name: str) -> None:
        if math.isfinite(at_s):
            self.count += 1
            heapq.heappush(self.events, (at_s, event, self.count, name))

    def _window(self) -> Window:
        machines = self.machines.values()
        resting_w, resting_devices = 0.0, 0
        for machine in machines:
            power = machine.node.power
            resting_w += power.off_w if machine.on_since_s is None else power.base_w
            resting_devices += 0 if machine.on_since_s is None else len(machine.node.devices)
            machine.stop_drawing(self.now)
        on_j = sum(machine.on_s * (machine.node.power.base_w - machine.node.power.off_w) for machine in machines)
        on_device_s = sum(machine.on_s * len(machine.node.devices) for machine in machines)
        return Window(
            runs=tuple(self.runs),
            end_s=self.now,
            off_j=self.pue * self.now * sum(machine.node.power.off_w for machine in machines),
            on_j=self.pue * on_j,
            boot_j=self.pue * self.boots_j,
            work_j=self.pue * self.work_j,
            held_j=self.pue * self.held_j,
            boots=self.boots,
            idle_device_s=on_device_s - self.held_device_s,
            resting_w=self.pue * resting_w,
            resting_devices=resting_devices,
            peaks_w=tuple(self.peaks_w),
        )


def device_base_w(node: Node) -> float:
    """One device's share of what the node draws on and idle above off, in W."""
    return (node.power.base_w - node.power.off_w) / len(node.devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Where the energy of a window went beyond `bound_j`, in J, PUE included. The parts add up to the difference.

    `idle_j`: devices on and held by nobody. `boot_j`: boots. `shape_j`: jobs in other shapes, or on other nodes, than
    those that would have cost least.
    """

    bound_j: float
    idle_j: float
    boot_j: float
    shape_j: float

    @property
    def share(self) -> float:
        """(energy - bound) / bound: the energy gap."""
        return (self.idle_j + self.boot_j + self.shape_j) / self.bound_j if self.bound_j else 0.0


def energy_gap(nodes: Sequence[Node], arrivals: Sequence[Arrival], window: Window, *, pue: float = 1.0) -> Gap:
    """The window beside LB0: every job in its cheapest shape, on perfectly filled nodes, without a boot.

    LB0 = PUE * (sum P_off * H + sum over jobs of min over shapes and nodes of
    size * T * (active_w + (P_base - P_off) / G)), with G the devices of the node. No schedule of whole devices that
    does this work draws less, since a node that is on holds G of them at most.
    """
    base_w: dict[str, float] = {}
    for node in nodes:
        for kind in {device.kind for device in node.devices}:
            base_w[kind] = min(base_w.get(kind, math.inf), device_base_w(node))
    least_j = pue * sum(min(_work_j(arrival, base_w)) for arrival in arrivals)
    return Gap(
        bound_j=window.off_j + least_j,
        idle_j=window.on_j - window.held_j,
        boot_j=window.boot_j,
        shape_j=window.work_j + window.held_j - least_j,
    )


def _work_j(arrival: Arrival, base_w: dict[str, float]) -> Iterator[float]:
    for shape, run_s in zip(arrival.job.shapes, arrival.runs_s, strict=True):
        if shape.kind in base_w:
            yield shape.size * run_s * (shape.active_w + base_w[shape.kind])

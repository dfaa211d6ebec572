"""Places arrivals one by one on a fleet, each where it costs least: watts, fragments, and what others will need.

    cost of a member on a node = what it adds in W
                               + lambda(u) * the fragments it leaves
                               + rho(u) * the room it takes from demands for which there is little, each by its size
                               - kappa(u) * size * how much its class lacks of its demand, after the outlook

u is the share of all devices in use. Power comes first while there is room; the prices of fragments, of room and of
keeping to the outlook's split rise as the cluster fills. There is little room for a demand when the nodes could hold
hardly more members of it than are still expected, give or take a standard deviation: each that no longer fits is then
one that will be missed. The prices are in units of what a device draws, so that they mean the same on every cluster.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.classes import count_demands, demand_of, demands_of
from scheduler.demand import WHOLE_DEVICE, Demand, Outlook
from scheduler.feasibility import takes_work
from scheduler.fleet import Counts, Flags, Fleet, Ints, Verdicts
from scheduler.mix import PARTS
from scheduler.plan import MemberPlacement, Placement
from scheduler.problem import Job, Problem

Vector = NDArray[np.float64]

FRAGMENT_PRICE = ((0.0, 0.2), (0.4, 0.2), (0.5, 1.0), (0.8, 1.0), (0.85, 3.0), (1.0, 3.0))
"""Price of a device made useless, in mean active draws of one, by load; straight lines in the logarithm between."""

ROOM_PRICE = ((0.0, 0.03), (0.8, 0.03), (0.85, 0.3), (1.0, 0.3))
"""Price of room for a device's worth of a demand that will be missed, in the same unit, by load."""

HOST_ROOM_PRICE = 3.0
"""The same at least for jobs without devices: they draw as much wherever they are, so that it costs no power to keep
them off cores without which devices would be lost."""

MICRO = 1_000_000
"""Room is priced in whole microwatts, so that it does not matter in which order it is added up."""

SPLIT_PRICE = ((0.0, 0.15), (0.8, 0.15), (0.82, 2.5), (1.0, 2.5))
"""Price of a device's worth of one member too many on a class, in the same unit, by load."""

MOST_LACK = 2.0
"""Members that a class is considered to lack, or have too many of, at most: the outlook is an expectation."""


NO_NODE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Where one member goes: a node, a share's slot in its state, and the cost in W."""

    node: int
    slot: int
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A job of one member that is on the fleet: what it asked for, its node, and the indices of its devices there."""

    job: Job
    shape: int
    demand: Demand
    node: int
    taken: tuple[int, ...]


class Packer:
    """A fleet with the jobs on it. What it answers depends on the state alone, not on how the state came about.

    `residents` are the jobs of one member that may be moved, by id.
    """

    def __init__(self, problem: Problem) -> None:
        self.outlook = problem.outlook[0] if problem.outlook else None
        mix = _mix(problem, self.outlook)
        self.fleet = Fleet([node for node in problem.nodes if takes_work(node)], mix)
        self.unit_w = _unit_w(self.fleet, mix)
        self.residents: dict[str, Resident] = {}
        self._index = {name: number for number, name in enumerate(self.fleet.names)}
        self._split = _split(self.outlook, self.fleet)
        self._expected = _per_load(self.outlook, self.fleet)
        self._placed: dict[Demand, Vector] = {}
        for running in problem.running:
            demand = demand_of(running.job, running.shape)
            for member in running.members:
                if member.node in self._index:
                    node = self._index[member.node]
                    self._count(demand, node, 1)
                    if len(running.members) == 1 and running.may_move:
                        self._settle(running.job, running.shape, demand, node, member.devices)

    def start(self, job: Job, avoid: int = NO_NODE) -> Placement | None:
        """Starts the job where it costs least, but not on node `avoid`, and says where; None if it does not fit now."""
        best: tuple[float, Demand, int, list[Spot]] | None = None
        for (members, demand), shapes in demands_of(job.shapes).items():
            for kind, spots in self._offers(demand, members, avoid):
                cost = sum(spot.cost for spot in spots)
                if best is None or cost < best[0]:
                    best = (cost, demand, shapes[kind], spots)
        if best is None:
            return None
        _, demand, shape, spots = best
        members = tuple(self._put(demand, spot) for spot in spots)
        if len(spots) == 1:
            self._settle(job, shape, demand, spots[0].node, members[0].devices)
        return Placement(job=job.id, shape=shape, members=members)

    def stop(self, job: Job, placement: Placement) -> None:
        """Takes a job off the fleet again."""
        demand = demand_of(job, placement.shape)
        for member in placement.members:
            node = self._index[member.node]
            taken = [self.fleet.devices[node].index(device) for device in member.devices]
            self.fleet.give_back(node, demand, taken)
            self._count(demand, node, -1)
        self.residents.pop(job.id, None)

    def put_back(self, resident: Resident) -> None:
        """Puts a resident that was stopped back where it was."""
        self.fleet.take_exactly(resident.node, resident.demand, resident.taken)
        self._count(resident.demand, resident.node, 1)
        self.residents[resident.job.id] = resident

    def placement_of(self, resident: Resident) -> Placement:
        """Where a resident is, in the plan's words."""
        names = self.fleet.devices[resident.node]
        member = MemberPlacement(
            node=self.fleet.names[resident.node], devices=tuple(names[index] for index in resident.taken)
        )
        return Placement(job=resident.job.id, shape=resident.shape, members=(member,))

    def there(self) -> dict[Demand, float]:
        """Members on the fleet, by demand."""
        return {demand: float(counts.sum()) for demand, counts in self._placed.items() if counts.any()}

    def least_cost(self, demand: Demand, avoid: int = NO_NODE) -> Spot | None:
        """The cheapest place for one member, not on node `avoid`; None if there is none."""
        verdicts = self.fleet.judge(demand)
        return self._cheapest(verdicts, self._costs(demand, verdicts), avoid)

    def fragment_w(self) -> float:
        """Price of a fragment, in W for one of `PARTS` of a thousandth, at the present load."""
        return _price(FRAGMENT_PRICE, self.fleet.load()) * self.unit_w / (PARTS * WHOLE_DEVICE)

    def room_microw(self, *, host: bool) -> Ints:
        """Price of the room for one member of each demand of the mix, in whole microwatts; `host`: to be paid by a job
        without devices.
        """
        load = self.fleet.load()
        price = _price(ROOM_PRICE, load)
        if host:
            price = max(price, HOST_ROOM_PRICE)
        coming = self._expected * max(0.0, 1 - load)
        missed = np.minimum(1.0, (coming + np.sqrt(coming)) / np.maximum(1, self.fleet.room_left))
        return np.rint(price * self.unit_w * MICRO * self.fleet.mix.sizes * missed).astype(np.int64)

    def lack_w(self, demand: Demand) -> Vector:
        """What it is worth to have one more member on a node of each class for the sake of the outlook, in W."""
        split = self._split.get(demand)
        if split is None or self.outlook is None:
            return np.zeros(len(self.fleet.classes))
        load = self.fleet.load()
        lack = _at(self.outlook.loads, split, load) - self._placed.get(demand, 0.0)
        worth_w = _price(SPLIT_PRICE, load) * self.unit_w * max(1.0, demand.size)
        return worth_w * np.clip(lack, -MOST_LACK, MOST_LACK)

    def _offers(self, demand: Demand, members: int, avoid: int) -> list[tuple[str, list[Spot]]]:
        """The cheapest nodes for a gang, by the kind its devices would be of."""
        verdicts = self.fleet.judge(demand)
        costs = self._costs(demand, verdicts)
        if members == 1:
            spot = self._cheapest(verdicts, costs, avoid)
            return [] if spot is None else [(self._kind(demand, spot.node), [spot])]
        offers: list[tuple[str, list[Spot]]] = []
        kinds = np.array([node.kind for node in self.fleet.classes])[self.fleet.row_class]
        for kind in demand.kinds or ("",):
            among = np.where(kinds == kind, costs.min(axis=0), math.inf) if kind else costs.min(axis=0)
            spots = self._cheapest_of(verdicts, costs, among, members)
            if len(spots) == members:
                offers.append((kind, spots))
        return offers

    def _costs(self, demand: Demand, verdicts: Verdicts) -> Vector:
        """What a member costs on each state in W: first on a device in use, then on bare ones; inf where it cannot."""
        fragment_w = self.fragment_w()
        base = verdicts.socket_w - self.lack_w(demand)[self.fleet.row_class]
        awake = base + fragment_w * verdicts.awake_adds
        bare = base + verdicts.device_w + fragment_w * verdicts.bare_adds
        prices = self.room_microw(host=not demand.devices)
        awake += _worth_w(verdicts.awake_takes, verdicts.awake_fits, prices)
        bare += _worth_w(verdicts.bare_takes, verdicts.bare_fits, prices)
        return np.stack([np.where(verdicts.awake_fits, awake, math.inf), np.where(verdicts.bare_fits, bare, math.inf)])

    def _cheapest(self, verdicts: Verdicts, costs: Vector, avoid: int) -> Spot | None:
        if avoid != NO_NODE and self.fleet.counts[self.fleet.row_of[avoid]] == 1:
            costs[:, self.fleet.row_of[avoid]] = math.inf
        least = costs.min()
        if least == math.inf:
            return None
        ways, rows = np.nonzero(costs == least)
        # Of equally good states the one whose first node comes first, a device in use before a bare one.
        node, way, row = min(
            (next(node for node in self.fleet.members[row] if node != avoid), way, row)
            for way, row in zip(ways.tolist(), rows.tolist(), strict=True)
        )
        return self._spot(verdicts, costs, way, row, node)

    def _cheapest_of(self, verdicts: Verdicts, costs: Vector, among: Vector, members: int) -> list[Spot]:
        able: list[int] = np.flatnonzero(among < math.inf).tolist()
        order = sorted(able, key=lambda row: (among[row], self.fleet.members[row][0]))
        spots: list[Spot] = []
        for row in order:
            way = int(costs[:, row].argmin())
            nodes = self.fleet.members[row][: members - len(spots)]
            spots += [self._spot(verdicts, costs, way, row, node) for node in nodes]
            if len(spots) == members:
                break
        return spots

    def _spot(self, verdicts: Verdicts, costs: Vector, way: int, row: int, node: int) -> Spot:
        slot = verdicts.bare_slot[row] if way else verdicts.awake_slot[row]
        return Spot(node=node, slot=int(slot), cost=float(costs[way, row]))

    def _put(self, demand: Demand, spot: Spot) -> MemberPlacement:
        taken = self.fleet.take(spot.node, demand, spot.slot)
        self._count(demand, spot.node, 1)
        names = self.fleet.devices[spot.node]
        return MemberPlacement(node=self.fleet.names[spot.node], devices=tuple(names[index] for index in taken))

    def _settle(self, job: Job, shape: int, demand: Demand, node: int, devices: Sequence[str]) -> None:
        taken = tuple(self.fleet.devices[node].index(device) for device in devices)
        self.residents[job.id] = Resident(job=job, shape=shape, demand=demand, node=node, taken=taken)

    def _count(self, demand: Demand, node: int, sign: int) -> None:
        placed = self._placed.setdefault(demand, np.zeros(len(self.fleet.classes)))
        placed[self.fleet.node_class[node]] += sign

    def _kind(self, demand: Demand, node: int) -> str:
        return self.fleet.classes[self.fleet.node_class[node]].kind if demand.devices else ""


def _mix(problem: Problem, outlook: Outlook | None) -> Mapping[Demand, float]:
    """The demands to expect: those of the outlook, or without one those that run and wait."""
    if outlook is None:
        return count_demands([running.job for running in problem.running] + list(problem.jobs))
    return outlook.mix()


def _per_load(outlook: Outlook | None, fleet: Fleet) -> Vector:
    """Members of each demand of the fleet's mix that come while its load rises from 0 to 1, as far as is known."""
    if outlook is None:
        return np.zeros(len(fleet.mix.members))
    loads = list(outlook.loads)
    begun = loads[0] if len(loads) > 1 else 0.0
    return fleet.mix.members / (loads[-1] - begun)


def _worth_w(takes: Counts, fits: Flags, prices: Ints) -> Vector:
    """What the room is worth that is taken from each state, in W; 0 where the member does not fit."""
    worth = np.zeros(len(fits))
    if prices.any():
        worth[fits] = (takes[fits] @ prices) / MICRO
    return worth


def _split(outlook: Outlook | None, fleet: Fleet) -> dict[Demand, Vector]:
    """For each demand of the outlook, the members by load and class of the fleet."""
    if outlook is None:
        return {}
    split: dict[Demand, Vector] = {}
    columns = {node: number for number, node in enumerate(outlook.classes)}
    for t, demand in enumerate(outlook.demands):
        table = np.array([level[t] for level in outlook.members])
        split[demand] = np.stack(
            [table[:, columns[node]] if node in columns else np.zeros(len(table)) for node in fleet.classes], axis=1
        )
    return split


def _unit_w(fleet: Fleet, mix: Mapping[Demand, float]) -> float:
    """The mean active draw of the fleet's devices under the mix, in W."""
    watts: dict[str, float] = {}
    for demand in mix:
        for kind, active_w in zip(demand.kinds, demand.active_w, strict=True):
            watts[kind] = max(watts.get(kind, 0.0), active_w)
    devices = [(fleet.classes[number].kind, fleet.classes[number].devices) for number in fleet.node_class]
    total = sum(count for _, count in devices)
    return sum(watts.get(kind, 0.0) * count for kind, count in devices) / total if total else 0.0


def _price(table: Sequence[tuple[float, float]], load: float) -> float:
    loads, prices = zip(*table, strict=True)
    return math.exp(float(np.interp(load, loads, np.log(prices))))


def _at(loads: Sequence[float], split: Vector, load: float) -> Vector:
    """Members by class at a load: in proportion between the loads of the outlook, from 0 below and beyond above."""
    if load >= loads[-1]:
        return split[-1] * (load / loads[-1])
    upper = next(index for index, known in enumerate(loads) if load < known)
    low = loads[upper - 1] if upper else 0.0
    before = split[upper - 1] if upper else np.zeros_like(split[0])
    part = (load - low) / (loads[upper] - low)
    return before * (1 - part) + split[upper] * part

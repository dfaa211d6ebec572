"""Moves jobs that run: to save power, and to make room for an arrival that finds none.

A move stops a job and starts it elsewhere, which costs its restart and lost work; moves are counted against a budget
of the caller's. Only jobs of one member are moved. What a move saves is priced as a placement is (`scheduler.packing`):
watts, fragments, room, and what the outlook lacks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.classes import demands_of
from scheduler.demand import Demand
from scheduler.fleet import Ints
from scheduler.packing import MICRO, Packer, Resident, Spot
from scheduler.plan import Placement
from scheduler.problem import Job

LEAST_GAIN = 0.2
"""What a move must save at least, in mean active draws of a device (`Packer.unit_w`)."""

FULL = 0.8
"""From this load on, moves make the fleet fit for what is still to come rather than save power, and must gain
`FULL_GAIN`, because there are fewer devices to gain them on."""

FULL_GAIN = 0.8

MOVE_PRICE = 0.3
"""What each move of making room counts beside the watts it adds, in the same unit: fewer moves are better."""

MOST_MOVES = 15
"""Jobs moved away for one arrival, at most."""

SHORTLIST = 24
"""Nodes looked at for one arrival: those that lack least."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaving:
    """What a resident's leaving a node would save, while the node's state is of this version."""

    node: int
    version: int
    watts: float
    fragments: int
    room: Ints


class Mover:
    """Improves a packer's fleet. `bars[job]` is what moving that job must save besides, in W."""

    def __init__(self, packer: Packer, bars: Mapping[str, float] | None = None) -> None:
        self.packer = packer
        self._bars = bars or {}
        self._known: dict[str, _Leaving] = {}

    def improve(self, moves: int) -> list[Placement]:
        """The moves that save most, one after the other, up to `moves` of them; carried out on the packer."""
        done: list[Placement] = []
        while len(done) < moves:
            found = self._best()
            if found is None:
                break
            done.append(self._move(found))
        return done

    def make_room(self, job: Job, moves: int) -> tuple[list[Placement], Placement] | None:
        """Moves jobs off one node so that the job can start there, and starts it; None, and nothing changed, if up to
        `moves` do not suffice.
        """
        demands = demands_of(job.shapes)
        if moves < 1 or any(members > 1 for members, _ in demands):
            return None
        demand = next(iter(demands))[1]
        homes: dict[Demand, Spot | None] = {}
        on_node = self._by_node()
        best: tuple[float, int] | None = None
        for node in self._shortlist(demand, on_node):
            cost = self._clearing_cost(demand, node, on_node.get(node, []), homes, min(moves, MOST_MOVES))
            if cost is not None and (best is None or cost < best[0]):
                best = (cost, node)
        return None if best is None else self._clear(job, demand, best[1], min(moves, MOST_MOVES))

    def _best(self) -> Resident | None:
        """The resident whose move saves most, if any saves enough."""
        # Sorted, so that of equal gains the same is chosen however the jobs came here.
        residents = sorted(self.packer.residents.values(), key=lambda one: (one.job.order, one.job.id))
        if not residents:
            return None
        lacks: dict[Demand, Vector] = {}
        homes: dict[Demand, float] = {}
        for resident in residents:
            if resident.demand not in homes:
                spot = self.packer.least_cost(resident.demand)
                homes[resident.demand] = math.inf if spot is None else spot.cost
                lacks[resident.demand] = self.packer.lack_w(resident.demand)
        leaving = self._leaving(residents, lacks)
        gains = leaving - np.array([homes[resident.demand] + self._bar(resident) for resident in residents])
        least = (FULL_GAIN if self.packer.fleet.load() >= FULL else LEAST_GAIN) * self.packer.unit_w
        order: list[int] = np.argsort(-gains, kind="stable").tolist()
        for index in order:
            if gains[index] < least:
                return None
            resident = residents[index]
            # The cheapest place may be the node it is on, which it cannot move to.
            spot = self.packer.least_cost(resident.demand, resident.node)
            if spot is not None and leaving[index] - spot.cost - self._bar(resident) >= least:
                return resident
        return None

    def _leaving(self, residents: list[Resident], lacks: Mapping[Demand, Vector]) -> Vector:
        """What each resident's leaving saves, in W."""
        fleet, fragment_w = self.packer.fleet, self.packer.fragment_w()
        known = self._looked_at(residents)
        prices = np.stack([self.packer.room_microw(host=host) for host in (False, True)], axis=1)
        room_w = np.stack([one.room for one in known]) @ prices / MICRO
        return np.array(
            [
                one.watts
                + fragment_w * one.fragments
                + worth_w[0 if resident.demand.devices else 1]
                - lacks[resident.demand][fleet.node_class[one.node]]
                for resident, one, worth_w in zip(residents, known, room_w.tolist(), strict=True)
            ]
        )

    def _looked_at(self, residents: list[Resident]) -> list[_Leaving]:
        """What leaving would save, worked out again only for residents on nodes that have changed."""
        fleet = self.packer.fleet
        versions: list[int] = fleet.version[fleet.row_of].tolist()
        stale: list[Resident] = []
        for one in residents:
            known = self._known.get(one.job.id)
            if known is None or (known.node, known.version) != (one.node, versions[one.node]):
                stale.append(one)
        if stale:
            found = fleet.saved([(one.node, one.demand, one.taken) for one in stale])
            watts, fragments, room = found[0].tolist(), found[1].tolist(), found[2]
            for number, one in enumerate(stale):
                self._known[one.job.id] = _Leaving(
                    node=one.node,
                    version=versions[one.node],
                    watts=watts[number],
                    fragments=fragments[number],
                    room=room[number],
                )
        return [self._known[one.job.id] for one in residents]

    def _bar(self, resident: Resident) -> float:
        return self._bars.get(resident.job.id, 0.0)

    def _move(self, resident: Resident) -> Placement:
        self.packer.stop(resident.job, self.packer.placement_of(resident))
        placement = self.packer.start(resident.job, avoid=resident.node)
        assert placement is not None, "its cheapest place was found just now"
        return placement

    def _by_node(self) -> dict[int, list[Resident]]:
        found: dict[int, list[Resident]] = {}
        for resident in sorted(self.packer.residents.values(), key=lambda one: (one.job.order, one.job.id)):
            found.setdefault(resident.node, []).append(resident)
        return found

    def _shortlist(self, demand: Demand, on_node: Mapping[int, list[Resident]]) -> list[int]:
        """One node of each state that would hold the demand without its residents, those that lack least first."""
        fleet = self.packer.fleet
        suits = np.array([demand.fits_empty(node) for node in fleet.classes])
        rows = np.flatnonzero((fleet.counts > 0) & suits[fleet.row_class])
        whole = np.array([node.devices for node in fleet.classes])[fleet.row_class[rows]]
        cores = np.array([node.millicores for node in fleet.classes])[fleet.row_class[rows]]
        lacks_cores = np.maximum(0, demand.millicores - fleet.cores[rows]) / np.maximum(1, cores)
        missing = np.maximum(0, demand.devices - (fleet.slots[rows] >= max(1, demand.share)).sum(axis=1))
        idle = fleet.slots[rows].sum(axis=1) / 1000
        lacks_devices = (missing + np.maximum(0.0, demand.size - idle)) / np.maximum(1, whole)
        order = np.argsort(lacks_cores + lacks_devices, kind="stable")
        nearest: list[int] = rows[order].tolist()
        found: list[int] = []
        for row in nearest:
            node = next((node for node in fleet.members[row] if self._could_be_cleared(demand, node, on_node)), None)
            if node is not None:
                found.append(node)
            if len(found) == SHORTLIST:
                break
        return found

    def _could_be_cleared(self, demand: Demand, node: int, on_node: Mapping[int, list[Resident]]) -> bool:
        room = _Room(demand, list(self.packer.fleet.free[node]), *self.packer.fleet.free_host(node))
        for resident in on_node.get(node, []):
            room.leave(resident)
        return room.fits()

    def _clearing_cost(
        self, demand: Demand, node: int, there: list[Resident], homes: dict[Demand, Spot | None], moves: int
    ) -> float | None:
        """What clearing the node for the demand would cost in W, were the homes of the moved not to fill up."""
        fleet = self.packer.fleet
        room = _Room(demand, list(fleet.free[node]), *fleet.free_host(node))
        left = list(there)
        cost = 0.0
        for _ in range(moves + 1):
            if room.fits():
                return cost
            chosen = self._cheapest_help(room, left, homes, node)
            if chosen is None:
                return None
            left.remove(chosen[1])
            room.leave(chosen[1])
            cost += chosen[0] + MOVE_PRICE * self.packer.unit_w
        return None

    def _cheapest_help(
        self, room: "_Room", there: list[Resident], homes: dict[Demand, Spot | None], node: int
    ) -> tuple[float, Resident] | None:
        """The resident that brings the room closest to fitting for what its move costs, and that cost in W."""
        best: tuple[float, float, Resident] | None = None
        for resident in there:
            brings = room.brings(resident)
            if brings <= 0:
                continue
            if resident.demand not in homes:
                homes[resident.demand] = self.packer.least_cost(resident.demand)
            home = homes[resident.demand]
            if home is not None and home.node == node:
                home = self.packer.least_cost(resident.demand, node)
            if home is None:
                continue
            cost = home.cost + self._bar(resident)
            rate = (cost + MOVE_PRICE * self.packer.unit_w) / brings
            if best is None or rate < best[0]:
                best = (rate, cost, resident)
        return None if best is None else best[1:]

    def _clear(self, job: Job, demand: Demand, node: int, moves: int) -> tuple[list[Placement], Placement] | None:
        """Carries it out, with true homes one after the other; undoes everything if it gets stuck."""
        fleet = self.packer.fleet
        moved: list[tuple[Resident, Placement]] = []
        while True:
            room = _Room(demand, list(fleet.free[node]), *fleet.free_host(node))
            if room.fits():
                placement = self.packer.start(job)
                if placement is not None:
                    return [after for _, after in moved], placement
            there = self._by_node().get(node, [])
            chosen = self._cheapest_help(room, there, {}, node) if len(moved) < moves else None
            if chosen is None:
                self._undo(moved)
                return None
            moved.append((chosen[1], self._move(chosen[1])))

    def _undo(self, moved: list[tuple[Resident, Placement]]) -> None:
        for resident, placement in reversed(moved):
            self.packer.stop(resident.job, placement)
            self.packer.put_back(resident)


class _Room:
    """What is left of a node while jobs are thought away from it, for one demand."""

    def __init__(self, demand: Demand, free: list[int], millicores: int, memory_bytes: int) -> None:
        self.demand = demand
        self.free, self.millicores, self.memory_bytes = free, millicores, memory_bytes

    def fits(self) -> bool:
        able = sum(left >= self.demand.share for left in self.free) if self.demand.devices else 0
        return (
            able >= self.demand.devices
            and self.millicores >= self.demand.millicores
            and self.memory_bytes >= self.demand.memory_bytes
        )

    def brings(self, resident: Resident) -> float:
        """How much of what is missing the resident's leaving brings: 1 for all of the cores, of the memory, or of one
        device.
        """
        other, mine = resident.demand, self.demand
        brings = 0.0
        if mine.millicores > self.millicores:
            brings += min(1.0, other.millicores / (mine.millicores - self.millicores))
        if mine.memory_bytes > self.memory_bytes:
            brings += min(1.0, other.memory_bytes / (mine.memory_bytes - self.memory_bytes))
        if sum(left >= mine.share for left in self.free) < mine.devices:
            for index in resident.taken:
                lack = mine.share - self.free[index]
                brings += min(1.0, other.share / lack) if lack > 0 else 0.0
        return brings

    def leave(self, resident: Resident) -> None:
        for index in resident.taken:
            self.free[index] += resident.demand.share
        self.millicores += resident.demand.millicores
        self.memory_bytes += resident.demand.memory_bytes

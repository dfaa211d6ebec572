"""Packs a fleet anew: jobs of one member move, within a budget, if that seats more jobs or saves power.

Nodes are planned whole (`scheduler.whole`): all of them where all jobs may move, and otherwise those whose jobs are
worth moving at a price of a move that fits the budget. Each gets the pattern of its class that keeps most of its jobs
where they are, jobs of one demand being as good as each other; what the plan leaves over is placed by the packer's
prices. Nodes that hold anything else, such as members of a gang, stay as they are.
"""
# scipy ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from scheduler.classes import demands_of
from scheduler.demand import WHOLE_DEVICE, Demand
from scheduler.fluid import UNPLACED_W
from scheduler.moving import MOST_MOVES, Mover
from scheduler.packing import Packer, Resident
from scheduler.patterns import NOTHING_W, Pattern, pattern_of
from scheduler.plan import Placement
from scheduler.problem import Job
from scheduler.whole import Master, plan_whole_nodes

MOVE_PRICES = (4.0, 1.0, 0.3, 0.1, 0.07, 0.05, 0.035)
"""Prices of a move, in mean active draws of a device (`Packer.unit_w`), that are tried one after the other."""


def repack(packer: Packer, waiting: Sequence[Job], bars: Mapping[str, float], moves: int) -> list[Placement]:
    """Plans the fleet anew with the waiting jobs, in line order, and carries it out on the packer with up to so many
    moves.

    Answers where jobs are that moved or started. None of them, and nothing changed, if a job that runs would find no
    place, or if no waiting job would start and the power saved is not above the `bars` (W) of all that move.
    """
    before = dict(packer.residents)
    situation = _Situation(packer, [job for job in waiting if _single(job)])
    best, best_saved_w = before, 0.0
    for nodes, known in situation.choices(moves):
        saved_w = _tried(packer, _Plan(situation, nodes, known), waiting, bars)
        after = dict(packer.residents)
        _restore(packer, before)
        if sum(name in before and one != before[name] for name, one in after.items()) > moves:
            break
        if saved_w is not None and saved_w > best_saved_w + NOTHING_W:
            best, best_saved_w = after, saved_w
        if len(best) > len(before):
            break  # those that waited start: a lower price would only move more
    _restore(packer, best)
    return [packer.placement_of(one) for name, one in best.items() if one != before.get(name)]


def _tried(packer: Packer, plan: "_Plan", waiting: Sequence[Job], bars: Mapping[str, float]) -> float | None:
    """Carries a plan out. What it saves in W, less the bars of the jobs that move; a job that starts counts most. None
    if a job that ran has no place.
    """
    before = dict(packer.residents)
    plan.carry_out()
    if not plan.settle_left():
        return None
    started = [job for job in waiting if job.id in packer.residents or _seat(packer, job)]
    moved = [name for name, one in packer.residents.items() if name in before and one != before[name]]
    saved_w = plan.situation.draw_w - _draw_w(packer, plan.situation.nodes) - sum(bars.get(name, 0.0) for name in moved)
    return UNPLACED_W * len(started) + saved_w


def _single(job: Job) -> bool:
    return len(groups := demands_of(job.shapes)) == 1 and next(iter(groups))[0] == 1


def _seat(packer: Packer, job: Job) -> bool:
    """Starts a job, if need be by moving others of one node away."""
    return packer.start(job) is not None or Mover(packer).make_room(job, MOST_MOVES) is not None


def _elsewhere(before: Resident, node: int, taken: Sequence[int]) -> bool:
    return (before.node, sorted(before.taken)) != (node, sorted(taken))


def _restore(packer: Packer, before: Mapping[str, Resident]) -> None:
    moved = [one for name, one in packer.residents.items() if name not in before or one != before[name]]
    for one in moved:
        packer.stop(one.job, packer.placement_of(one))
    for name, one in before.items():
        if name not in packer.residents:
            packer.put_back(one)


def _draw_w(packer: Packer, nodes: Iterable[int]) -> float:
    """What nodes that hold residents only draw above idle."""
    there: dict[int, list[Resident]] = defaultdict(list)
    for one in packer.residents.values():
        there[one.node].append(one)
    demands = sorted({one.demand for one in packer.residents.values()})
    numbers = {demand: number for number, demand in enumerate(demands)}
    return sum(_pattern(packer, node, there[node], demands, numbers).watts for node in nodes)


def _pattern(
    packer: Packer, node: int, there: Sequence[Resident], demands: Sequence[Demand], numbers: Mapping[Demand, int]
) -> Pattern:
    """What is on a node, as a pattern."""
    members: Counter[int] = Counter()
    shared: dict[int, list[int]] = defaultdict(list)
    for one in there:
        if one.demand.shared:
            shared[one.taken[0]].append(numbers[one.demand])
        else:
            members[numbers[one.demand]] += 1
    kind = packer.fleet.node_class[node]
    return pattern_of(kind, packer.fleet.classes[kind], demands, members, list(shared.values()))


@dataclass(frozen=True, slots=True)
class _Piece:
    """A job to be put somewhere, and where it is now if it runs."""

    job: Job
    demand: Demand
    now: Resident | None


class _Situation:
    """The nodes that can be planned, what is on them as patterns, and who waits."""

    def __init__(self, packer: Packer, waiting: Sequence[Job]) -> None:
        self.packer = packer
        there: dict[int, list[Resident]] = defaultdict(list)
        for one in sorted(packer.residents.values(), key=lambda one: (one.job.order, one.job.id)):
            there[one.node].append(one)
        self.nodes = [node for node in range(len(packer.fleet.names)) if _holds_only(packer, node, there[node])]
        self.there = {node: there[node] for node in self.nodes}
        self.waiting = [_Piece(job, next(iter(demands_of(job.shapes)))[1], None) for job in waiting]
        self.demands = sorted(
            {one.demand for node in self.nodes for one in there[node]} | {piece.demand for piece in self.waiting}
        )
        self.numbers = {demand: number for number, demand in enumerate(self.demands)}
        self.now = {node: _pattern(packer, node, there[node], self.demands, self.numbers) for node in self.nodes}
        self.draw_w = sum(pattern.watts for pattern in self.now.values())

    def choices(self, moves: int) -> Iterator[tuple[list[int], list[Pattern]]]:
        """Nodes to plan anew, more and more of them, with patterns worth knowing."""
        if moves >= sum(map(len, self.there.values())):
            yield self.nodes, sorted(set(self.now.values()))
            return
        held = Counter(self.now.values())
        wanted = self.wanted(self.nodes)
        master = Master(self.packer.fleet.classes, self.demands, sorted(held))
        tried = 0
        for price in MOVE_PRICES:
            kept = master.keep(held, self.counts(self.nodes), wanted, price * self.packer.unit_w)
            nodes: list[int] = []
            for node in self.nodes:
                pattern = self.now[node]
                if kept[pattern]:
                    kept[pattern] -= 1
                else:
                    nodes.append(node)
            if len(nodes) > tried:
                tried = len(nodes)
                yield nodes, master.patterns

    def counts(self, nodes: Sequence[int]) -> list[int]:
        """How many of these nodes are of each class."""
        counts = Counter(self.packer.fleet.node_class[node] for node in nodes)
        return [counts[kind] for kind in range(len(self.packer.fleet.classes))]

    def wanted(self, nodes: Sequence[int]) -> list[int]:
        """How many of each demand are on these nodes or wait."""
        wanted = Counter(self.numbers[one.demand] for node in nodes for one in self.there[node])
        wanted.update(self.numbers[piece.demand] for piece in self.waiting)
        return [wanted[t] for t in range(len(self.demands))]


class _Plan:
    """Some nodes planned anew, their patterns, and the jobs on them."""

    def __init__(self, situation: _Situation, nodes: Sequence[int], known: Sequence[Pattern]) -> None:
        self.situation, self.packer, self.nodes = situation, situation.packer, nodes
        self.there, self.demands, self.numbers = situation.there, situation.demands, situation.numbers
        self.pieces = [_Piece(one.job, one.demand, one) for node in nodes for one in self.there[node]]
        self.pieces += situation.waiting
        whole = plan_whole_nodes(
            self.packer.fleet.classes, situation.counts(nodes), self.demands, situation.wanted(nodes), known
        )
        self.patterns = self._assigned(whole.nodes)
        self.left: list[_Piece] = []

    def carry_out(self) -> None:
        """Moves everything to where the plan has it. What has no place in it is stopped and in `left`."""
        stays: dict[int, list[Resident]] = {}
        missing: list[tuple[int, Counter[int]]] = []
        moving: dict[int, list[_Piece]] = defaultdict(list)
        for node in self.nodes:
            lacks = self.patterns[node].counts if node in self.patterns else Counter[int]()
            stays[node] = []
            for one in self.there[node]:
                t = self.numbers[one.demand]
                if lacks[t]:
                    lacks[t] -= 1
                    stays[node].append(one)
                else:
                    moving[t].append(_Piece(one.job, one.demand, one))
            missing.append((node, lacks))
        for piece in self.pieces:
            if piece.now is None:
                moving[self.numbers[piece.demand]].append(piece)
        for node in self.nodes:
            for one in self.there[node]:
                self.packer.stop(one.job, self.packer.placement_of(one))
        for node, lacks in missing:
            come = [moving[t].pop(0) for t, count in sorted(lacks.items()) for _ in range(count)]
            if node in self.patterns:
                self._fill(node, self.patterns[node], stays[node], come)
        self.left = [piece for pieces in moving.values() for piece in pieces]

    def settle_left(self) -> bool:
        """Places the jobs that run and were left over, largest first; whether all found a place."""
        left = sorted(
            (piece for piece in self.left if piece.now is not None),
            key=lambda piece: (-piece.demand.size, -piece.demand.millicores, piece.job.order, piece.job.id),
        )
        return all(_seat(self.packer, piece.job) for piece in left)

    def _assigned(self, patterns: Mapping[Pattern, int]) -> dict[int, Pattern]:
        """A node for each pattern, so that most jobs stay where they are."""
        found: dict[int, Pattern] = {}
        for kind in range(len(self.packer.fleet.classes)):
            nodes = [node for node in self.nodes if self.packer.fleet.node_class[node] == kind]
            chosen = [one for one in sorted(patterns) if one.node == kind for _ in range(patterns[one])]
            if not chosen:
                continue
            have = np.zeros((len(nodes), len(self.demands)), dtype=np.int32)
            want = np.zeros((len(chosen), len(self.demands)), dtype=np.int32)
            for row, node in enumerate(nodes):
                for one in self.there[node]:
                    have[row, self.numbers[one.demand]] += 1
            for row, pattern in enumerate(chosen):
                for t, count in pattern.counts.items():
                    want[row, t] = count
            stay = np.zeros((len(nodes), len(chosen)), dtype=np.int32)
            for t in np.flatnonzero(have.any(axis=0) & want.any(axis=0)):
                stay += np.minimum(have[:, t][:, None], want[:, t][None, :])
            rows, columns = linear_sum_assignment(-stay)
            found |= {nodes[row]: chosen[column] for row, column in zip(rows.tolist(), columns.tolist(), strict=True)}
        return found

    def _fill(self, node: int, pattern: Pattern, stays: Sequence[Resident], come: Sequence[_Piece]) -> None:
        """Puts jobs on a node: those that stay on their devices, if the others then find room; else by the pattern."""
        devices = len(self.packer.fleet.free[node])
        pieces = [_Piece(one.job, one.demand, one) for one in stays] + list(come)
        places = _beside(devices, stays, come) or self._by_pattern(devices, pattern, stays, come)
        kind = self.packer.fleet.classes[self.packer.fleet.node_class[node]].kind
        for piece in pieces:
            if piece.now is not None and not _elsewhere(piece.now, node, places[piece.job.id]):
                self.packer.put_back(piece.now)
                continue
            shape = demands_of(piece.job.shapes)[1, piece.demand][kind if piece.demand.devices else ""]
            taken = places[piece.job.id]
            self.packer.put_back(Resident(job=piece.job, shape=shape, demand=piece.demand, node=node, taken=taken))

    def _by_pattern(
        self, devices: int, pattern: Pattern, stays: Sequence[Resident], come: Sequence[_Piece]
    ) -> dict[str, tuple[int, ...]]:
        """Whole devices that stay keep theirs; shares are put together as the pattern has them."""
        places: dict[str, tuple[int, ...]] = {}
        open_devices = list(range(devices))
        for one in stays:
            if not one.demand.shared:
                places[one.job.id] = one.taken
                open_devices = [device for device in open_devices if device not in one.taken]
        sharing: dict[int, list[str]] = defaultdict(list)
        for one in stays:
            if one.demand.shared:
                sharing[self.numbers[one.demand]].append(one.job.id)
        for piece in come:
            if piece.demand.shared:
                sharing[self.numbers[piece.demand]].append(piece.job.id)
            else:
                places[piece.job.id] = tuple(open_devices[: piece.demand.devices])
                open_devices = open_devices[piece.demand.devices :]
        for device, members in zip(open_devices, pattern.shared, strict=False):
            places |= {sharing[t].pop(0): (device,) for t in members}
        return places


def _holds_only(packer: Packer, node: int, there: Sequence[Resident]) -> bool:
    """Whether the node would be empty without these."""
    fleet = packer.fleet
    kind = fleet.classes[fleet.node_class[node]]
    millicores, memory_bytes = fleet.free_host(node)
    free = sum(fleet.free[node]) + sum(len(one.taken) * one.demand.share for one in there)
    return (
        millicores + sum(one.demand.millicores for one in there) == kind.millicores
        and memory_bytes + sum(one.demand.memory_bytes for one in there) == kind.memory_bytes
        and free == WHOLE_DEVICE * kind.devices
    )


def _beside(devices: int, stays: Sequence[Resident], come: Sequence[_Piece]) -> dict[str, tuple[int, ...]] | None:
    """Devices for those that come, beside those that stay: the largest first, each where it fits tightest."""
    free = [WHOLE_DEVICE] * devices
    places: dict[str, tuple[int, ...]] = {}
    for one in stays:
        places[one.job.id] = one.taken
        for device in one.taken:
            free[device] -= one.demand.share
    for piece in sorted(come, key=lambda piece: -piece.demand.share):
        able = [device for device in range(devices) if free[device] >= max(1, piece.demand.share)]
        able.sort(key=lambda device: free[device])
        taken = tuple(sorted(able[: piece.demand.devices]))
        if len(taken) < piece.demand.devices:
            return None
        for device in taken:
            free[device] -= piece.demand.share
        places[piece.job.id] = taken
    return places

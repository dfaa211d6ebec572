"""The nodes of a problem, counted by state, while jobs come and go: what would a job cost where.

A *state* is a class of nodes and what is free on one of them: cores, memory, and how much of each device, the devices
in order of that. Alike nodes in one state are interchangeable, so each is judged once for each demand, however many
nodes there are; a job that starts moves one node to another state and leaves all other judgements as they are.

What is free is judged by a mix of demands (`scheduler.mix`), in whole numbers.
"""

from bisect import insort
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from scheduler.classes import class_of
from scheduler.demand import WHOLE_DEVICE, Demand
from scheduler.mix import Mix
from scheduler.problem import Node

Ints = NDArray[np.int64]
Vector = NDArray[np.float64]
Flags = NDArray[np.bool_]

Counts = NDArray[np.int16]
"""Wide enough for `mix.MOST_ROOM`, and no wider: there is one for every demand, state and demand of the mix."""

NO_DEVICE = -1


class Verdicts:
    """What one demand would do to each state: `fits`, and the change of sockets' draw in W.

    Two ways to take its devices, judged apart: `awake`, a share of a device in use, which draws nothing more; `bare`,
    devices that wake up for it. Each has the fragments (in `mix.PARTS` of thousandths) it adds, the room for each
    demand of the mix that it takes, and the slot of a share. A demand without devices counts as awake.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.version: Ints = np.zeros(rows, dtype=np.int64)
        self.socket_w: Vector = np.zeros(rows)
        self.device_w: Vector = np.zeros(rows)
        self.awake_fits: Flags = np.zeros(rows, dtype=np.bool_)
        self.bare_fits: Flags = np.zeros(rows, dtype=np.bool_)
        self.awake_adds: Ints = np.zeros(rows, dtype=np.int64)
        self.bare_adds: Ints = np.zeros(rows, dtype=np.int64)
        self.awake_takes: Counts = np.zeros((rows, columns), dtype=np.int16)
        self.bare_takes: Counts = np.zeros((rows, columns), dtype=np.int16)
        self.awake_slot: Ints = np.full(rows, NO_DEVICE, dtype=np.int64)
        self.bare_slot: Ints = np.full(rows, NO_DEVICE, dtype=np.int64)

    def grow(self, rows: int) -> None:
        """Room for more states."""
        for name, value in vars(self).items():
            more = np.zeros((rows - len(value), *value.shape[1:]), dtype=value.dtype)
            setattr(self, name, np.concatenate([value, more]))


class Fleet:
    """Nodes by state. Rows of the arrays are states; a row with `counts` 0 is free for the next one.

    `names` are the nodes in order; a node is its index there. Nodes that take no work are not part of it.
    """

    def __init__(self, nodes: Sequence[Node], mix: Mapping[Demand, float]) -> None:
        ordered = sorted(nodes, key=lambda node: node.id)
        self.names = [node.id for node in ordered]
        self.devices = [[device.id for device in node.devices] for node in ordered]
        self.free = [[device.free for device in node.devices] for node in ordered]
        kinds = [class_of(node) for node in ordered]
        self.classes = sorted(set(kinds))
        numbers = {node: number for number, node in enumerate(self.classes)}
        self.node_class = [numbers[node] for node in kinds]
        self.capacity = sum(node.devices for node in kinds) * WHOLE_DEVICE
        self.used = self.capacity - sum(map(sum, self.free))
        self.mix = Mix.of(mix, self.classes)
        self._verdicts: dict[Demand, Verdicts] = {}

        rows = 64
        self.row_class: Ints = np.zeros(rows, dtype=np.int64)
        self.cores: Ints = np.zeros(rows, dtype=np.int64)
        self.memory: Ints = np.zeros(rows, dtype=np.int64)
        self.slots: Ints = np.zeros((rows, self.mix.width), dtype=np.int64)
        self.fragments: Ints = np.zeros(rows, dtype=np.int64)
        self.room: Ints = np.zeros((rows, len(self.mix.members)), dtype=np.int64)
        self.room_left: Ints = np.zeros(len(self.mix.members), dtype=np.int64)
        self.counts: Ints = np.zeros(rows, dtype=np.int64)
        self.version: Ints = np.zeros(rows, dtype=np.int64)
        self.members: list[list[int]] = [[] for _ in range(rows)]
        self._rows: dict[tuple[int, ...], int] = {}
        self._keys: dict[int, tuple[int, ...]] = {}
        self._vacant = list(range(rows))[::-1]
        self._clock = 0
        self.row_of: Ints = np.zeros(len(ordered), dtype=np.int64)
        self._cores = [node.free_millicores for node in ordered]
        self._memory = [node.free_memory_bytes for node in ordered]
        for index in range(len(ordered)):
            self._enter(index)

    def load(self) -> float:
        """Share of all devices in use."""
        return self.used / self.capacity if self.capacity else 0.0

    def judge(self, demand: Demand) -> Verdicts:
        """What the demand would do to each state; only states it has not seen are worked out."""
        verdicts = self._verdicts.get(demand)
        if verdicts is None:
            verdicts = self._verdicts[demand] = Verdicts(len(self.counts), len(self.mix.members))
        elif len(verdicts.version) < len(self.counts):
            verdicts.grow(len(self.counts))
        stale = np.flatnonzero(verdicts.version != self.version)
        if len(stale):
            self._judge(demand, verdicts, stale)
            verdicts.version[stale] = self.version[stale]
        return verdicts

    def take(self, node: int, demand: Demand, slot: int) -> tuple[int, ...]:
        """Puts a member on a node and answers which of its devices it got, as indices.

        `slot` is the place of a share's device in the state's order; whole devices are the node's first free ones.
        """
        free = self.free[node]
        if demand.shared:
            wanted = int(self.slots[self.row_of[node], slot])
            taken = (free.index(wanted),)
        else:
            taken = tuple(index for index, left in enumerate(free) if left == WHOLE_DEVICE)[: demand.devices]
        self._change(node, demand, taken, 1)
        return taken

    def take_exactly(self, node: int, demand: Demand, taken: Sequence[int]) -> None:
        """Puts a member on just these devices of a node."""
        self._change(node, demand, taken, 1)

    def give_back(self, node: int, demand: Demand, taken: Sequence[int]) -> None:
        """Takes a member off a node again."""
        self._change(node, demand, taken, -1)

    def saved(self, residents: Sequence[tuple[int, Demand, Sequence[int]]]) -> tuple[Vector, Ints, Ints]:
        """What taking each of these members (node, demand, indices of its devices) off its node would save, one at a
        time: W, fragments in `mix.PARTS` of thousandths, and room for each demand of the mix.
        """
        nodes = np.array([node for node, _, _ in residents], dtype=np.int64)
        rows = self.row_of[nodes]
        watts = np.zeros(len(residents))
        slots = self.slots[rows]
        for number, (node, demand, taken) in enumerate(residents):
            model = self.classes[self.node_class[node]]
            free = self._cores[node]
            watts[number] = model.socket_w * (model.awake(free) - model.awake(free + demand.millicores))
            if demand.shared:
                left = self.free[node][taken[0]]
                slots[number, list(slots[number]).index(left)] = left + demand.share
                watts[number] += demand.watts(model.kind) if left + demand.share == WHOLE_DEVICE else 0.0
            elif demand.devices:
                # The devices it holds have nothing left: they are among the last of the state's.
                slots[number, model.devices - demand.devices : model.devices] = WHOLE_DEVICE
                watts[number] += demand.devices * demand.watts(model.kind)
        cores = self.cores[rows] + np.array([demand.millicores for _, demand, _ in residents])
        adds, takes = self._leaves(rows, cores, slots)
        return watts, -adds, -takes

    def free_host(self, node: int) -> tuple[int, int]:
        """Thousandths of a core and bytes that are free on a node."""
        return self._cores[node], self._memory[node]

    def _change(self, node: int, demand: Demand, taken: Sequence[int], sign: int) -> None:
        self._leave(node)
        self._cores[node] -= sign * demand.millicores
        self._memory[node] -= sign * demand.memory_bytes
        for index in taken:
            self.free[node][index] -= sign * demand.share
        self.used += sign * len(taken) * demand.share
        self._enter(node)

    def _enter(self, node: int) -> None:
        slots = sorted(self.free[node], reverse=True)
        key = (self.node_class[node], self._cores[node], self._memory[node], *slots)
        row = self._rows.get(key)
        if row is None:
            if not self._vacant:
                self._grow()
            row = self._rows[key] = self._vacant.pop()
            self._keys[row] = key
            self._clock += 1
            self.version[row] = self._clock
            self.row_class[row], self.cores[row], self.memory[row] = key[:3]
            self.slots[row] = 0
            self.slots[row, : len(slots)] = slots
            state = (self.row_class[row : row + 1], self.cores[row : row + 1], self.slots[row : row + 1])
            self.fragments[row] = self.mix.fragments(*state)[0]
            self.room[row] = self.mix.room(*state)[0]
        insort(self.members[row], node)
        self.counts[row] += 1
        self.room_left += self.room[row]
        self.row_of[node] = row

    def _leave(self, node: int) -> None:
        row = int(self.row_of[node])
        self.members[row].remove(node)
        self.counts[row] -= 1
        self.room_left -= self.room[row]
        if not self.counts[row]:
            del self._rows[self._keys.pop(row)]
            self.version[row] = 0
            self._vacant.append(row)

    def _grow(self) -> None:
        rows = len(self.counts)
        self._vacant = list(range(rows, 2 * rows))[::-1]
        for name in ("row_class", "cores", "memory", "slots", "fragments", "room", "counts", "version"):
            value: Ints = getattr(self, name)
            setattr(self, name, np.concatenate([value, np.zeros_like(value)]))
        self.members += [[] for _ in range(rows)]

    def _judge(self, demand: Demand, verdicts: Verdicts, rows: Ints) -> None:
        classes = self.row_class[rows]
        cores = self.cores[rows] - demand.millicores
        able = self._suits(demand)[classes] & (cores >= 0) & (self.memory[rows] >= demand.memory_bytes)
        able &= self.counts[rows] > 0
        verdicts.awake_fits[rows] = verdicts.bare_fits[rows] = False
        rows, classes, cores = rows[able], classes[able], cores[able]
        if not len(rows):
            return
        verdicts.socket_w[rows] = self._socket_w(classes, self.cores[rows], cores)
        if not demand.devices:
            verdicts.awake_fits[rows] = True
            verdicts.device_w[rows] = 0.0
            verdicts.awake_adds[rows], verdicts.awake_takes[rows] = self._leaves(rows, cores, self.slots[rows])
            return
        verdicts.device_w[rows] = demand.devices * self._active_w(demand)[classes]
        slots = self.slots[rows]
        if not demand.shared:
            # Slots are in descending order: the whole ones come first.
            enough = (slots == WHOLE_DEVICE).sum(axis=1) >= demand.devices
            rows, cores, slots = rows[enough], cores[enough], slots[enough]
            slots[:, : demand.devices] = 0
            verdicts.bare_fits[rows] = True
            verdicts.bare_adds[rows], verdicts.bare_takes[rows] = self._leaves(rows, cores, slots)
            return
        # One of several devices with equally much left will do: the last of them.
        differs = np.ones_like(slots, dtype=np.bool_)
        differs[:, :-1] = slots[:, :-1] != slots[:, 1:]
        which, slot = np.nonzero((slots >= demand.share) & differs)
        after = slots[which]
        after[np.arange(len(which)), slot] -= demand.share
        adds, takes = self._leaves(rows[which], cores[which], after)
        bare = slots[which, slot] == WHOLE_DEVICE
        verdicts.bare_fits[rows[which[bare]]] = True
        verdicts.bare_adds[rows[which[bare]]] = adds[bare]
        verdicts.bare_takes[rows[which[bare]]] = takes[bare]
        verdicts.bare_slot[rows[which[bare]]] = slot[bare]
        used = ~bare
        # Least fragments first, then the tightest fit; the first of each state wins.
        order = np.lexsort((-slot[used], adds[used], which[used]))
        which, slot, adds, takes = which[used][order], slot[used][order], adds[used][order], takes[used][order]
        first = np.ones(len(which), dtype=np.bool_)
        first[1:] = which[1:] != which[:-1]
        verdicts.awake_fits[rows[which[first]]] = True
        verdicts.awake_adds[rows[which[first]]] = adds[first]
        verdicts.awake_takes[rows[which[first]]] = takes[first]
        verdicts.awake_slot[rows[which[first]]] = slot[first]

    def _leaves(self, rows: Ints, cores: Ints, slots: Ints) -> tuple[Ints, Ints]:
        """The fragments that are added and the room that is taken when only these cores and slots stay of states."""
        classes = self.row_class[rows]
        adds = self.mix.fragments(classes, cores, slots) - self.fragments[rows]
        return adds, self.room[rows] - self.mix.room(classes, cores, slots)

    def _suits(self, demand: Demand) -> Flags:
        return np.array([demand.fits_empty(node) for node in self.classes], dtype=np.bool_)

    def _active_w(self, demand: Demand) -> Vector:
        return np.array([demand.watts(node.kind) if node.kind in demand.kinds else 0.0 for node in self.classes])

    def _socket_w(self, classes: Ints, before: Ints, after: Ints) -> Vector:
        total = np.array([node.millicores for node in self.classes])[classes]
        width = np.array([max(1, node.socket_millicores) for node in self.classes])[classes]
        watts = np.array([node.socket_w if node.socket_millicores else 0.0 for node in self.classes])[classes]
        woken: Ints = (before - total) // width - (after - total) // width
        return watts * woken.astype(np.float64)

"""A mix of demands, and what is free on nodes judged by it: what is lost for the mix, and how much of each would fit.

*Fragments* of a node are the thousandths of devices on it that the next job could not use, in the mean over the mix:
all that is free for a demand that does not fit, devices too full for one that does (FGD, ATC 2023).

*Room* is how many members of each demand a node could still hold, were there nothing else to come.

Both are whole numbers, so that it does not matter in which order they are added up. Memory plays no part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from scheduler.demand import WHOLE_DEVICE, Demand, NodeClass

Ints = NDArray[np.int64]
Vector = NDArray[np.float64]
Flags = NDArray[np.bool_]

PARTS = 1_000_000
"""Weights of a mix are whole parts of this."""

TYPICAL = 0.95
"""Share of the mix that nodes are judged by: its most frequent demands."""

MOST_ROOM = 30_000
"""Members that a node is considered to have room for, at most."""

_Key = tuple[tuple[str, ...], int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """The most frequent demands of a mix, as columns: how many members were counted, and their weights in `PARTS`."""

    members: Vector
    weights: Ints
    sizes: Vector
    devices: Ints
    millicores: Ints
    share_of: Ints
    shares: Ints
    suits: Flags
    """`suits[c, m]`: nodes of class c have the kind that demand m wants; none has it for one without devices."""
    width: int
    """Devices of the widest node, and slots of every state."""

    @classmethod
    def of(cls, counts: Mapping[Demand, float], classes: Sequence[NodeClass]) -> "Mix":
        """The columns of demands by frequency, as far as they are `TYPICAL`, for nodes of these classes."""
        merged: dict[_Key, float] = {}
        for demand, count in counts.items():
            key = (demand.kinds, demand.devices, demand.share, demand.millicores)
            merged[key] = merged.get(key, 0.0) + count
        ranked = sorted(merged.items(), key=lambda entry: (-entry[1], entry[0]))
        total = sum(merged.values())
        kept: list[tuple[_Key, float]] = []
        for entry in ranked:
            if sum(count for _, count in kept) >= TYPICAL * total:
                break
            kept.append(entry)
        share = sum(count for _, count in kept) or 1.0
        shares = sorted({key[2] for key, _ in kept})
        width = max((node.devices for node in classes), default=0)
        return cls(
            members=np.array([count for _, count in kept], dtype=np.float64),
            weights=np.array([round(PARTS * count / share) for _, count in kept], dtype=np.int64),
            sizes=np.array([key[1] * key[2] / WHOLE_DEVICE for key, _ in kept], dtype=np.float64),
            devices=np.array([key[1] or width + 1 for key, _ in kept], dtype=np.int64),
            millicores=np.array([key[3] for key, _ in kept], dtype=np.int64),
            share_of=np.array([shares.index(key[2]) for key, _ in kept], dtype=np.int64),
            shares=np.array(shares, dtype=np.int64),
            suits=np.array([[node.kind in key[0] for key, _ in kept] for node in classes], dtype=np.bool_).reshape(
                len(classes), len(kept)
            ),
            width=width,
        )

    def fragments(self, classes: Ints, cores: Ints, slots: Ints) -> Ints:
        """Fragments of states, in `PARTS` of thousandths of a device."""
        small = slots[:, None, :] < self.shares[None, :, None]
        idle = slots.sum(axis=1)
        unusable = np.where(small, slots[:, None, :], 0).sum(axis=2)[:, self.share_of]
        enough = (self.width - small.sum(axis=2))[:, self.share_of] >= self.devices
        fits = enough & (cores[:, None] >= self.millicores) & self.suits[classes]
        lost = cast(Ints, np.where(fits, unusable, idle[:, None]))
        return cast(Ints, lost @ self.weights)

    def room(self, classes: Ints, cores: Ints, slots: Ints) -> Ints:
        """`room[s, m]`: members of demand m that a node in state s has devices and cores for; 0 without devices."""
        pieces = slots[:, None, :] // np.maximum(self.shares, 1)[None, :, None]
        by_devices = pieces.sum(axis=2)[:, self.share_of] // self.devices
        by_cores = np.where(self.millicores > 0, cores[:, None] // np.maximum(self.millicores, 1), MOST_ROOM)
        found = np.minimum(np.minimum(by_devices, by_cores), MOST_ROOM)
        return cast(Ints, np.where(self.suits[classes], found, 0))

"""Which nodes have gone silent, judged by this process's own clock.

A lease is not a point in time that two machines would have to agree on: it is the time since *we* last saw the node's
counter of contacts move. After a start of this process, or a stall of it, every node gets a full lease afresh.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

MARGIN_S = 5.0
"""Waited beyond the lease, so that an agent on a slightly slower clock has surely stopped its ranks."""

STALL_S = 5.0
"""A longer pause between two looks means that we were not able to hear anybody."""

QUIET_S = 30.0
"""A node that was not heard for so long gets nothing new, although what it has may go on: two calls of its agent were
missed. Half a lease where that is shorter."""

FEW = 2
"""So many nodes may be lost together without a doubt: in a small cluster that is quickly most of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Nodes that are not heard of.

    `lost`: their lease is over. `doubted`: so is theirs, but most nodes fell silent together, and then it is rather
    that we cannot hear; nobody's lease ends while that lasts. `quiet`: all that get nothing new.
    """

    lost: tuple[str, ...]
    doubted: tuple[str, ...]
    quiet: frozenset[str]


class Leases:
    """What this process has seen of each node's last contact."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._seen: dict[str, tuple[datetime, float]] = {}
        self._looked_at: float | None = None

    def look(self, contacts: Mapping[str, datetime], clock_s: float) -> Silence:
        """Note the last contact of every node that is ready, and say which of them are silent.

        Args:
            contacts: node -> when it was last heard, a value that only needs to change with each contact.
            clock_s: a clock of this process that never goes back, in s.
        """
        if self._looked_at is None or clock_s - self._looked_at > STALL_S:
            self._seen = {}
        self._looked_at = clock_s
        seen: dict[str, tuple[datetime, float]] = {}
        for node, contact in contacts.items():
            known = self._seen.get(node)
            seen[node] = known if known and known[0] == contact else (contact, clock_s)
        self._seen = seen
        silent_s = {node: clock_s - since for node, (_, since) in seen.items()}
        over = tuple(node for node, seconds in silent_s.items() if seconds > self._lease_s + MARGIN_S)
        quiet = frozenset(node for node, seconds in silent_s.items() if seconds > min(QUIET_S, self._lease_s / 2))
        if len(over) > max(FEW, len(contacts) / 2):
            return Silence(lost=(), doubted=over, quiet=quiet)
        return Silence(lost=over, doubted=(), quiet=quiet)

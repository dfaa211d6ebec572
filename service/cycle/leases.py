"""Which nodes have gone silent, judged by this process's own clock.

A lease is not a point in time that two machines would have to agree on: it is the time since *we* last saw the node's
counter of contacts move. After a start of this process, or a stall of it, every node gets a full lease afresh.
"""

from collections.abc import Mapping
from datetime import datetime

MARGIN_S = 5.0
"""Waited beyond the lease, so that an agent on a slightly slower clock has surely stopped its ranks."""

STALL_S = 5.0
"""A longer pause between two looks means that we were not able to hear anybody."""


class Leases:
    """What this process has seen of each node's last contact."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._seen: dict[str, tuple[datetime, float]] = {}
        self._looked_at: float | None = None

    def look(self, contacts: Mapping[str, datetime], clock_s: float) -> list[str]:
        """Note the last contact of every node that is ready; the nodes whose lease is over.

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
        limit = self._lease_s + MARGIN_S
        return [node for node, (_, since) in seen.items() if clock_s - since > limit]

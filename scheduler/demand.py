"""Nodes and jobs by what they have and ask for: classes of alike nodes, and demands of alike members.

Whatever plans for many nodes at once speaks of these, so that its size does not grow with the cluster.
"""

from dataclasses import dataclass

WHOLE_DEVICE = 1000
"""Thousandths of a device that make the whole one."""

PERIOD = 500
"""Jobs of a period of the past: fewer would tell little, and a change is seen after one."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class NodeClass:
    """What alike nodes have, were they empty: devices of one kind, thousandths of a core, bytes.

    A CPU socket that is awake draws `socket_w` above its idle; it is `socket_millicores` wide, and 0 means that the
    CPUs draw the same whatever they do. `isolation` is the level that all its devices give (`problem.Isolation`).
    """

    kind: str
    devices: int
    millicores: int
    memory_bytes: int
    socket_w: float = 0.0
    socket_millicores: int = 0
    isolation: int = 0
    containers: bool = True

    def awake(self, free_millicores: int) -> int:
        """Sockets that are awake on a node of the class with this many thousandths of a core free."""
        if not self.socket_millicores:
            return 0
        return -(-(self.millicores - free_millicores) // self.socket_millicores)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Demand:
    """What one member asks of its node: `devices` devices of one of `kinds`, `share` thousandths of each, thousandths
    of a core, bytes. Without devices it asks for cores and memory only.

    `active_w[i]` is what a device of `kinds[i]` draws above its bare idle with the job on it, in W.
    """

    kinds: tuple[str, ...]
    active_w: tuple[float, ...]
    devices: int
    share: int
    millicores: int
    memory_bytes: int
    isolation: int = 0
    in_container: bool = False

    @property
    def size(self) -> float:
        """Devices it takes, fractions included."""
        return self.devices * self.share / WHOLE_DEVICE

    @property
    def shared(self) -> bool:
        """Whether it asks for a part of a device."""
        return self.devices > 0 and self.share < WHOLE_DEVICE

    def watts(self, kind: str) -> float:
        """What one device of the kind adds when it wakes up for it."""
        return self.active_w[self.kinds.index(kind)]

    def fits_empty(self, node: NodeClass) -> bool:
        """Whether an empty node of the class holds it."""
        return (
            self.millicores <= node.millicores
            and self.memory_bytes <= node.memory_bytes
            and self.devices <= node.devices
            and (not self.devices or node.kind in self.kinds)
            and (not self.shared or self.isolation <= node.isolation)
            and (not self.in_container or node.containers)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is expected to arrive, and where a plan for all of it puts how much (`scheduler.booking`).

    `members[l][t][c]`: how many members of demand t are on nodes of class c when `loads[l]` of all devices are in use.
    """

    classes: tuple[NodeClass, ...]
    demands: tuple[Demand, ...]
    loads: tuple[float, ...]
    members: tuple[tuple[tuple[float, ...], ...], ...]

    def mix(self) -> dict[Demand, float]:
        """What comes between the lowest and the highest load: members by demand."""
        came = [sum(row) for row in self.members[-1]]
        if len(self.members) > 1:
            came = [after - sum(before) for after, before in zip(came, self.members[0], strict=True)]
        return dict(zip(self.demands, came, strict=True))

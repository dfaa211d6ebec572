"""The benchmark's own books: what is on which node, what it draws, and that no placement breaks a rule."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.packing.energy import gpu_watts
from scheduler.demand import WHOLE_DEVICE
from scheduler.plan import Placement
from scheduler.problem import Hold, Job, Node, Running


class BrokenRule(Exception):
    """A placement that cannot be: the benchmark ends here."""


class Ledger:
    """Nodes with the jobs on them. Shares no code with the planner."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes: Mapping[str, Node] = {node.id: node for node in nodes}
        self.cores = {node.id: node.free_millicores for node in nodes}
        self.memory = {node.id: node.free_memory_bytes for node in nodes}
        self.free = {device.id: device.free for node in nodes for device in node.devices}
        self.running: dict[str, tuple[Job, Placement]] = {}
        self._kind = {device.id: device.kind for node in nodes for device in node.devices}
        self._home = {device.id: node.id for node in nodes for device in node.devices}
        self._draw = {name: self._node_w(name) for name in self.nodes}
        self.watts = sum(self._draw.values())

    def start(self, job: Job, placement: Placement) -> None:
        """Books a placement. Raises BrokenRule."""
        shape = job.shapes[placement.shape]
        if job.id in self.running or len(placement.members) != shape.members:
            raise BrokenRule(f"{job.id} runs already or is not placed whole")
        for member in placement.members:
            for device in member.devices:
                if self._home[device] != member.node or self._kind[device] != shape.kind:
                    raise BrokenRule(f"{job.id}: {device} is not a {shape.kind} of {member.node}")
            if len(set(member.devices)) != shape.devices:
                raise BrokenRule(f"{job.id} gets {len(member.devices)} of {shape.devices} devices")
        self._book(job, placement, 1)
        self.running[job.id] = (job, placement)

    def stop(self, name: str) -> None:
        """Takes a job off the books."""
        self._book(*self.running.pop(name), -1)

    def snapshot(self) -> tuple[tuple[Node, ...], tuple[Running, ...]]:
        """Nodes and jobs as a cycle of the service would read them."""
        nodes = tuple(
            replace(
                node,
                free_millicores=self.cores[name],
                free_memory_bytes=self.memory[name],
                devices=tuple(replace(device, free=self.free[device.id]) for device in node.devices),
            )
            for name, node in self.nodes.items()
        )
        running = tuple(
            Running(
                job=job,
                shape=placement.shape,
                members=tuple(Hold(node=member.node, devices=member.devices) for member in placement.members),
            )
            for job, placement in self.running.values()
        )
        return nodes, running

    def _book(self, job: Job, placement: Placement, sign: int) -> None:
        shape = job.shapes[placement.shape]
        for member in placement.members:
            name = member.node
            self.cores[name] -= sign * shape.millicores
            self.memory[name] -= sign * shape.memory_bytes
            for device in member.devices:
                self.free[device] -= sign * shape.share
                if not 0 <= self.free[device] <= WHOLE_DEVICE:
                    raise BrokenRule(f"{job.id}: {device} has {self.free[device]} thousandths left")
            if self.cores[name] < 0 or self.memory[name] < 0:
                raise BrokenRule(f"{job.id}: {name} has no cores or memory left")
            self.watts -= self._draw[name]
            self._draw[name] = self._node_w(name)
            self.watts += self._draw[name]

    def _node_w(self, name: str) -> float:
        node = self.nodes[name]
        power = node.power
        awake = -(-(node.cpu_millicores - self.cores[name]) // power.socket_millicores)
        watts = power.base_w + awake * power.socket_w
        for device in node.devices:
            if self.free[device.id] < WHOLE_DEVICE:
                idle_w, full_w = gpu_watts(device.kind)
                watts += full_w - idle_w
        return watts

"""A node: what its agent reports, and what the service tells about it."""

from collections import Counter
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from protocol.base import Count, Index, Kind, Message, Name, Seconds, Text, View, at_most, example
from protocol.caches import LinkView
from protocol.jobs import MAX_MEMORY_BYTES
from protocol.states import DeviceCondition, NodeState, PowerState

MAX_REASON = 500
"""Characters of the reason why a device is unfit."""

DeviceId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$", max_length=128)]


Containment = Literal["cgroup-v2", "cgroup-v1", "none"]
"""How an agent keeps the processes of an attempt together, to kill them all: in a control group of the kernel's, or by
parent and environment only."""
Limit = Literal["memory", "processes"]
"""Of what the kernel gives the processes of an attempt no more than it may have."""
ContainerRuntime = Literal["podman", "apptainer", "docker"]


class DeviceReport(Message):
    """One accelerator or CPU slot. Its id is unique in the cluster, whoever offers it."""

    id: DeviceId = Field(description="The UUID of a GPU, or the machine's id and the slot's number.")
    kind: Kind
    index: Index = Field(description="Its number on the node, as the driver counts.")
    memory_bytes: Count = Field(default=0, description="Memory of the device in bytes; 0 for a CPU slot.")
    power_limit_w: float | None = Field(
        default=None, ge=0, le=1e5, description="The limit in force in W, if it can be read."
    )


class NodeReport(Message):
    """The inventory an agent registers with."""

    address: Text = Field(max_length=255, description="Where the other members of a gang reach this node.")
    boot_id: Text = Field(max_length=64, description="Changes when the machine boots: nothing of before still runs.")
    cpu_model: Text = Field(default="", max_length=255)
    cpu_cores: float = Field(gt=0, le=65_536, description="Cores this agent offers.")
    cpu_threads: int = Field(
        ge=1,
        le=65_536,
        description="Hardware threads whose power is this node's: all of the machine's, or its CPU slots where it "
        "offers nothing else, so that two agents on one machine do not bill it twice.",
    )
    memory_bytes: int = Field(gt=0, le=MAX_MEMORY_BYTES, description="Main memory this agent offers in bytes.")
    devices: list[DeviceReport] = Field(max_length=4_096)
    labels: Annotated[dict[Name, Text], at_most(100)] = Field(default={}, max_length=100)
    containment: Containment = Field(
        default="none",
        description="How the processes of an attempt are kept together, so that none is missed when it is killed; with "
        "`none` one that hides from its supervisor outlives it.",
    )
    container_runtime: ContainerRuntime | None = Field(
        default=None, description="What runs containers here, tried out; absent if nothing does."
    )
    container_fault: Text = Field(default="", max_length=1_000, description="Why nothing does.")

    @field_validator("devices")
    @classmethod
    def _each_once(cls, devices: list[DeviceReport]) -> list[DeviceReport]:
        for device, count in Counter(device.id for device in devices).items():
            if count > 1:
                raise ValueError(f"device {device} is listed twice")
        return devices


class PowerSample(Message):
    """Raw measurement of one stretch of time; the service prices it.

    `energy_j` is given where a counter exists (NVML, RAPL); otherwise the service models the energy from `busy_cores`.
    """

    seconds: Seconds = Field(description="Length of the stretch in s.")
    age_s: Seconds = Field(description="How long ago it ended when the sample was sent, in s.")
    device: DeviceId | None = Field(default=None, description="The device; absent for the rest of the node.")
    energy_j: float | None = Field(default=None, ge=0, le=1e12, description="Counted energy in J.")
    busy_cores: float | None = Field(default=None, ge=0, le=65_536, description="Mean cores busy over the stretch.")
    utilisation: float | None = Field(default=None, ge=0, le=1, description="Mean share of time the device was busy.")
    source: Literal["nvml", "rapl", "proc"] = Field(description="Where it was read.")


class DeviceHolder(View):
    """A job on a device."""

    job: str
    share: float = Field(description="How much of the device it holds; 1 is the whole.")


class DeviceView(View):
    """A device and who holds it."""

    id: str
    kind: str
    index: int
    memory_bytes: int
    least_cap_w: float | None = Field(
        default=None, description="The lowest power limit that its agent can set, in W; null if it can set none."
    )
    job: str | None = Field(default=None, description="The job that holds it, the first if several do.")
    holders: list[DeviceHolder] = Field(default=[], description="Every job that holds it or a share of it.")
    condition: DeviceCondition = Field(
        default=DeviceCondition.OK,
        description="`unfit`: a health check failed. `quarantined`: an attempt that has ended may have left a process. "
        "Neither gets new work, and both come back by themselves.",
    )
    reason: str | None = Field(default=None, description="Why it is not `ok`.")

    @property
    def sharers(self) -> list[DeviceHolder]:
        """Who holds how much of it; also where an older service names the job only."""
        return self.holders or ([DeviceHolder(job=self.job, share=1.0)] if self.job else [])


class NodeView(View):
    """A node as the API shows it."""

    name: str
    state: NodeState
    incarnation: int
    address: str
    cpu_model: str
    cpu_cores: float
    memory_bytes: int
    containment: Containment = Field(default="none", description="As its agent reported it.")
    limits: list[Limit] | None = Field(
        default=None,
        description="What the kernel limits there, tried out, of ranks outside of containers; absent if its agent does "
        "not say.",
    )
    devices: list[DeviceView]
    container_runtime: ContainerRuntime | None = Field(default=None, description="What runs containers there.")
    container_fault: str | None = Field(default=None, description="Why no container can run there.")
    base_w: float = Field(description="Power of the node in W when it is on and nothing runs.")
    cache_entries: int = Field(
        default=0,
        description="How many archives of code and datasets it keeps, of those used last, as far as its agent says so.",
    )
    cache_bytes: int = Field(default=0, description="What these take of its disk.")
    links: list[LinkView] = Field(
        default=[],
        description="How fast it fetches, by source, as the planner takes it; of those it has fetched from.",
    )
    cordoned: bool = Field(default=False, description="An administrator has closed it to new work.")
    closed_because: str | None = Field(
        default=None, description="Why the service closed it to new work by itself; `uncordon` opens it again."
    )
    drain_at: datetime | None = Field(default=None, description="When what still runs there is stopped and requeued.")
    power: PowerState = Field(default=PowerState.ON, description="As far as the service switches it.")
    power_since: datetime | None = Field(
        default=None, description="When it came into that state; absent for a node that was never switched."
    )
    power_kept: Literal["on", "off"] | None = Field(
        default=None, description="An administrator's word: no plan switches it off, or on."
    )
    power_fault: str | None = Field(
        default=None,
        description="Why switching it failed last, if it has not worked since.",
    )
    registered_at: datetime
    last_seen_at: datetime


class SwitchOnRequest(Message):
    """Switch a node on."""

    model_config = example(keep=True)

    keep: bool = Field(default=False, description="Whether it stays on whatever the plans say.")


class DrainRequest(Message):
    """Empty a node: nothing new goes there, and what runs has until the deadline."""

    model_config = example(deadline_s=600)

    deadline_s: Seconds = Field(
        default=600.0, description="How long what runs may go on, in s; then it is stopped and requeued."
    )


class PowerBudgetView(View):
    """What a group of nodes may draw, and what it does by the planner's count."""

    name: str
    limit_w: float = Field(description="What its nodes may draw together in W.")
    planned_w: float = Field(
        description="What they draw in W, as the planner counts: base draw, boots, and the jobs that hold devices."
    )
    nodes: int = Field(description="How many nodes count towards it.")


class NodePage(View):
    items: list[NodeView]
    next: str | None = None
    power_budgets: list[PowerBudgetView] = Field(default=[], description="All of the cluster, on every page.")

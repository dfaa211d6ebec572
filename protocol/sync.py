"""The agent's exchange with the service: one idempotent, level-triggered call.

The agent says everything it observes, the service answers with everything the agent should hold. Losing any one call
loses nothing. The same call renews the leases of all attempts on the node.
"""

import base64
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from protocol.base import Count, Index, Message, Name, Seconds, Text, View
from protocol.caches import MAX_ENTRIES, CacheEntry
from protocol.jobs import CheckpointMark, Recipe
from protocol.nodes import MAX_REASON, DeviceId, Limit, NodeReport, PowerSample
from protocol.states import AttemptState, Desired, EndReason

MAX_CHUNK_BYTES = 256 * 1024


def _decode(value: object) -> object:
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


Blob = Annotated[
    bytes,
    BeforeValidator(_decode),
    PlainSerializer(lambda data: base64.b64encode(data).decode("ascii"), when_used="json"),
    Field(max_length=MAX_CHUNK_BYTES),
]
"""Bytes, base64 in JSON."""


CapFloor = Annotated[float, Field(ge=0, le=1e5)]

Reason = Annotated[Text, Field(max_length=MAX_REASON)]


class RegisterRequest(Message):
    """An agent presents itself. Its node token says which node it is."""

    protocol: int
    report: NodeReport


class RegisterResponse(View):
    """The service knows the node now; every sync carries this incarnation."""

    node: str
    incarnation: int
    lease_s: Seconds
    numbered_reports: bool = Field(
        default=False, description="Whether reports may carry `seq` and `first_sample`: a first service knew neither."
    )
    checkpoints: bool = Field(
        default=False, description="Whether reports may carry `checkpoint`: a first service did not know it."
    )
    knows_out_of_memory: bool = Field(
        default=False, description="Whether a member may end as `out_of_memory`: a first service did not know it."
    )
    stores_checkpoints: bool = Field(
        default=False, description="Whether it keeps the checkpoints of nodes that share no folder."
    )
    state_folders: bool = Field(
        default=False, description="Whether reports may carry `state_folder`: a first service did not know it."
    )
    knows_limits: bool = Field(
        default=False, description="Whether reports may carry `limits`: a first service did not know it."
    )
    knows_caps: bool = Field(
        default=False, description="Whether reports may carry `caps`: a first service did not know it."
    )
    knows_caches: bool = Field(
        default=False, description="Whether reports may carry `cache`: a first service did not know it."
    )


class MemberReport(Message):
    """What the agent observes of its part of one attempt."""

    attempt: str
    epoch: int = Field(ge=1)
    state: AttemptState = Field(strict=False)
    rendezvous: Text | None = Field(
        default=None, max_length=300, description="`address:port` for the gang; chosen by the agent of member 0."
    )
    exit_code: int | None = Field(
        default=None, ge=-(2**31), lt=2**31, description="The worst exit code of its ranks; negative is a signal."
    )
    reason: EndReason | None = Field(
        default=None, strict=False, description="Why it ended; there must be one once it has."
    )
    message: Text | None = Field(default=None, max_length=2_000)
    quiet: bool = Field(
        default=False, description="None of its ranks has written anything for the job's `stall_timeout_s`."
    )
    clean: bool = Field(default=False, description="True once no process of it is left: its devices are free.")
    checkpoint: Count | None = Field(
        default=None, description="Step of the newest checkpoint of this attempt that every rank has completed."
    )

    @model_validator(mode="after")
    def _ended_for_a_reason(self) -> Self:
        if self.state == AttemptState.ENDED and self.reason is None:
            raise ValueError("a member that has ended needs a `reason`")
        return self


class StreamChunk(Message):
    """Bytes of one stream of one rank. Sent at least once, stored exactly once by (attempt, rank, stream, offset).

    `progress` carries whole JSON lines as `ergon.runtime` writes them.
    """

    attempt: str
    rank: Index
    stream: Literal["stdout", "stderr", "progress"]
    offset: Count
    data: Blob


class SyncRequest(Message):
    """Everything the agent observes."""

    protocol: int
    incarnation: Index
    wait_s: Seconds = Field(default=0, description="How long the service may hold the answer if nothing changes.")
    version: str | None = Field(default=None, description="Version of the assignments the agent already holds.")
    seq: Index | None = Field(
        default=None,
        description="Number of this report, rising with each within an incarnation; one that arrives after a later one "
        "is refused. Absent from a call that reports nothing.",
    )
    state_folder: Name | None = Field(
        default=None,
        description="Which memory the agent has: a name made up once in its state folder. One with another folder "
        "cannot know what was started here and not yet reported.",
    )
    leaving: bool = Field(default=False, description="The agent stops after this call: nothing new may go to it.")
    unfit: dict[DeviceId, Reason] | None = Field(
        default=None,
        max_length=4_096,
        description="Every device that must not get work, and why; absent where nothing has changed.",
    )
    limits: list[Limit] | None = Field(
        default=None,
        max_length=2,
        description="What the kernel limits on this node, tried out; said once for each incarnation.",
    )
    caps: dict[DeviceId, CapFloor] | None = Field(
        default=None,
        max_length=4_096,
        description="Every device whose power limit the agent can set, tried out, and the lowest limit it takes, in W; "
        "said once for each incarnation, and again when a limit could not be set.",
    )
    cache: list[CacheEntry] | None = Field(
        default=None,
        max_length=MAX_ENTRIES,
        description="All code and data that the node keeps, those used last; absent where nothing has changed.",
    )
    members: list[MemberReport] = []
    chunks: list[StreamChunk] = Field(default=[], max_length=256)
    samples: list[PowerSample] = Field(default=[], max_length=10_000)
    first_sample: Index | None = Field(
        default=None,
        description="Running number of the first sample within the incarnation: those that came before are not counted "
        "twice.",
    )


class DeviceGrant(View):
    """A device, or a share of one, that the attempt may use."""

    id: str
    kind: str
    index: int
    thousandths: int = Field(description="Share of the device; 1000 is the whole.")


class Assignment(View):
    """One node's part of an attempt. The agent makes no choices beyond this."""

    attempt: str
    job: str
    job_name: str
    user: str
    epoch: int
    desired: Desired
    observed: AttemptState = Field(description="What the service last heard of this member.")
    command: list[str] | None
    recipe: Recipe | None
    env: dict[str, str]
    image: str | None = Field(default=None, description="Container image the ranks run in; absent for none.")
    cpu_limit: float | None = Field(
        default=None, description="CPU cores that a container of the member may use; absent for no limit."
    )
    array_index: int | None = Field(default=None, description="The job's number in its array, if it is part of one.")
    code: str | None = Field(default=None, description="Archive of code to run in, by its SHA-256.")
    python: str | None = Field(
        default=None,
        description="What `python` as the first word of the command means; inside the image if there is one.",
    )
    requirements: str | None = Field(default=None, description="Requirements file inside the code.")
    datasets: dict[str, str] = Field(default={}, description="Paths on the node and URLs by name.")
    member: int = Field(description="This node's number in the gang, from 0: torchrun's GROUP_RANK.")
    members: int
    ranks: int = Field(description="Ranks of every member: torchrun's LOCAL_WORLD_SIZE.")
    devices: list[DeviceGrant]
    cpu_cores: float
    memory_bytes: int
    rendezvous: str | None = Field(description="`address:port`; absent until member 0 has chosen one.")
    time_limit_s: float | None
    disk_bytes: int | None = Field(
        default=None,
        description="What the member may have on the node's disk in bytes; the node's own limit if absent.",
    )
    stall_timeout_s: float | None = Field(
        default=None, description="How long its ranks may write neither output nor progress, in s, before it is quiet."
    )
    on_disconnect: Literal["fence", "wait"] = "fence"
    checkpoint: CheckpointMark | None = Field(
        default=None, description="The job's latest checkpoint that the service knows of: ranks go on from there."
    )
    cap_w: float | None = Field(
        default=None,
        description="Power limit that each of its devices gets while its ranks run, in W; absent to leave it. Only for "
        "agents that said that they can set it.",
    )
    stop_grace_s: float = Field(description="From the polite signal to the one that cannot be refused, in s.")
    offsets: dict[str, int] = Field(
        default={}, description="Bytes already stored, by `rank/stream`; shipping resumes there."
    )


class SyncResponse(View):
    """Everything the agent should hold. An attempt that is not listed is over: nothing of it may be left."""

    assignments: list[Assignment]
    version: str = Field(description="Changes when the assignments do (offsets aside).")
    lease_s: Seconds

"""A job: what a user asks for, and what the service tells about it."""

import re
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, PlainValidator, StringConstraints, WithJsonSchema, field_validator, model_validator

from protocol.base import Kind, Message, Name, View, at_most, example
from protocol.states import AttemptState, EndReason, JobState

MAX_NODES = 100_000
MAX_DEVICES_PER_NODE = 1_024
MAX_MEMORY_BYTES = 1 << 50
MAX_DISK_BYTES = 1 << 60
DATASET_URL = re.compile(r"[a-z][a-z0-9+.-]*://.")
MAX_BATCH = 10_000
"""Jobs in one request, the jobs of its arrays counted one by one."""

Argument = Annotated[str, StringConstraints(max_length=131_072, pattern=r"^[^\x00]*$")]
JobIdText = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+$", min_length=1, max_length=64)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in hexadecimal."""

ImageReference = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*([/:@+][A-Za-z0-9._-]+)*$", max_length=512)
]
"""Registry, path, tag and digest of a container image. Never an option of a program, never two words."""

DatasetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=63)]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=256)]


_RANGE = re.compile(r"([1-9][0-9]{0,5})-([1-9][0-9]{0,5})")


def _nodes(value: object) -> int | str:
    """A number of nodes as it is, a range of them as text; a range of one number is that number."""
    if isinstance(value, int) and not isinstance(value, bool):
        least = most = value
    elif isinstance(value, str) and (ends := _RANGE.fullmatch(value)):
        least, most = int(ends[1]), int(ends[2])
    else:
        raise ValueError(f"give a number of nodes such as 2, or a range such as 1-4, not {value!r:.100}")
    if least > most:
        raise ValueError(f"the range {value} is empty: the smaller number comes first, as in {most}-{least}")
    if least < 1 or most > MAX_NODES:
        raise ValueError(f"a job has from 1 to {MAX_NODES} nodes, not {value}")
    return least if least == most else f"{least}-{most}"


NodeCount = Annotated[
    int | str,
    PlainValidator(_nodes),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MAX_NODES},
                {"type": "string", "pattern": f"^{_RANGE.pattern}$"},
            ]
        }
    ),
]
"""How many nodes a job has: a number, or a range such as `1-4`."""


class Recipe(Message):
    """A training program that ships with Ergon, and its options."""

    name: Name = Field(description="Name of the recipe, such as `digits-mlp`.")
    options: Annotated[dict[Name, bool | int | float | Argument], at_most(200)] = Field(
        default={}, max_length=200, description="Options of the recipe, such as `{'epochs': 20}`."
    )


class ArraySpec(Message):
    """The same job many times over, each with a number of its own in `ERGON_ARRAY_INDEX`."""

    count: int = Field(ge=1, le=MAX_BATCH, description="Jobs of the array; their numbers start at 0.")
    limit: int | None = Field(
        default=None, ge=1, le=MAX_BATCH, description="How many of them may have devices at a time; all if absent."
    )


class Dependency(Message):
    """Something that must have happened before a job may start."""

    job: JobIdText = Field(description="Id of a job that exists, or of an array: then all its jobs are meant.")
    on: Literal["success", "end"] = Field(
        default="success", description="`success`: it must have succeeded. `end`: it must have ended, however."
    )


class JobSpec(Message):
    """One training run the user wants finished. It never changes after submission.

    A job is a gang: `nodes` members, each on a node of its own with `devices_per_node` devices of one kind, or a
    share of one.
    All of them start together or none does.
    """

    model_config = example(name="two-nodes", command=["python", "train.py", "--lr", "0.1"], nodes=2)

    name: Name = Field(default="job", description="A name for people; it need not be unique.")
    command: list[Argument] | None = Field(
        default=None, min_length=1, max_length=4_096, description="Program and arguments, started once per rank."
    )
    recipe: Recipe | None = Field(default=None, description="A recipe instead of a command.")
    env: Annotated[dict[VariableName, Argument], at_most(1_000)] = Field(
        default={}, max_length=1_000, description="Environment variables for every rank."
    )

    image: ImageReference | None = Field(
        default=None,
        description="Container image the ranks run in, such as `docker.io/library/python:3.12`. Only nodes with "
        "podman, apptainer or docker take the job; one that lacks the image pulls it.",
    )
    code: Digest | None = Field(
        default=None, description="Archive the command runs in, uploaded before: a tar.gz by its SHA-256."
    )
    python: Argument | None = Field(
        default=None,
        min_length=1,
        description="Interpreter that `python` as the first word of the command means: on the node, or inside the "
        "image if there is one; a path or a name on the PATH there. If absent the agent's own, or the image's.",
    )
    requirements: Argument | None = Field(
        default=None,
        max_length=4_096,
        description="Requirements file inside the code. An environment with them is built once on each node.",
    )
    datasets: Annotated[dict[DatasetName, Argument], at_most(100)] = Field(
        default={},
        max_length=100,
        description="Data by name: an absolute path on the node, or a URL that is fetched once per node. Ranks find it "
        "at $ERGON_DATASET_NAME.",
    )

    queue: Name = Field(default="default", description="The queue the job waits in.")
    priority: int = Field(default=0, ge=-1_000, le=1_000, description="A higher one goes first; never outbid by many.")

    nodes: NodeCount = Field(
        default=1,
        description="Members of the gang, each on a node of its own: a number, or a range such as `1-4`. Of a range "
        "the planner chooses one end, or a power of two in between, whenever the job starts or starts again.",
    )
    devices_per_node: int = Field(
        default=1, ge=0, le=MAX_DEVICES_PER_NODE, description="Devices of each member; 0 for CPU cores and memory only."
    )
    device_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="How much of its one device each member takes, in thousandths such as 0.25; others may have the "
        "rest. It is a booking, not a fence: `device_isolation` says what keeps the jobs apart.",
    )
    device_isolation: Literal["none", "memory", "hardware"] = Field(
        default="none",
        description="How far jobs that share a device must be kept apart. `none`: they take turns, and share its "
        "memory. `memory`: each has its own. `hardware`: each has its own part of the chip. Agents offer `none` only.",
    )
    device_kinds: list[Kind] = Field(
        default=[], max_length=64, description="Acceptable kinds; empty means any. A gang gets one kind throughout."
    )
    ranks_per_node: int | None = Field(
        default=None,
        ge=1,
        le=MAX_DEVICES_PER_NODE,
        description="Processes of each member; one per device if absent, at least one.",
    )
    cpu_cores_per_node: float | None = Field(
        default=None,
        gt=0,
        le=65_536,
        description="CPU cores of each member; if absent one per device, of a share its part of one, and one where "
        "there is no device.",
    )
    memory_bytes_per_node: int = Field(
        default=0, ge=0, le=MAX_MEMORY_BYTES, description="Main memory of each member in bytes; 0 reserves none."
    )

    disk_bytes_per_node: int | None = Field(
        default=None,
        ge=1,
        le=MAX_DISK_BYTES,
        description="What each member may have on its node's disk in bytes: code, outputs and whatever else it writes "
        "into its folder. The job is stopped when it is more; only the node's own limit holds if absent.",
    )

    time_limit_s: float | None = Field(
        default=None, gt=0, le=1e9, description="The job is stopped when it has run this long, in s."
    )
    stall_timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="When no rank has written output or progress for this long, in s, the job counts as stalled: it is "
        "stopped, says where it hung, and is tried again.",
    )
    expected_run_s: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="The user's estimate of the run time in s, of a range of nodes on the fewest; the planner uses it.",
    )
    may_wait_s: float | None = Field(
        default=None,
        ge=0,
        le=1e9,
        description="How long after its submission its first start may be put off for hours in which energy is cheaper "
        "or cleaner, in s; not at all if absent. Which hours those are the service is told by ERGON_TARIFF.",
    )
    may_slow: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="By how much power caps on its devices may make its run longer, as a fraction such as 0.1; the "
        "planner caps them where that saves energy or lets it start under a power budget. Whole accelerators only.",
    )
    array: ArraySpec | None = Field(default=None, description="Submit it many times over, with a number each.")
    after: list[Dependency] = Field(
        default=[],
        max_length=100,
        description="What the job waits for in `held`; if it can no more come, it is cancelled.",
    )
    max_retries: int = Field(
        default=0,
        ge=0,
        le=100,
        description="How often it is tried again after a rank has failed. Tries lost with a node are not counted.",
    )
    on_disconnect: Literal["fence", "wait"] = Field(
        default="fence",
        description="When a node cannot reach the service: `fence` stops the ranks before the lease is over and runs "
        "the job again; `wait` lets them run, and the job is not run again before the node is heard, has booted, or an "
        "administrator says that it is down.",
    )
    stop_grace_s: float | None = Field(
        default=None,
        ge=0,
        le=3_600,
        description="When it is stopped: how long its ranks have to save what they need and leave, in s; the service's "
        "ERGON_STOP_GRACE_S if absent.",
    )
    may_move: bool = Field(
        default=False,
        description="The planner may stop it and let it go on elsewhere from its latest checkpoint, to save power or "
        "to make room for others: a job that has one node on another, one of a range also on more or fewer; never "
        "before its present attempt has saved.",
    )
    require_feasible: bool = Field(
        default=False, description="Refuse the job if no node that is present could ever run it."
    )

    @model_validator(mode="after")
    def _one_program(self) -> Self:
        if (self.command is None) == (self.recipe is None):
            raise ValueError("give exactly one of `command` and `recipe`")
        if self.command is not None and not self.command[0]:
            raise ValueError("the first word of `command` names the program and must not be empty")
        return self

    @field_validator("device_share")
    @classmethod
    def _in_thousandths(cls, share: float) -> float:
        if abs(share * 1000 - round(share * 1000)) > 1e-6 or share < 0.001:
            raise ValueError(f"a share is counted in thousandths of a device; write 0.25 or 0.125, not {share:g}")
        return round(share, 3)

    @model_validator(mode="after")
    def _devices(self) -> Self:
        if self.device_share < 1 and self.devices_per_node != 1:
            raise ValueError(
                "`device_share` is a part of one device: it goes with `devices_per_node` 1, "
                f"not {self.devices_per_node}"
            )
        if self.device_isolation != "none" and self.device_share == 1:
            raise ValueError(
                "`device_isolation` goes with a `device_share` below 1: nobody else is on a device that is taken whole"
            )
        if isinstance(self.nodes, str) and (self.device_share < 1 or not self.devices_per_node):
            raise ValueError(
                f"`nodes` is the range {self.nodes}, and that goes with whole devices: leave `device_share` at 1 and "
                f"`devices_per_node` at 1 or more, or give one number of nodes"
            )
        if self.may_slow and (self.device_share < 1 or not self.devices_per_node):
            raise ValueError("`may_slow` is about power caps on whole devices: leave it out for a share, or for none")
        if self.device_kinds and not self.devices_per_node:
            raise ValueError("`device_kinds` names devices, and `devices_per_node` is 0; leave one of them out")
        return self

    @model_validator(mode="after")
    def _code_and_data(self) -> Self:
        if self.recipe is not None and (self.code or self.python or self.requirements):
            raise ValueError("`code`, `python` and `requirements` go with a `command`; a recipe brings its own")
        if self.image is not None and self.recipe is not None:
            raise ValueError("`image` goes with a `command`; a recipe runs on what the node has")
        if self.image is not None and self.requirements is not None:
            raise ValueError("`requirements` go without an `image`: put the packages into the image")
        if self.requirements is not None:
            parts = self.requirements.split("/")
            if any(part in ("", ".", "..") for part in parts):
                raise ValueError("`requirements` must be a plain path inside the code, such as `requirements.txt`")
        variables = {name.upper() for name in self.datasets}
        if len(variables) < len(self.datasets):
            raise ValueError("`datasets`: two names differ only in capitals, and would be one variable")
        for name, place in self.datasets.items():
            if not place.startswith("/") and not DATASET_URL.match(place):
                raise ValueError(f"`datasets.{name}`: give an absolute path on the node or a URL, not {place[:100]!r}")
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of nodes it may have, rising: both ends of a range and the powers of two in between."""
        if isinstance(self.nodes, int):
            return (self.nodes,)
        least, most = map(int, self.nodes.split("-"))
        between = (1 << exponent for exponent in range(least.bit_length(), most.bit_length()))
        return tuple(sorted({least, *(size for size in between if size < most), most}))

    @property
    def ranks(self) -> int:
        """Processes of each member."""
        return self.ranks_per_node or max(1, self.devices_per_node)

    @property
    def cores(self) -> float:
        """CPU cores of each member."""
        return self.cpu_cores_per_node or self.devices_per_node * self.device_share or 1.0


class Reason(View):
    """Why a job is not placed."""

    code: str = Field(description="A stable name, such as `too_few_nodes`.")
    message: str = Field(description="The same in a sentence, with the numbers.")


class VerdictView(View):
    """What the planner last said about a job."""

    outcome: Literal["placed", "waiting", "impossible"] = Field(
        description="`impossible`: no set of the present nodes could run it even if all were free."
    )
    reasons: list[Reason] = []
    cycle: int | None = Field(default=None, description="The cycle that said it; absent for the verdict at submission.")


ShownReason = Annotated[EndReason | str, Field(union_mode="left_to_right")]
"""A reader shows a reason that a newer service has added as it stands."""


class MemberView(View):
    """One node's part of an attempt."""

    node: str
    devices: list[str]
    state: AttemptState
    exit_code: int | None = None
    reason: ShownReason | None = None
    message: str | None = None


class AttemptView(View):
    """One try at running the job."""

    id: str
    epoch: int
    state: AttemptState
    reason: ShownReason | None = None
    cap_w: float | None = Field(
        default=None, description="Power limit that its devices have for it, in W; null if theirs was left."
    )
    slower: float = Field(default=1.0, description="How many times as long it is expected to run for that.")
    granted_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    members: list[MemberView]


class ProgressView(View):
    """The latest progress the ranks reported."""

    step: int | None = None
    total_steps: int | None = None
    epoch: int | None = Field(default=None, description="The training epoch, not the attempt's.")
    total_epochs: int | None = None
    metrics: dict[str, float] = Field(default={}, description="The latest value of each metric, such as `loss`.")


class CheckpointMark(View):
    """Which checkpoint of a job."""

    epoch: int = Field(description="The attempt that wrote it.")
    step: int
    stored: bool = Field(
        default=False, description="The service holds its files; else they lie in a folder that the nodes share."
    )


class CheckpointView(CheckpointMark):
    """The latest checkpoint of a job: where its next attempt goes on."""

    at: datetime = Field(description="When the service heard of it.")


class ExpectedView(View):
    """How long a job is expected to run: all of it, or what is left once it runs. Nothing happens when that is over."""

    seconds: float = Field(description="As likely to be more as to be less.")
    low_s: float = Field(description="It takes less in one of ten cases.")
    high_s: float = Field(description="It takes more in one of ten cases.")
    kind: str = Field(description="On devices of this kind; empty where that makes no difference.")
    nodes: int | None = Field(
        default=None,
        description="On so many nodes: those it has, or the fewest it accepts; null from an older service.",
    )
    source: str = Field(
        description="What it follows from, the most believed first: `progress`, `past_runs`, `other_sizes`, "
        "`other_kinds`, `corrected_estimate`, `estimate`, `time_limit`, `default`."
    )
    runs: int = Field(default=0, description="How many past runs it follows from.")
    because: str = Field(description="The source in words, such as `from 5 runs of the same work`.")
    device_w: float | None = Field(
        default=None, description="What one device is expected to draw above its idle, in W; null without a kind."
    )
    metered_on: list[str] = Field(
        default=[],
        description="Kinds of devices on which meters counted what past runs of the same work drew. If empty, "
        "`device_w` is the model's.",
    )


class SampleEnergyView(View):
    """What the devices of the latest attempt draw for each example or token that the job trains on.

    The whole draw of these devices, idle included, in the mean over the attempt, divided by the latest
    `examples_per_s` or `tokens_per_s` that a rank reported. What their nodes draw beside them is not in it.
    """

    joules: float = Field(description="J for each.")
    per: Literal["example", "token"] = Field(description="What is counted; tokens where a rank reported both.")
    device_w: float = Field(description="What one device draws in the mean, in W.")
    quality: Literal["measured", "modelled"] = Field(
        description="`measured`: the devices' own counters, all of them, for a minute of device time at least. "
        "`modelled`: the model's draw of a device that is busy all the time; of a CPU slot, a thread above idle."
    )


class InputsView(View):
    """What a job's nodes fetch before its ranks start: code, and datasets by URL."""

    size_bytes: int = Field(description="All of it, as far as its size is known.")
    unsized: int = Field(default=0, description="How many datasets no node has, so that nobody knows their size.")
    nodes: list[str] = Field(description="Nodes that have all of it, by name; twenty at most.")
    missing_bytes: int = Field(
        description="What the node that lacks most has to fetch; of a job that waits, what one has to that has nothing."
    )
    fetch_s: float = Field(description="How long that takes, as learned of the links, in s.")


class ArrayPlace(View):
    """Where a job stands in its array."""

    id: str
    index: int = Field(description="Its number, from 0: `ERGON_ARRAY_INDEX`.")
    count: int
    limit: int | None = None
    states: dict[JobState, int] = Field(
        default={}, description="Jobs of the array by state; only in listings that show an array as one job."
    )


class ArrayView(View):
    """An array as a whole."""

    id: str
    user: str
    count: int
    limit: int | None = None
    states: dict[JobState, int] = Field(description="Its jobs by state.")
    submitted_at: datetime


class PriorityChange(Message):
    """A new place in line for a job that has not ended."""

    priority: int = Field(ge=-1_000, le=1_000, description="A higher one goes first.")


class JobView(View):
    """A job as the API shows it."""

    id: str
    user: str
    spec: JobSpec
    state: JobState
    priority: int = Field(default=0, description="The priority in force; it may have been changed since submission.")
    array: ArrayPlace | None = Field(default=None, description="Its place in an array, if it is part of one.")
    resubmitted_from: str | None = Field(default=None, description="The job it is a new run of.")
    signature: str | None = Field(
        default=None,
        description="The same for all jobs that do the same work: equal command or recipe, code, environment, image, "
        "interpreter, requirements and datasets. Absent from jobs of an older service.",
    )
    not_before: datetime | None = Field(default=None, description="The next attempt starts at this time or later.")
    reason: str | None = Field(default=None, description="Why it ended, in a sentence; absent while it has not.")
    exit_code: int | None = None
    epoch: int = Field(description="The number of the latest attempt, 0 before the first.")
    cancel_requested: bool = False
    submitted_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    output_deleted: bool = Field(
        default=False, description="Its logs, metrics and outputs were kept for as long as the service keeps them."
    )
    verdict: VerdictView | None = None
    progress: ProgressView | None = None
    expected: ExpectedView | None = Field(
        default=None, description="How long it will run; absent once it has ended, and in listings."
    )
    sample_energy: SampleEnergyView | None = Field(
        default=None, description="Absent where no rate of examples or tokens is known, and in listings."
    )
    inputs: InputsView | None = Field(
        default=None,
        description="What its nodes fetch, if that takes a second or more; only while it waits or starts.",
    )
    checkpoint: CheckpointView | None = Field(default=None, description="Absent before the first.")
    attempts: list[AttemptView] = []


class JobPage(View):
    """One page of a listing, newest first. `next` is passed as `cursor` to get the following page."""

    items: list[JobView]
    next: str | None = None


class EventView(View):
    """Something that happened to a job."""

    seq: int
    at: datetime
    kind: str = Field(description="Such as `submitted`, `placed`, `running`, `ended`, `cancel_requested`.")
    data: dict[str, object] = {}


class EventPage(View):
    items: list[EventView]
    next: str | None = None


class OutputView(View):
    """What one member of an attempt left in $ERGON_OUTPUT, stored as tar.gz."""

    epoch: int = Field(description="The attempt's epoch.")
    member: int
    node: str
    size_bytes: int = Field(description="Size of the archive in bytes.")
    sha256: str
    stored_at: datetime


class OutputList(View):
    """Every output of a job, the latest attempt first."""

    items: list[OutputView]


class MetricPoint(View):
    """One value of one metric, as a rank reported it."""

    seq: int
    at: datetime
    epoch: int = Field(description="The attempt's epoch.")
    rank: int
    step: int | None = None
    name: str
    value: float


class MetricPage(View):
    items: list[MetricPoint]
    next: str | None = None


class LogView(View):
    """A piece of a rank's output. `offset` counts bytes of that stream; `text` is UTF-8 with replacements."""

    epoch: int
    rank: int
    stream: Literal["stdout", "stderr"]
    offset: int
    text: str

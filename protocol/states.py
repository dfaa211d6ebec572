"""States of jobs, attempts and nodes. Which change is allowed is decided in one table, in `service/lifecycle.py`."""

from enum import StrEnum


class JobState(StrEnum):
    """Where a job stands. `succeeded`, `failed` and `cancelled` are final."""

    QUEUED = "queued"
    HELD = "held"
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_JOB_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


class AttemptState(StrEnum):
    """Where one try at running a job stands. It only moves forward; a retry is a new attempt with epoch + 1."""

    GRANTED = "granted"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


class EndReason(StrEnum):
    """Why an attempt, or one member of it, ended."""

    COMPLETED = "completed"  # every rank exited with 0
    FAILED = "failed"  # a rank exited with another code, or by a signal that Ergon did not send
    TIME_LIMIT = "time_limit"  # it ran past the job's time limit
    STALLED = "stalled"  # its ranks lived and did nothing: silent for too long, or stopped by a signal
    DISK_QUOTA = "disk_quota"  # a member wrote more to its node's disk than it may
    OUT_OF_MEMORY = "out_of_memory"  # the kernel killed a process of a member for want of memory
    CANCELLED = "cancelled"  # the user or an administrator asked for it
    START_FAILED = "start_failed"  # the command could not be started at all
    PEER_ENDED = "peer_ended"  # another member of the gang ended first and badly
    FENCED = "fenced"  # the agent stopped it because its lease could not be renewed
    NODE_LOST = "node_lost"  # the service waited out the node's lease
    UNKNOWN_START = "unknown_start"  # the agent cannot tell whether it ran: never started twice
    DRAINED = "drained"  # an administrator emptied its node
    PREEMPTED = "preempted"  # an administrator took its devices away: it goes on later from its checkpoint
    MOVED = "moved"  # the planner stopped it: it goes on elsewhere, or on more or fewer nodes, from its checkpoint


class Desired(StrEnum):
    """What the service wants of an attempt. Written by the service only."""

    RUN = "run"
    STOP = "stop"


class NodeState(StrEnum):
    """Whether a node is heard of."""

    READY = "ready"
    LOST = "lost"


class PowerState(StrEnum):
    """Whether a node is switched on, as far as the service switches it. One that nobody switches is `on`."""

    ON = "on"
    SUSPENDING = "suspending"  # closed to new work; its hook switches it off, and its agent falls silent
    OFF = "off"
    BOOTING = "booting"  # its hook switches it on; it is on once its agent is heard


class DeviceCondition(StrEnum):
    """Whether a device can get work, apart from who holds it."""

    OK = "ok"
    QUARANTINED = "quarantined"  # an attempt that has ended holds it: its node has not said that nothing is left
    UNFIT = "unfit"  # a health check of its agent failed


class Role(StrEnum):
    """What a person may do. A user sees and changes own jobs only."""

    ADMIN = "admin"
    USER = "user"

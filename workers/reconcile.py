"""What to do next: everything the agent should hold, against everything it holds. Pure.

The service says the whole each time, so nothing here depends on having heard every answer. All times are in s on
CLOCK_BOOTTIME.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from protocol.states import AttemptState, Desired, EndReason
from protocol.sync import Assignment, MemberReport

KILL_MARGIN_S = 15.0
"""How long after its grace a stop may last before its supervisor counts as hung. A supervisor that still hunts a
process it cannot kill has written its exit record by then."""


class Phase(Enum):
    """Where a local run stands. LOST: its supervisor is gone without having settled everything."""

    STARTING = "starting"
    RUNNING = "running"
    LOST = "lost"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A stop that was asked for at `at_s`."""

    at_s: float
    grace_s: float
    reason: EndReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a run ended. `cpu_s` is the CPU time of all its processes; `clean` says that none of them is left."""

    reason: EndReason
    message: str
    exit_code: int | None
    clean: bool
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What this node holds of one attempt.

    `outlasts_lease` says that its ranks go on without news from the service, `shipped` that the service has all its
    output, `quiet` that its ranks have written nothing for too long.
    """

    attempt: str
    epoch: int
    phase: Phase
    stop_grace_s: float
    outlasts_lease: bool = False
    stop: Stop | None = None
    exit: Exit | None = None
    quiet: bool = False
    shipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """How long ranks may run without news. From `fence_at_s` on they are stopped, with `grace_s` of patience."""

    fence_at_s: float
    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChooseRendezvous:
    """Find a free port for the gang this node is the first member of, and tell the service."""

    attempt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRun:
    """Write the launch record, then start a supervisor."""

    assignment: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRun:
    """Ask the supervisor to stop its ranks: politely first, after `grace_s` not."""

    attempt: str
    reason: EndReason
    message: str
    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KillSupervisor:
    """It did not stop in time. What it leaves is settled like any lost run."""

    attempt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleRun:
    """Kill what is left of a lost run and write its exit record."""

    attempt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetRun:
    """Delete its folder: the service has all it wants of it."""

    attempt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearUnknown:
    """Make sure that nothing is left of an attempt this node has no record of."""

    attempt: str


Action = ChooseRendezvous | StartRun | StopRun | KillSupervisor | SettleRun | ForgetRun | ClearUnknown


def lease_from(sent_s: float, lease_s: float) -> Lease:
    """The lease that an answer grants whose request was sent at `sent_s`.

    Ranks are asked to stop at 65 % of it and killed at 90 % at the latest: the rest is for making sure that they are
    gone before the service may start the next attempt.
    """
    return Lease(fence_at_s=sent_s + 0.65 * lease_s, grace_s=0.25 * lease_s)


def reconcile(
    assignments: Sequence[Assignment] | None,
    runs: Mapping[str, Run],
    *,
    rendezvous: Mapping[str, str],
    cleared: Mapping[str, str],
    lease: Lease | None,
    now_s: float,
    closing: bool = False,
) -> list[Action]:
    """The actions that bring this node nearer to what it should hold.

    Args:
        assignments: everything it should hold; None until the service has said so once.
        runs: everything it holds, by attempt.
        rendezvous: addresses this agent has chosen, by attempt.
        cleared: attempts without a record of which nothing is left and which must never start here, and why.
        lease: None until the service has granted one to this agent.
        closing: the agent is told to stop everything it runs.
    """
    wanted = {assignment.attempt: assignment for assignment in assignments or ()}
    is_over = lease is not None and now_s >= lease.fence_at_s
    actions: list[Action | None] = []
    for run in runs.values():
        unlisted = assignments is not None and run.attempt not in wanted
        if run.phase is Phase.LOST:
            actions.append(SettleRun(attempt=run.attempt))
        elif run.phase is Phase.ENDED:
            actions.append(ForgetRun(attempt=run.attempt) if unlisted and _is_clean(run) else None)
        elif run.stop:
            hung = now_s > run.stop.at_s + run.stop.grace_s + KILL_MARGIN_S
            actions.append(KillSupervisor(attempt=run.attempt) if hung else None)
        elif closing:
            actions.append(_stop(run, EndReason.FENCED, "the agent of its node was told to stop"))
        elif lease is not None and is_over and not run.outlasts_lease:
            actions.append(_stop(run, EndReason.FENCED, "the lease was not renewed in time", lease.grace_s))
        elif unlisted or (run.attempt in wanted and wanted[run.attempt].desired == Desired.STOP):
            actions.append(_stop(run, EndReason.CANCELLED, ""))
    # What an administrator took for dead, and was not, may hold the very devices that the next attempt was given.
    is_rid_of_all = all(run.attempt in wanted or _is_clean(run) for run in runs.values())
    may_start = lease is not None and not is_over and not closing and is_rid_of_all
    for attempt, assignment in wanted.items():
        if attempt not in runs and attempt not in cleared:
            actions.append(_act_on_missing(assignment, rendezvous, may_start=may_start))
    return [action for action in actions if action is not None]


def _act_on_missing(assignment: Assignment, rendezvous: Mapping[str, str], *, may_start: bool) -> Action | None:
    """What to do about an attempt that should be here and of which there is no record."""
    if not _never_started(assignment, rendezvous):
        return ClearUnknown(attempt=assignment.attempt)
    if assignment.desired == Desired.STOP or not may_start:
        return None
    if assignment.members == 1 or assignment.rendezvous is not None:
        return StartRun(assignment=assignment)
    if assignment.member == 0 and assignment.attempt not in rendezvous:
        return ChooseRendezvous(attempt=assignment.attempt)
    return None


def observe(
    assignments: Sequence[Assignment],
    runs: Mapping[str, Run],
    *,
    rendezvous: Mapping[str, str],
    cleared: Mapping[str, str],
    checkpoints: Mapping[str, int],
) -> list[MemberReport]:
    """What to tell the service of each attempt it thinks is here.

    Args:
        assignments, runs, rendezvous, cleared: as for `reconcile`.
        checkpoints: step of the newest complete checkpoint of each attempt that has one.
    """
    reports: list[MemberReport] = []
    for assignment in assignments:
        attempt = assignment.attempt
        run = runs.get(attempt)
        if run is not None:
            report = _report_of(run, assignment, rendezvous.get(attempt), checkpoints.get(attempt))
        elif attempt in cleared:
            report = _ended(assignment, EndReason.UNKNOWN_START, cleared[attempt])
        elif not _never_started(assignment, rendezvous):
            continue  # not before it is cleared
        elif assignment.desired == Desired.STOP:
            report = _ended(assignment, EndReason.CANCELLED, "it was stopped before it was started")
        elif attempt in rendezvous:
            report = MemberReport(
                attempt=attempt,
                epoch=assignment.epoch,
                state=AttemptState.STARTING,
                rendezvous=rendezvous[attempt],
            )
        else:
            continue
        reports.append(report)
    return reports


def _never_started(assignment: Assignment, rendezvous: Mapping[str, str]) -> bool:
    """Without a local run: whether that is because it was never started, and not because its record is gone."""
    return assignment.observed == AttemptState.GRANTED or assignment.attempt in rendezvous


def _stop(run: Run, reason: EndReason, message: str, most_grace_s: float = float("inf")) -> StopRun:
    grace_s = min(run.stop_grace_s, most_grace_s)
    return StopRun(attempt=run.attempt, reason=reason, message=message, grace_s=grace_s)


def _is_clean(run: Run) -> bool:
    return run.exit is not None and run.exit.clean


def _report_of(run: Run, assignment: Assignment, rendezvous: str | None, checkpoint: int | None) -> MemberReport:
    if run.exit is None or not run.shipped:
        state = AttemptState.STARTING if run.phase is Phase.STARTING else AttemptState.RUNNING
        if run.stop:
            state = AttemptState.STOPPING
        return MemberReport(
            attempt=run.attempt,
            epoch=run.epoch,
            state=state,
            rendezvous=rendezvous,
            quiet=run.quiet,
            checkpoint=checkpoint,
        )
    return MemberReport(
        attempt=run.attempt,
        epoch=run.epoch,
        state=AttemptState.ENDED,
        exit_code=run.exit.exit_code,
        reason=run.exit.reason,
        message=run.exit.message or None,
        clean=run.exit.clean,
        checkpoint=checkpoint,
    )


def _ended(assignment: Assignment, reason: EndReason, message: str) -> MemberReport:
    return MemberReport(
        attempt=assignment.attempt,
        epoch=assignment.epoch,
        state=AttemptState.ENDED,
        reason=reason,
        message=message,
        clean=True,
    )

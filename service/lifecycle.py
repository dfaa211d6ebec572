"""The one table of allowed changes of state, and what the members of a gang say about the whole.

Everything here is pure. Code that changes a state asks this file first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.states import AttemptState, EndReason, JobState

J, A = JobState, AttemptState

JOB_CHANGES: dict[JobState, frozenset[JobState]] = {
    J.QUEUED: frozenset({J.HELD, J.STARTING, J.CANCELLED}),
    J.HELD: frozenset({J.QUEUED, J.CANCELLED}),
    J.STARTING: frozenset({J.RUNNING, J.QUEUED, J.SUCCEEDED, J.FAILED, J.CANCELLED}),
    J.RUNNING: frozenset({J.QUEUED, J.SUCCEEDED, J.FAILED, J.CANCELLED}),
    J.SUCCEEDED: frozenset(),
    J.FAILED: frozenset(),
    J.CANCELLED: frozenset(),
}
"""From each state of a job, the states it may go to. A very short run may end before anyone saw it running."""

ATTEMPT_ORDER = (A.GRANTED, A.STARTING, A.RUNNING, A.STOPPING, A.ENDED)
"""Attempts and members only move forward along this line; steps may be skipped."""

LOSSES = frozenset({EndReason.NODE_LOST, EndReason.FENCED, EndReason.UNKNOWN_START, EndReason.STALLED})
"""Ends that are no fault of the job, as far as one can tell: it goes back to the queue until it has lost
ERGON_MAX_ATTEMPTS attempts so, and fails then. It does not stay in `held`: whoever waits for it must hear of the end,
and `ergon resubmit` begins anew.
"""

OWN_FAULTS = frozenset({EndReason.FAILED, EndReason.OUT_OF_MEMORY, EndReason.START_FAILED, EndReason.PEER_ENDED})
"""Ends that the job brought about: it goes back to the queue as often as its `max_retries` says. One that ran into its
time limit or its limit on the disk would do so again.
"""

FIRST_BACK_OFF_S = 5.0
LONGEST_BACK_OFF_S = 300.0

ASKED = frozenset({EndReason.CANCELLED, EndReason.DRAINED, EndReason.PREEMPTED, EndReason.MOVED, EndReason.STALLED})
"""Ends that somebody asked the service for, or that it saw itself: a member that was stopped then ended for the
attempt's own reason, and not because of another member."""

GOES_ON = frozenset({EndReason.DRAINED, EndReason.PREEMPTED, EndReason.MOVED})
"""Ends after which a job goes on elsewhere at nobody's expense, unless it had reached its own end."""

SENTENCES: dict[EndReason, str] = {
    EndReason.COMPLETED: "every rank exited with 0",
    EndReason.FAILED: "a rank failed",
    EndReason.TIME_LIMIT: "it ran past its time limit",
    EndReason.DISK_QUOTA: "it wrote more to the disk than it may",
    EndReason.OUT_OF_MEMORY: "it ran out of memory",
    EndReason.CANCELLED: "it was cancelled",
    EndReason.START_FAILED: "the program could not be started",
    EndReason.PEER_ENDED: "another member of the gang ended first",
    EndReason.FENCED: "its node could not reach the service and stopped it",
    EndReason.NODE_LOST: "its node was not heard of any more",
    EndReason.UNKNOWN_START: "its node cannot tell whether it ran",
    EndReason.STALLED: "its ranks lived and did nothing",
    EndReason.DRAINED: "an administrator emptied its node",
    EndReason.PREEMPTED: "an administrator took its devices for something else",
    EndReason.MOVED: "the planner moved or resized it: it goes on from its checkpoint",
}


class IllegalChange(AssertionError):
    """A bug of ours: code tried a change of state that the table does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberFacts:
    """What is known of one member when the whole gang is judged. `quiet`: its ranks have said nothing for too long."""

    state: AttemptState
    reason: EndReason | None
    exit_code: int | None
    message: str | None
    quiet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GangFacts:
    """The gang as a whole. `stop` asks for all members to be stopped because one ended badly."""

    state: AttemptState
    stop: bool
    reason: EndReason | None
    exit_code: int | None
    message: str | None


def check_job_change(old: JobState, new: JobState) -> None:
    """Raises IllegalChange unless the table allows it."""
    if new not in JOB_CHANGES[old]:
        raise IllegalChange(f"job: {old} -> {new}")


def moves_forward(old: AttemptState, new: AttemptState) -> bool:
    """Whether `new` is later than `old`. A report of an earlier state is old news and is ignored."""
    return ATTEMPT_ORDER.index(new) > ATTEMPT_ORDER.index(old)


def judge_gang(members: Sequence[MemberFacts], stopping_for: EndReason | None) -> GangFacts:
    """The state of an attempt from its members'.

    Args:
        members: all members of the gang, in order.
        stopping_for: why the attempt is being stopped, if it is: a cancellation, or the first bad end of a member.
    """
    ended = [member for member in members if member.state == A.ENDED]
    bad = [member for member in ended if member.reason != EndReason.COMPLETED]
    if len(ended) == len(members):
        cause = _cause(ended, bad, stopping_for)
        return GangFacts(
            state=A.ENDED, stop=False, reason=cause.reason, exit_code=cause.exit_code, message=cause.message
        )
    silent = all(member.quiet for member in members if member.state != A.ENDED)
    if bad or stopping_for or silent:
        reason = stopping_for or (bad[0].reason if bad else EndReason.STALLED)
        return GangFacts(state=A.STOPPING, stop=True, reason=reason, exit_code=None, message=None)
    state = A.RUNNING if ended else min((member.state for member in members), key=ATTEMPT_ORDER.index)
    return GangFacts(state=state, stop=False, reason=None, exit_code=None, message=None)


def _cause(ended: list[MemberFacts], bad: list[MemberFacts], stopping_for: EndReason | None) -> MemberFacts:
    """The member that tells why the gang ended. Members that were stopped because of another one come last."""
    first = [member for member in bad if member.reason == stopping_for]
    own = [member for member in bad if member.reason != EndReason.PEER_ENDED]
    candidates = first or own or bad or ended
    return next((member for member in candidates if member.message), candidates[0])


def job_state_after(
    reason: EndReason, *, losses: int, faults: int, max_attempts: int, max_retries: int, cancel_requested: bool
) -> JobState:
    """Where a job goes when its attempt has ended for this reason.

    Args:
        losses, faults: attempts before this one that were repeated, by whose fault they ended.
        max_attempts: with so many losses the job fails.
        max_retries: so many faults are forgiven.
    """
    if reason == EndReason.COMPLETED:
        return J.SUCCEEDED
    if cancel_requested or reason == EndReason.CANCELLED:
        return J.CANCELLED
    if reason in GOES_ON:
        return J.QUEUED
    if reason in LOSSES and losses + 1 < max_attempts:
        return J.QUEUED
    if reason in OWN_FAULTS and faults < max_retries:
        return J.QUEUED
    return J.FAILED


def back_off_s(repeats: int) -> float:
    """How long a job waits before it is repeated for the `repeats`-th time, in s: twice as long each time."""
    return min(FIRST_BACK_OFF_S * 2 ** min(repeats - 1, 30), LONGEST_BACK_OFF_S)


def describe(reason: EndReason, message: str | None) -> str:
    """Why an attempt ended, in a sentence for the user."""
    return f"{SENTENCES[reason]}: {message}" if message else SENTENCES[reason]

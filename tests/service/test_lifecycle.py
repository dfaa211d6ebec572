"""The table of changes, and what the members of a gang say about the whole."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.states import FINAL_JOB_STATES, AttemptState, EndReason, JobState
from service.lifecycle import (
    IllegalChange,
    MemberFacts,
    back_off_s,
    check_job_change,
    describe,
    job_state_after,
    judge_gang,
    moves_forward,
)

A, R = AttemptState, EndReason

ALLOWED = {
    "queued": {"held", "starting", "cancelled"},
    "held": {"queued", "cancelled"},
    "starting": {"running", "queued", "succeeded", "failed", "cancelled"},
    "running": {"queued", "succeeded", "failed", "cancelled"},
    "succeeded": set(),
    "failed": set(),
    "cancelled": set(),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(JobState, JobState)))
def test_job_changes(old: JobState, new: JobState) -> None:
    if new in ALLOWED[old]:
        check_job_change(old, new)
    else:
        with pytest.raises(IllegalChange, match=f"job: {old} -> {new}"):
            check_job_change(old, new)


def test_final_states_are_those_that_lead_nowhere() -> None:
    assert {JobState(state) for state, after in ALLOWED.items() if not after} == FINAL_JOB_STATES


@pytest.mark.parametrize(("old", "new"), list(itertools.product(A, A)))
def test_attempts_only_move_forward(old: AttemptState, new: AttemptState) -> None:
    line = ["granted", "starting", "running", "stopping", "ended"]
    assert moves_forward(old, new) == (line.index(new) > line.index(old))


def member(state: AttemptState, reason: EndReason | None = None, exit_code: int | None = None) -> MemberFacts:
    message = f"{reason} message" if reason else None
    return MemberFacts(state=state, reason=reason, exit_code=exit_code, message=message)


def ended(reason: EndReason, exit_code: int | None = None) -> MemberFacts:
    return member(A.ENDED, reason, exit_code)


@pytest.mark.parametrize(
    ("members", "stopping_for", "state", "stop", "reason", "exit_code"),
    [
        ([member(A.GRANTED)], None, A.GRANTED, False, None, None),
        ([member(A.RUNNING), member(A.GRANTED)], None, A.GRANTED, False, None, None),
        ([member(A.RUNNING), member(A.STARTING)], None, A.STARTING, False, None, None),
        ([member(A.RUNNING), member(A.RUNNING)], None, A.RUNNING, False, None, None),
        ([ended(R.COMPLETED, 0), member(A.RUNNING)], None, A.RUNNING, False, None, None),
        ([ended(R.COMPLETED, 0), member(A.STARTING)], None, A.RUNNING, False, None, None),
        ([ended(R.COMPLETED, 0), ended(R.COMPLETED, 0)], None, A.ENDED, False, R.COMPLETED, 0),
        ([ended(R.FAILED, 3), member(A.RUNNING)], None, A.STOPPING, True, R.FAILED, None),
        ([member(A.GRANTED), ended(R.NODE_LOST)], None, A.STOPPING, True, R.NODE_LOST, None),
        ([ended(R.FAILED, 3), ended(R.PEER_ENDED, -15)], R.FAILED, A.ENDED, False, R.FAILED, 3),
        ([ended(R.PEER_ENDED, -15), ended(R.FAILED, 3)], R.FAILED, A.ENDED, False, R.FAILED, 3),
        # The first bad end is the cause, also when a member then fails because of it.
        ([ended(R.FAILED, 1), ended(R.NODE_LOST)], R.NODE_LOST, A.ENDED, False, R.NODE_LOST, None),
        ([ended(R.PEER_ENDED), ended(R.NODE_LOST)], R.FAILED, A.ENDED, False, R.NODE_LOST, None),
        ([ended(R.PEER_ENDED), ended(R.PEER_ENDED)], None, A.ENDED, False, R.PEER_ENDED, None),
        ([member(A.RUNNING)], R.CANCELLED, A.STOPPING, True, R.CANCELLED, None),
        ([ended(R.CANCELLED, -15), member(A.STOPPING)], R.CANCELLED, A.STOPPING, True, R.CANCELLED, None),
        ([ended(R.CANCELLED, -15), ended(R.COMPLETED, 0)], R.CANCELLED, A.ENDED, False, R.CANCELLED, -15),
        # It had finished before the cancellation reached it.
        ([ended(R.COMPLETED, 0)], R.CANCELLED, A.ENDED, False, R.COMPLETED, 0),
    ],
)
def test_judging_a_gang(
    members: list[MemberFacts],
    stopping_for: EndReason | None,
    state: AttemptState,
    stop: bool,
    reason: EndReason | None,
    exit_code: int | None,
) -> None:
    gang = judge_gang(members, stopping_for)
    assert (gang.state, gang.stop, gang.reason, gang.exit_code) == (state, stop, reason, exit_code)


def quiet(state: AttemptState = A.RUNNING) -> MemberFacts:
    return MemberFacts(state=state, reason=None, exit_code=None, message=None, quiet=True)


@pytest.mark.parametrize(
    ("members", "stopping_for", "reason"),
    [
        ([quiet()], None, R.STALLED),
        ([quiet(), quiet()], None, R.STALLED),
        ([quiet(), ended(R.COMPLETED, 0)], None, R.STALLED),
        ([quiet(), member(A.RUNNING)], None, None),
        ([quiet(), member(A.STARTING)], None, None),
        ([quiet(), ended(R.FAILED, 1)], None, R.FAILED),
        ([quiet(), quiet()], R.CANCELLED, R.CANCELLED),
    ],
)
def test_a_gang_has_stalled_when_no_member_says_anything(
    members: list[MemberFacts], stopping_for: EndReason | None, reason: EndReason | None
) -> None:
    gang = judge_gang(members, stopping_for)
    assert (gang.stop, gang.reason) == (reason is not None, reason)


def test_of_members_that_ended_alike_the_one_with_something_to_say_is_the_cause() -> None:
    silent = MemberFacts(state=A.ENDED, reason=R.STALLED, exit_code=-15, message=None)
    assert judge_gang([silent, ended(R.STALLED, -9)], R.STALLED).message == "stalled message"


_living = st.sampled_from([A.GRANTED, A.STARTING, A.RUNNING, A.STOPPING]).map(member)
_ended = st.builds(ended, st.sampled_from(R), st.none() | st.integers(-64, 255))
_gangs = st.lists(_living | _ended, min_size=1, max_size=4)
_causes = st.none() | st.sampled_from(R)


@given(members=_gangs, stopping_for=_causes)
def test_a_gang_ends_when_its_last_member_does_and_is_stopped_for_a_cause(
    members: list[MemberFacts], stopping_for: EndReason | None
) -> None:
    gang = judge_gang(members, stopping_for)
    reasons = {each.reason for each in members if each.state == A.ENDED}
    all_ended = all(each.state == A.ENDED for each in members)
    bad = reasons - {R.COMPLETED}
    assert (gang.state == A.ENDED) == all_ended
    assert gang.stop == (not all_ended and bool(bad or stopping_for))
    assert (gang.reason is not None) == (all_ended or gang.stop)
    if gang.stop:
        assert gang.state == A.STOPPING
        assert gang.reason in {stopping_for} - {None} or gang.reason in bad
    if all_ended:
        assert (gang.reason == R.COMPLETED) == (not bad)
        assert (
            member(A.ENDED, gang.reason, gang.exit_code) in members
        )  # reason, code and message of one and the same member


@given(members=_gangs, stopping_for=_causes, data=st.data())
def test_what_becomes_of_a_gang_does_not_depend_on_the_order_of_its_members(
    members: list[MemberFacts], stopping_for: EndReason | None, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(members))
    one, other = judge_gang(members, stopping_for), judge_gang(shuffled, stopping_for)
    assert (one.state, one.stop) == (other.state, other.stop)


@given(members=st.lists(_ended, min_size=1, max_size=4), stopping_for=_causes)
def test_being_stopped_because_of_a_peer_is_the_last_cause_to_be_named(
    members: list[MemberFacts], stopping_for: EndReason | None
) -> None:
    gang = judge_gang(members, stopping_for)
    others = {each.reason for each in members} - {R.PEER_ENDED, R.COMPLETED}
    if stopping_for in others:
        assert gang.reason == stopping_for
    elif others and stopping_for != R.PEER_ENDED:
        assert gang.reason in others


AGAIN = {R.FENCED, R.NODE_LOST, R.UNKNOWN_START, R.STALLED}
OWN = {R.FAILED, R.OUT_OF_MEMORY, R.START_FAILED, R.PEER_ENDED}


def after(reason: EndReason, *, losses: int = 0, faults: int = 0, max_retries: int = 0, cancelled: bool = False) -> str:
    """Where a job goes that may lose two attempts before it fails."""
    return job_state_after(
        reason,
        losses=losses,
        faults=faults,
        max_attempts=3,
        max_retries=max_retries,
        cancel_requested=cancelled,
    ).value


@pytest.mark.parametrize("reason", sorted(AGAIN))
def test_what_is_lost_with_a_node_is_repeated_until_the_attempts_are_used_up(reason: EndReason) -> None:
    assert after(reason, losses=1, faults=7) == "queued"
    assert after(reason, losses=2, max_retries=7) == "failed"
    assert after(reason, losses=0, cancelled=True) == after(reason, losses=2, cancelled=True) == "cancelled"


@pytest.mark.parametrize("reason", sorted(OWN))
def test_a_fault_of_the_job_is_repeated_as_often_as_it_asks_for(reason: EndReason) -> None:
    assert after(reason) == "failed"
    assert after(reason, faults=1, max_retries=2, losses=9) == "queued"
    assert after(reason, faults=2, max_retries=2) == "failed"
    assert after(reason, max_retries=2, cancelled=True) == "cancelled"


def test_a_drained_node_costs_the_job_nothing() -> None:
    assert after(R.DRAINED, losses=2) == "queued"
    assert after(R.DRAINED, cancelled=True) == "cancelled"
    assert after(R.MOVED, losses=2) == "queued"
    assert after(R.MOVED, cancelled=True) == "cancelled"


@pytest.mark.parametrize("cancelled", [False, True])
def test_other_ends_are_final(cancelled: bool) -> None:
    assert after(R.COMPLETED, max_retries=9, cancelled=cancelled) == "succeeded"
    assert after(R.CANCELLED, max_retries=9, cancelled=cancelled) == "cancelled"
    for limit in (R.TIME_LIMIT, R.DISK_QUOTA):
        assert after(limit, max_retries=9, cancelled=cancelled) == ("cancelled" if cancelled else "failed")
    assert {R.COMPLETED, R.CANCELLED, R.TIME_LIMIT, R.DISK_QUOTA, R.DRAINED, R.PREEMPTED, R.MOVED} | AGAIN | OWN == set(
        R
    )


@given(repeats=st.integers(1, 10_000))
def test_the_pause_before_an_attempt_doubles_up_to_five_minutes(repeats: int) -> None:
    assert [back_off_s(n) for n in (1, 2, 3)] == [5, 10, 20]
    assert back_off_s(repeats) <= back_off_s(repeats + 1) <= 300


@pytest.mark.parametrize("reason", R)
@pytest.mark.parametrize("state", [JobState.STARTING, JobState.RUNNING])
@pytest.mark.parametrize("cancelled", [False, True])
def test_every_end_of_an_attempt_leads_to_a_change_that_is_allowed(
    reason: EndReason, state: JobState, cancelled: bool
) -> None:
    for losses in (0, 2):
        check_job_change(state, JobState(after(reason, losses=losses, max_retries=1, cancelled=cancelled)))


@pytest.mark.parametrize("reason", R)
def test_every_end_has_a_sentence(reason: EndReason) -> None:
    plain = describe(reason, None)
    assert describe(reason, "rank 3 exited with 1") == f"{plain}: rank 3 exited with 1"
    assert " " in plain

"""What the agent does and says for every combination of what it should hold and what it holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.states import AttemptState, Desired, EndReason
from tests.workers.builders import assignment, ended, run, stop
from workers.reconcile import (
    KILL_MARGIN_S,
    ChooseRendezvous,
    ClearUnknown,
    ForgetRun,
    KillSupervisor,
    Lease,
    Phase,
    SettleRun,
    StartRun,
    StopRun,
    lease_from,
    observe,
    reconcile,
)

NOW_S = 1_000.0
VALID = Lease(fence_at_s=NOW_S + 30, grace_s=5)
OVER = Lease(fence_at_s=NOW_S, grace_s=5)
GANG = {"members": 2}
STOPPED = stop(at_s=NOW_S, grace_s=10)


def decide(assignments, runs, *, rendezvous=None, cleared=None, lease=VALID, now_s=NOW_S, closing=False):
    return reconcile(
        assignments,
        {item.attempt: item for item in runs},
        rendezvous=rendezvous or {},
        cleared=cleared or {},
        lease=lease,
        now_s=now_s,
        closing=closing,
    )


def say(assignments, runs=(), *, rendezvous=None, cleared=None, checkpoints=None):
    return observe(
        assignments,
        {item.attempt: item for item in runs},
        rendezvous=rendezvous or {},
        cleared=cleared or {},
        checkpoints=checkpoints or {},
    )


def test_a_checkpoint_is_told_while_it_runs_and_with_the_end():
    told = [
        say([assignment()], [item], checkpoints={"a1": 7})[0]
        for item in (run(), run(stop=stop()), run(phase=Phase.ENDED, exit=ended(), shipped=True))
    ]
    assert [(report.state, report.checkpoint) for report in told] == [
        (AttemptState.RUNNING, 7),
        (AttemptState.STOPPING, 7),
        (AttemptState.ENDED, 7),
    ]


def names(actions):
    return [type(action).__name__ for action in actions]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (assignment(), ["StartRun"]),
        (assignment(desired=Desired.STOP), []),
        (assignment(observed=AttemptState.STARTING), ["ClearUnknown"]),
        (assignment(observed=AttemptState.RUNNING), ["ClearUnknown"]),
        (assignment(observed=AttemptState.RUNNING, desired=Desired.STOP), ["ClearUnknown"]),
        (assignment(observed=AttemptState.ENDED, desired=Desired.STOP), ["ClearUnknown"]),
        (assignment(**GANG), ["ChooseRendezvous"]),
        (assignment(**GANG, desired=Desired.STOP), []),
        (assignment(**GANG, rendezvous="10.0.0.1:20000"), ["StartRun"]),
        (assignment(**GANG, member=1), []),
        (assignment(**GANG, member=1, rendezvous="10.0.0.1:20000"), ["StartRun"]),
    ],
)
def test_an_attempt_without_a_record(wanted, expected):
    assert names(decide([wanted], [])) == expected


@pytest.mark.parametrize(
    ("held", "wanted", "expected"),
    [
        (run(), assignment(), []),
        (run(phase=Phase.STARTING), assignment(), []),
        (run(), assignment(desired=Desired.STOP), ["StopRun"]),
        (run(phase=Phase.STARTING), assignment(desired=Desired.STOP), ["StopRun"]),
        (run(stop=STOPPED), assignment(desired=Desired.STOP), []),
        (run(), None, ["StopRun"]),
        (run(stop=STOPPED), None, []),
        (run(phase=Phase.LOST), assignment(), ["SettleRun"]),
        (run(phase=Phase.LOST), None, ["SettleRun"]),
        (run(phase=Phase.LOST, exit=ended(clean=False)), None, ["SettleRun"]),
        (run(phase=Phase.ENDED, exit=ended()), assignment(), []),
        (run(phase=Phase.ENDED, exit=ended(), shipped=True), assignment(), []),
        (run(phase=Phase.ENDED, exit=ended()), None, ["ForgetRun"]),
        (run(phase=Phase.ENDED, exit=ended(clean=False)), None, []),
    ],
)
def test_a_run_with_and_without_an_assignment(held, wanted, expected):
    assert names(decide([wanted] if wanted else [], [held])) == expected


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.STARTING])
def test_nothing_is_stopped_or_forgotten_before_the_service_has_spoken(phase):
    held = [run("a1", phase), run("a2", Phase.ENDED, exit=ended())]
    assert decide(None, held, lease=None) == []


def test_a_stop_gives_the_ranks_the_grace_of_their_job():
    [action] = decide([assignment(desired=Desired.STOP)], [run(stop_grace_s=7)])
    assert action == StopRun(attempt="a1", reason=EndReason.CANCELLED, message="", grace_s=7)


def test_a_supervisor_that_does_not_stop_is_killed_after_grace_and_margin():
    held = run(stop=stop(at_s=NOW_S, grace_s=10))
    last_s = NOW_S + 10 + KILL_MARGIN_S
    assert decide([], [held], now_s=last_s) == []
    assert decide([], [held], now_s=last_s + 0.1) == [KillSupervisor(attempt="a1")]


def test_the_end_of_the_lease_stops_what_runs_and_starts_nothing():
    actions = decide([assignment("a1"), assignment("a2")], [run("a1", stop_grace_s=60)], lease=OVER)
    assert [(type(item), item.attempt) for item in actions] == [(StopRun, "a1")]
    assert actions[0].reason == EndReason.FENCED
    assert actions[0].grace_s == OVER.grace_s, "patience must not last longer than the lease"


def test_the_lease_ends_even_while_the_service_was_never_heard():
    assert names(decide(None, [run()], lease=OVER)) == ["StopRun"]


def test_closing_stops_what_runs_and_starts_nothing():
    actions = decide([assignment("a1"), assignment("a2")], [run("a1")], closing=True)
    assert [(type(item), item.attempt) for item in actions] == [(StopRun, "a1")]
    assert actions[0].reason == EndReason.FENCED, "no fault of the job: it goes back to the queue"


def test_a_gang_starts_where_its_rendezvous_was_chosen_although_the_service_saw_it_starting():
    wanted = assignment(**GANG, observed=AttemptState.STARTING, rendezvous="10.0.0.1:20000")
    assert names(decide([wanted], [], rendezvous={"a1": "10.0.0.1:20000"})) == ["StartRun"]


def test_a_rendezvous_is_chosen_once():
    assert decide([assignment(**GANG)], [], rendezvous={"a1": "10.0.0.1:20000"}) == []


@pytest.mark.parametrize("lease", [VALID, OVER, None])
def test_what_was_cleared_never_starts(lease):
    assert decide([assignment()], [], cleared={"a1": "forgotten"}, lease=lease) == []


def test_the_lease_leaves_time_to_kill_and_to_make_sure():
    lease = lease_from(100.0, 40.0)
    assert 100 < lease.fence_at_s < lease.fence_at_s + lease.grace_s < 140


# -- what is told


@pytest.mark.parametrize(
    ("held", "state"),
    [
        (run(phase=Phase.STARTING), AttemptState.STARTING),
        (run(), AttemptState.RUNNING),
        (run(stop=STOPPED), AttemptState.STOPPING),
        (run(phase=Phase.STARTING, stop=STOPPED), AttemptState.STOPPING),
        (run(phase=Phase.LOST), AttemptState.RUNNING),
        (run(phase=Phase.ENDED, exit=ended()), AttemptState.RUNNING),
        (run(phase=Phase.ENDED, exit=ended(), stop=STOPPED), AttemptState.STOPPING),
        (run(phase=Phase.ENDED, exit=ended(), shipped=True), AttemptState.ENDED),
    ],
)
def test_the_state_of_a_run(held, state):
    [report] = say([assignment()], [held])
    assert report.state == state
    assert (report.reason is not None) == (state == AttemptState.ENDED)
    assert report.clean == (state == AttemptState.ENDED)


def test_the_end_of_a_run_is_told_in_full():
    held = run(phase=Phase.ENDED, exit=ended(EndReason.FAILED, clean=False, exit_code=-9), shipped=True)
    [report] = say([assignment()], [held])
    assert (report.reason, report.exit_code, report.clean) == (EndReason.FAILED, -9, False)


def test_a_chosen_rendezvous_is_told():
    [report] = say([assignment(**GANG)], rendezvous={"a1": "10.0.0.1:20000"})
    assert (report.state, report.rendezvous) == (AttemptState.STARTING, "10.0.0.1:20000")


@pytest.mark.parametrize("chosen", [{}, {"a1": "10.0.0.1:20000"}])
def test_a_stop_before_the_start_ends_the_attempt_at_once(chosen):
    [report] = say([assignment(**GANG, desired=Desired.STOP)], rendezvous=chosen)
    assert (report.state, report.reason, report.clean) == (AttemptState.ENDED, EndReason.CANCELLED, True)


def test_an_attempt_that_left_no_record_is_told_only_once_nothing_of_it_is_left():
    wanted = [assignment(observed=AttemptState.RUNNING)]
    assert say(wanted) == []
    [report] = say(wanted, cleared={"a1": "no record"})
    assert (report.state, report.reason) == (AttemptState.ENDED, EndReason.UNKNOWN_START)
    assert (report.clean, report.message) == (True, "no record")


def test_what_the_service_did_not_list_is_not_told():
    assert say([], [run()], rendezvous={"a2": "x:1"}, cleared={"a3": "gone"}) == []


# -- properties

attempts = st.sampled_from(["a1", "a2", "a3"])
wants = st.builds(
    assignment,
    attempts,
    desired=st.sampled_from(Desired),
    observed=st.sampled_from(AttemptState),
    member=st.sampled_from([0, 1]),
    members=st.just(2),
    rendezvous=st.sampled_from([None, "10.0.0.1:20000"]),
)
holds = st.builds(
    run,
    attempts,
    st.sampled_from([Phase.STARTING, Phase.RUNNING, Phase.LOST]),
    stop=st.sampled_from([None, STOPPED]),
) | st.builds(run, attempts, st.just(Phase.ENDED), exit=st.builds(ended, clean=st.booleans()), shipped=st.booleans())
unique = {"unique_by": lambda item: item.attempt}


@given(
    wanted=st.none() | st.lists(wants, **unique),
    held=st.lists(holds, **unique),
    cleared=st.dictionaries(attempts, st.just("gone")),
    rendezvous=st.dictionaries(attempts, st.just("10.0.0.1:20000")),
    lease=st.sampled_from([None, VALID, OVER]),
    closing=st.booleans(),
)
def test_whatever_the_state(wanted, held, cleared, rendezvous, lease, closing):
    actions = decide(wanted, held, cleared=cleared, rendezvous=rendezvous, lease=lease, closing=closing)
    records = {item.attempt: item for item in held}
    listed = {item.attempt: item for item in wanted or []}
    subjects = [item.assignment.attempt if isinstance(item, StartRun) else item.attempt for item in actions]
    assert len(subjects) == len(set(subjects)), "one action an attempt"
    for action, attempt in zip(actions, subjects, strict=True):
        if isinstance(action, StartRun | ChooseRendezvous):
            assert listed[attempt].desired == Desired.RUN
            assert lease == VALID
            assert not closing
        if isinstance(action, StartRun | ChooseRendezvous | ClearUnknown):
            assert attempt not in records, "a record means it was started before"
            assert attempt not in cleared
        if isinstance(action, ForgetRun):
            assert wanted is not None
            assert attempt not in listed, "the service still wants to hear of it"
            assert records[attempt].exit.clean
        if isinstance(action, StopRun | KillSupervisor):
            assert records[attempt].phase in (Phase.STARTING, Phase.RUNNING)
    stopped = {action.attempt for action in actions if isinstance(action, StopRun)}
    for item in held:
        must_stop = closing or lease == OVER or (wanted is not None and item.attempt not in listed)
        if item.phase in (Phase.STARTING, Phase.RUNNING) and must_stop and not item.stop:
            assert item.attempt in stopped
        if item.phase is Phase.LOST:
            assert SettleRun(attempt=item.attempt) in actions
    for report in say(wanted or [], held, cleared=cleared, rendezvous=rendezvous):
        if report.clean:
            record = records.get(report.attempt)
            assert record is None or record.exit.clean, "devices are free only when nothing is left"


def test_ranks_that_may_outlast_the_lease_do_and_still_end_when_they_are_told_to():
    held = run(outlasts_lease=True)
    assert decide([assignment()], [held], lease=OVER) == []
    assert names(decide([assignment()], [run()], lease=OVER)) == ["StopRun"]
    assert names(decide([assignment(desired=Desired.STOP)], [held], lease=OVER)) == ["StopRun"]
    assert names(decide([], [held], lease=OVER)) == ["StopRun"]
    assert names(decide([assignment()], [held], lease=OVER, closing=True)) == ["StopRun"]


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (run(attempt="try-old"), ["StopRun"]),
        (run(attempt="try-old", stop=STOPPED), []),
        (run(attempt="try-old", phase=Phase.LOST), ["SettleRun"]),
        (run(attempt="try-old", phase=Phase.ENDED, exit=ended(clean=False)), []),
        (run(attempt="try-old", phase=Phase.ENDED, exit=ended()), ["ForgetRun", "StartRun"]),
    ],
)
def test_nothing_starts_beside_what_should_not_be_here_any_more(left, expected):
    assert names(decide([assignment()], [left])) == expected

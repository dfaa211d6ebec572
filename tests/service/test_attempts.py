"""The agents' exchange: attempts move forward by what agents report, whatever is lost, doubled or late on the way."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from protocol.jobs import AttemptView
from protocol.states import AttemptState, Desired, EndReason
from protocol.sync import MemberReport, RegisterRequest, StreamChunk, SyncRequest
from protocol.version import PROTOCOL_VERSION
from service import nodes, sync
from service.refusals import ProtocolMismatch, UnknownIncarnation
from tests.service.cluster import Cluster, member_report, node_report
from tests.service.conftest import bearer

A, R = AttemptState, EndReason
ORDER = list(A)


@pytest.fixture
def gang(cluster: Cluster) -> AttemptView:
    """The first attempt of a job with a member of one device on n1 and another on n2."""
    cluster.join("n1")
    cluster.join("n2")
    return cluster.place(cluster.submit(nodes=2), "n1", "n2")


def job_of(cluster: Cluster, attempt: AttemptView) -> str:
    """The job of an attempt that still holds its node."""
    return next(item.job for item in cluster.sync("n1").assignments if item.attempt == attempt.id)


def start(cluster: Cluster, attempt: AttemptView, *names: str) -> None:
    for name in names:
        cluster.tell(name, attempt, A.RUNNING)


def test_an_assignment_says_all_that_an_agent_needs(cluster: Cluster) -> None:
    cluster.join("n1", slots=4)
    cluster.join("n2", slots=4)
    job = cluster.submit(
        name="train",
        nodes=2,
        devices_per_node=2,
        ranks_per_node=1,
        cpu_cores_per_node=1.5,
        memory_bytes_per_node=1 << 20,
        command=["python", "train.py"],
        env={"A": "1"},
        time_limit_s=60,
    )
    attempt = cluster.place(job, "n1", "n2")
    for number, name in enumerate(("n1", "n2")):
        (item,) = cluster.sync(name).assignments
        assert (item.attempt, item.job, item.epoch) == (attempt.id, job, 1)
        assert (item.job_name, item.user) == ("train", "alice")
        assert (item.desired, item.observed) == (Desired.RUN, A.GRANTED)
        assert (item.command, item.recipe, item.env) == (["python", "train.py"], None, {"A": "1"})
        assert (item.member, item.members, item.ranks) == (number, 2, 1)
        assert [device.id for device in item.devices] == [f"cpu:{name}:0", f"cpu:{name}:1"]
        assert [(device.kind, device.index, device.thousandths) for device in item.devices] == [
            ("cpu", 0, 1000),
            ("cpu", 1, 1000),
        ]
        assert (item.cpu_cores, item.memory_bytes, item.time_limit_s) == (1.5, 1 << 20, 60)
        assert item.stop_grace_s == cluster.settings.stop_grace_s
        assert (item.rendezvous, item.offsets) == (None, {})


def test_a_gang_starts_runs_and_completes(cluster: Cluster, gang: AttemptView) -> None:
    job = job_of(cluster, gang)
    assert cluster.job(job).state == "starting"
    cluster.advance(1)
    cluster.tell("n1", gang, A.STARTING)
    cluster.tell("n1", gang, A.RUNNING)
    cluster.tell("n2", gang, A.STARTING)
    assert (cluster.job(job).state, cluster.job(job).attempts[0].state) == ("starting", A.STARTING)
    cluster.advance(1)
    cluster.tell("n2", gang, A.RUNNING)
    running = cluster.job(job)
    assert (running.state, running.started_at) == ("running", cluster.now)
    assert (running.attempts[0].state, running.attempts[0].started_at) == (A.RUNNING, cluster.now)
    cluster.end("n1", gang)
    assert cluster.job(job).state == "running"
    cluster.advance(1)
    cluster.end("n2", gang)
    done = cluster.job(job)
    assert (done.state, done.reason, done.exit_code) == ("succeeded", "every rank exited with 0", 0)
    assert (done.started_at, done.ended_at) == (running.started_at, cluster.now)
    assert (done.attempts[0].state, done.attempts[0].reason) == (A.ENDED, R.COMPLETED)
    assert cluster.events(job) == ["submitted", "placed", "running", "attempt_ended", "ended"]
    assert cluster.held_devices() == set()
    assert cluster.sync("n1").assignments == cluster.sync("n2").assignments == []


def test_the_rendezvous_that_member_0_chose_reaches_all_and_stays(cluster: Cluster, gang: AttemptView) -> None:
    before = cluster.sync("n2").version
    cluster.tell("n2", gang, A.STARTING, rendezvous="10.0.0.2:1")  # not its to choose
    assert cluster.sync("n2").assignments[0].rendezvous is None
    assert cluster.sync("n2").version == before, "what the agent itself observed is no change of what it should hold"
    cluster.tell("n1", gang, A.STARTING, rendezvous="10.0.0.1:1")
    cluster.tell("n1", gang, A.RUNNING, rendezvous="10.0.0.1:2")
    for name in ("n1", "n2"):
        assert cluster.sync(name).assignments[0].rendezvous == "10.0.0.1:1"
    assert cluster.sync("n2").version != before


@pytest.mark.parametrize(
    ("reason", "exit_code", "message", "state", "sentence"),
    [
        (R.COMPLETED, 0, None, "succeeded", "every rank exited with 0"),
        (R.FAILED, 3, "rank 0 exited with 3", "failed", "a rank failed: rank 0 exited with 3"),
        (R.FAILED, -9, None, "failed", "a rank failed"),
        (R.TIME_LIMIT, -15, None, "failed", "it ran past its time limit"),
        (R.DISK_QUOTA, -9, "2 GiB", "failed", "it wrote more to the disk than it may: 2 GiB"),
        (R.OUT_OF_MEMORY, -9, "1 GiB", "failed", "it ran out of memory: 1 GiB"),
        (R.START_FAILED, None, "no such file: nope", "failed", "the program could not be started: no such file: nope"),
    ],
)
def test_the_end_of_a_rank_is_the_end_of_its_job(
    cluster: Cluster, reason: EndReason, exit_code: int | None, message: str | None, state: str, sentence: str
) -> None:
    cluster.join("n1")
    job = cluster.submit(time_limit_s=60)
    attempt = cluster.place(job, "n1")
    cluster.tell("n1", attempt, A.ENDED, reason=reason, exit_code=exit_code, message=message)
    ended = cluster.job(job)
    assert (ended.state, ended.exit_code, ended.reason) == (state, exit_code, sentence)
    assert ended.attempts[0].members[0].message == message
    assert cluster.held_devices() == {"cpu:n1:0"}, "held until the agent says that nothing is left"
    cluster.tell("n1", attempt, A.ENDED, reason=reason, exit_code=exit_code, message=message, clean=True)
    assert cluster.held_devices() == set()
    assert cluster.job(job) == ended


def test_when_a_member_fails_the_others_are_stopped_and_the_failure_is_the_reason(
    cluster: Cluster, gang: AttemptView
) -> None:
    job = job_of(cluster, gang)
    start(cluster, gang, "n1", "n2")
    before = cluster.sync("n1").version
    cluster.end("n2", gang, R.FAILED, 7)
    assert cluster.job(job).state == "running"
    (item,) = cluster.sync("n1").assignments
    assert item.desired == Desired.STOP
    assert cluster.sync("n1").version != before
    cluster.end("n1", gang, R.CANCELLED, -15)  # an agent knows that it was told to stop, not why
    ended = cluster.job(job)
    assert (ended.state, ended.exit_code, ended.reason) == ("failed", 7, "a rank failed")
    members = {member.node: (member.reason, member.exit_code) for member in ended.attempts[0].members}
    assert members == {"n1": (R.PEER_ENDED, -15), "n2": (R.FAILED, 7)}
    assert cluster.held_devices() == set()


def test_a_gang_that_says_nothing_is_stopped_and_runs_again(cluster: Cluster) -> None:
    cluster.join("n1")
    cluster.join("n2")
    job = cluster.submit(nodes=2, stall_timeout_s=60)
    gang = cluster.place(job, "n1", "n2")
    assert cluster.sync("n1").assignments[0].stall_timeout_s == 60
    start(cluster, gang, "n1", "n2")

    def desired(node: str, *, quiet: bool) -> str:
        return cluster.tell(node, gang, A.RUNNING, quiet=quiet).assignments[0].desired

    assert desired("n1", quiet=True) == "run", "rank 0 alone may do all the talking"
    assert desired("n1", quiet=False) == "run"
    assert desired("n2", quiet=True) == "run"
    assert desired("n1", quiet=True) == "stop"
    assert cluster.sync("n2").assignments[0].desired == "stop"
    for node in ("n1", "n2"):
        cluster.tell(node, gang, A.ENDED, reason=R.CANCELLED, message=f"{node} hung", exit_code=-15, clean=True)
    waiting = cluster.job(job)
    assert (waiting.state, waiting.attempts[0].reason) == ("queued", R.STALLED)
    assert {member.reason for member in waiting.attempts[0].members} == {R.STALLED}
    assert waiting.verdict is not None
    assert "its ranks lived and did nothing: n1 hung" in waiting.verdict.reasons[0].message


def test_a_lost_node_ends_the_attempt_and_the_job_runs_again(cluster: Cluster, gang: AttemptView) -> None:
    job = job_of(cluster, gang)
    start(cluster, gang, "n1", "n2")
    cluster.advance(100)
    assert cluster.lose("n2")
    assert cluster.job(job).state == "running", "a member still runs elsewhere"
    assert cluster.sync("n1").assignments[0].desired == Desired.STOP
    cluster.end("n1", gang, R.CANCELLED, -15)
    waiting = cluster.job(job)
    assert (waiting.state, waiting.epoch, waiting.ended_at, waiting.reason) == ("queued", 1, None, None)
    assert waiting.attempts[0].reason == R.NODE_LOST
    assert cluster.events(job)[-2:] == ["attempt_ended", "requeued"]
    # Its ranks may still run there, so nobody else gets the devices.
    assert cluster.held_devices() == {"cpu:n2:0"}
    cluster.join("n3")
    second = cluster.place(job, "n1", "n3")
    assert (second.epoch, cluster.job(job).epoch) == (2, 2)
    # The node is back: it is told to stop what it has, and says when it is clean.
    (item,) = cluster.sync("n2").assignments
    assert (item.attempt, item.desired) == (gang.id, Desired.STOP)
    assert cluster.job(job).state == "starting"
    cluster.end("n2", gang, R.FENCED, -9)
    assert cluster.held_devices() == {"cpu:n1:0", "cpu:n3:0"}
    assert [attempt.reason for attempt in cluster.job(job).attempts] == [R.NODE_LOST, None]
    start(cluster, second, "n1", "n3")
    cluster.end("n1", second)
    cluster.end("n3", second)
    assert cluster.job(job).state == "succeeded"


def test_a_node_that_was_heard_in_the_meantime_is_not_lost(cluster: Cluster, gang: AttemptView) -> None:
    with cluster.engine.begin() as tx:
        before = cluster.now
        cluster.advance(1)
        sync.take(tx, "n1", request(cluster, "n1"), max_attempts=3, now=cluster.now)
        assert not nodes.lose(tx, "n1", last_seen_at=before, max_attempts=3, now=cluster.now)
    assert cluster.job(job_of(cluster, gang)).state == "starting"


def test_a_machine_that_booted_has_nothing_left_of_before(cluster: Cluster, gang: AttemptView) -> None:
    job = job_of(cluster, gang)
    start(cluster, gang, "n1", "n2")
    cluster.join("n2", boot_id="boot-2")
    assert cluster.held_devices() == {"cpu:n1:0"}
    assert cluster.sync("n2").assignments == []
    cluster.end("n1", gang, R.CANCELLED, -15)
    assert (cluster.job(job).state, cluster.job(job).attempts[0].reason) == ("queued", R.NODE_LOST)
    assert cluster.held_devices() == set()


def test_a_node_lost_and_then_booted_gives_its_devices_back(cluster: Cluster, gang: AttemptView) -> None:
    start(cluster, gang, "n1", "n2")
    cluster.lose("n1")
    cluster.lose("n2")
    assert cluster.held_devices() == {"cpu:n1:0", "cpu:n2:0"}
    for name in ("n1", "n2"):
        cluster.join(name, boot_id="boot-2")
    assert cluster.held_devices() == set()


def test_an_agent_that_starts_again_on_a_machine_that_did_not_boot_keeps_its_attempts(
    cluster: Cluster, gang: AttemptView
) -> None:
    start(cluster, gang, "n1", "n2")
    cluster.join("n2")
    assert cluster.incarnations["n2"] == 2
    (item,) = cluster.sync("n2").assignments
    assert (item.attempt, item.desired, item.observed) == (gang.id, Desired.RUN, A.RUNNING)


def test_attempts_are_not_repeated_without_end(cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit()
    for epoch in range(1, cluster.settings.max_attempts + 1):
        assert cluster.job(job).state == "queued"
        attempt = cluster.place(job, "n1")
        assert attempt.epoch == epoch
        cluster.end("n1", attempt, R.UNKNOWN_START, None)
    ended = cluster.job(job)
    assert (ended.state, ended.reason) == (
        "failed",
        "its node cannot tell whether it ran; with 3 attempts lost it is not tried again",
    )
    assert cluster.events(job).count("requeued") == cluster.settings.max_attempts - 1


def test_an_agent_that_another_has_replaced_is_refused_and_changes_nothing(
    client: TestClient, cluster: Cluster, gang: AttemptView
) -> None:
    job, old = job_of(cluster, gang), cluster.incarnations["n2"]
    cluster.join("n2")
    before = cluster.row_counts(), cluster.job(job)
    report = member_report(gang, A.RUNNING).model_dump(mode="json")
    body = {"protocol": PROTOCOL_VERSION, "incarnation": old, "members": [report]}
    refused = client.post("/v1/agent/sync", json=body, headers=bearer(cluster.node_token("n2")))
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:ergon:stale-incarnation")
    assert "another agent has registered with this name" in refused.json()["detail"]
    assert (cluster.row_counts()["tokens"], cluster.job(job)) == (before[0]["tokens"] + 1, before[1])


def test_an_agent_whose_registration_a_restore_has_undone_is_asked_to_register_again(
    client: TestClient, cluster: Cluster, gang: AttemptView
) -> None:
    body = {"protocol": PROTOCOL_VERSION, "incarnation": cluster.incarnations["n2"] + 1}
    refused = client.post("/v1/agent/sync", json=body, headers=bearer(cluster.node_token("n2")))
    assert (refused.status_code, refused.json()["type"]) == (410, "urn:ergon:unknown-incarnation")
    assert "restored from a backup; register again" in refused.json()["detail"]
    cluster.incarnations["n4"] = 1  # the node itself is not known any more
    with pytest.raises(UnknownIncarnation):
        cluster.sync("n4")


def request(cluster: Cluster, name: str) -> SyncRequest:
    return SyncRequest(protocol=PROTOCOL_VERSION, incarnation=cluster.incarnations[name])


@pytest.mark.parametrize(("version", "older"), [(PROTOCOL_VERSION + 1, "service"), (PROTOCOL_VERSION - 1, "agent")])
def test_an_agent_of_another_protocol_is_told_what_to_upgrade(cluster: Cluster, version: int, older: str) -> None:
    cluster.join("n1")
    register = RegisterRequest(protocol=version, report=node_report("n1", 2))
    exchange = request(cluster, "n1").model_copy(update={"protocol": version})
    with cluster.engine.begin() as tx:
        with pytest.raises(ProtocolMismatch, match=f"upgrade the {older}"):
            nodes.register(tx, "n1", register, lease_s=60, max_attempts=3, now=cluster.now)
        with pytest.raises(ProtocolMismatch, match=f"upgrade the {older}"):
            sync.take(tx, "n1", exchange, max_attempts=3, now=cluster.now)


def test_reports_that_are_not_about_a_held_member_change_nothing(cluster: Cluster, gang: AttemptView) -> None:
    job = job_of(cluster, gang)
    start(cluster, gang, "n1", "n2")
    cluster.join("n3")
    before = cluster.job(job)
    end = {"state": A.ENDED, "reason": R.FAILED, "exit_code": 1, "clean": True}
    cluster.sync("n2", MemberReport.model_validate({"attempt": gang.id, "epoch": gang.epoch + 1, **end}))
    cluster.sync("n2", MemberReport.model_validate({"attempt": "try-none", "epoch": 1, **end}))
    cluster.sync("n3", MemberReport.model_validate({"attempt": gang.id, "epoch": gang.epoch, **end}))
    assert cluster.job(job) == before
    assert cluster.held_devices() == {"cpu:n1:0", "cpu:n2:0"}


def test_what_an_old_attempt_reports_does_not_touch_the_new_one(cluster: Cluster) -> None:
    cluster.join("n1")
    cluster.join("n2")
    job = cluster.submit()
    first = cluster.place(job, "n1")
    cluster.tell("n1", first, A.RUNNING)
    cluster.lose("n1")
    second = cluster.place(job, "n2")
    cluster.tell("n2", second, A.RUNNING)
    before = cluster.job(job)
    cluster.tell("n1", first, A.RUNNING)
    cluster.tell("n1", first, A.ENDED, reason=R.COMPLETED, exit_code=0)
    cluster.end("n1", first)
    assert cluster.job(job) == before
    assert cluster.held_devices() == {"cpu:n2:0"}


def test_two_agents_of_a_gang_never_wait_for_each_other_in_a_circle(cluster: Cluster, gang: AttemptView) -> None:
    wrote = StreamChunk(attempt=gang.id, rank=0, stream="progress", offset=0, data=b'{"step": 1}\n')
    runs = member_report(gang, A.RUNNING)
    blocked = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with ThreadPoolExecutor() as threads, cluster.engine.connect() as connection:
        watch = connection.execution_options(isolation_level="AUTOCOMMIT")
        with cluster.engine.begin() as tx:  # the other agent's exchange, half way
            half = request(cluster, "n2").model_copy(update={"chunks": [wrote.model_copy(update={"rank": 1})]})
            sync.take(tx, "n2", half, max_attempts=3, now=cluster.now)
            exchange = threads.submit(cluster.sync, "n1", runs, chunks=[wrote])
            while not watch.execute(blocked).scalar_one():
                assert not exchange.done()
            rest = request(cluster, "n2").model_copy(update={"members": [runs]})
            sync.take(tx, "n2", rest, max_attempts=3, now=cluster.now)
        exchange.result()
    assert cluster.job(job_of(cluster, gang)).state == "running"


_names = itertools.count()
_ends = st.sampled_from([R.COMPLETED, R.FAILED, R.TIME_LIMIT, R.START_FAILED, R.UNKNOWN_START, R.FENCED])


def _life(attempt: AttemptView, reason: EndReason) -> Iterator[MemberReport]:
    """Everything an agent says of its member from the grant to the end."""
    for state in (A.GRANTED, A.STARTING, A.RUNNING, A.STOPPING):
        yield member_report(attempt, state)
    for clean in (False, True):
        yield member_report(attempt, A.ENDED, reason=reason, exit_code=list(R).index(reason), clean=clean)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(reason=_ends, which=st.integers(0, 1), data=st.data())
def test_reports_doubled_and_in_any_order_end_the_same(
    cluster: Cluster, reason: EndReason, which: int, data: st.DataObject
) -> None:
    names = [f"m{next(_names)}" for _ in range(2)]
    for name in names:
        cluster.join(name, slots=1)
    job = cluster.submit(nodes=2)
    attempt = cluster.place(job, *names)
    ends = {names[which]: reason, names[1 - which]: R.COMPLETED}
    said = [(name, report) for name in names for report in _life(attempt, ends[name])]
    doubled = said + data.draw(st.lists(st.sampled_from(said), max_size=8))
    furthest = dict.fromkeys(names, A.GRANTED) | {"attempt": A.GRANTED}
    for name, report in data.draw(st.permutations(doubled)):
        cluster.sync(name, report)
        view = cluster.job(job).attempts[0]
        states = {member.node: member.state for member in view.members} | {"attempt": view.state}
        for which_one, state in states.items():
            assert ORDER.index(state) >= ORDER.index(furthest[which_one]), "states only move forward"
        furthest = states
    end = cluster.job(job)
    expected = {R.COMPLETED: "succeeded", R.UNKNOWN_START: "queued", R.FENCED: "queued"}.get(reason, "failed")
    assert (end.state, end.epoch) == (expected, 1)
    assert end.exit_code == (None if expected == "queued" else list(R).index(reason))
    assert (end.attempts[0].state, end.attempts[0].reason) == (A.ENDED, reason)
    assert {member.node: member.reason for member in end.attempts[0].members} == ends
    assert [kind for kind in cluster.events(job) if kind != "running"] == [
        "submitted",
        "placed",
        "attempt_ended",
        "requeued" if expected == "queued" else "ended",
    ]
    assert all(cluster.sync(name).assignments == [] for name in names)
    assert not cluster.held_devices() & {f"cpu:{name}:0" for name in names}
    if expected == "queued":
        cluster.cancel(job)

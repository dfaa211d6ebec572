"""Cordon and drain: nothing new, what runs gets its time, and no job is blamed for the node it was on."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from protocol.states import AttemptState, Desired, EndReason, JobState
from scheduler.learning import outlook_of_past
from scheduler.problem import Budget
from scheduler.solve import solve
from service.cycle.commit import Overtaken
from service.cycle.loop import Cycle
from tests.service.cluster import Cluster, placement_on

Headers = dict[str, str]


@pytest.fixture
def cycle(cluster: Cluster) -> Cycle:
    """A cycle that leads and looks after nodes. There is never anything to plan."""

    def solve(*_: object) -> Any:
        raise AssertionError("nothing waits")

    return Cycle(
        cluster.engine,
        cluster.settings.model_copy(update={"tick_s": 3_600.0}),
        holder="test",
        solve=solve,
        now=lambda: cluster.now,
        clock_s=cluster.clock_s,
        new_id=cluster.new_id,
        learn=outlook_of_past,
    )


def act(client: TestClient, headers: Headers, action: str, body: dict[str, object] | None = None) -> dict[str, Any]:
    answer = client.post(f"/v1/nodes/n1/{action}", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def open_nodes(cluster: Cluster) -> set[str]:
    return {node.id for node in cluster.problem()[0].nodes if node.open}


def desired(cluster: Cluster, node: str) -> list[Desired]:
    return [assignment.desired for assignment in cluster.sync(node).assignments]


def test_a_cordoned_node_keeps_what_it_has_and_gets_nothing_new(
    client: TestClient, cluster: Cluster, as_root: Headers
) -> None:
    for name in ("n1", "n2"):
        cluster.join(name)
    running, waiting = cluster.submit(), cluster.submit()
    cluster.place(running, "n1")
    problem, seen = cluster.problem()
    view = act(client, as_root, "cordon")
    assert (view["cordoned"], view["drain_at"], view["state"]) == (True, None, "ready")
    assert open_nodes(cluster) == {"n2"}
    assert desired(cluster, "n1") == [Desired.RUN]
    with pytest.raises(Overtaken, match="node n1 is not as the plan saw it"):
        cluster.commit(placement_on(problem, waiting, ("n1",)), problem, seen)
    assert cluster.job(waiting).state == JobState.QUEUED
    cluster.join("n1")
    assert open_nodes(cluster) == {"n2"}, "an agent that starts again does not open its node"
    assert not act(client, as_root, "uncordon")["cordoned"]
    assert open_nodes(cluster) == {"n1", "n2"}


def test_a_drain_gives_time_then_stops_whole_gangs_and_requeues_them(
    client: TestClient, cluster: Cluster, as_root: Headers, cycle: Cycle
) -> None:
    for name in ("n1", "n2"):
        cluster.join(name)
    job, untouched = cluster.submit(nodes=2), cluster.submit()
    attempt = cluster.place(job, "n1", "n2")
    cluster.place(untouched, "n2")
    for name in ("n1", "n2"):
        cluster.tell(name, attempt, AttemptState.RUNNING)
    view = act(client, as_root, "drain", {"deadline_s": 30})
    assert (view["cordoned"], view["drain_at"]) == (True, "2026-01-01T00:00:30Z")
    assert open_nodes(cluster) == {"n2"}
    cluster.advance(29)
    cycle.step(woken=False)
    assert desired(cluster, "n1") == [Desired.RUN]
    cluster.advance(1)
    for name in ("n1", "n2"):
        cluster.sync(name)
    cycle.step(woken=False)
    assert desired(cluster, "n1") == [Desired.STOP]
    assert sorted(desired(cluster, "n2")) == [Desired.RUN, Desired.STOP]
    for name in ("n1", "n2"):
        cluster.end(name, attempt, EndReason.CANCELLED, None)
    view = cluster.job(job)
    assert view.state == JobState.QUEUED
    assert view.attempts[0].reason == EndReason.DRAINED
    assert {member.reason for member in view.attempts[0].members} == {EndReason.DRAINED}
    assert cluster.job(untouched).state == JobState.STARTING


def test_a_drain_without_time_stops_at_once_and_counts_as_no_try(
    client: TestClient, cluster: Cluster, as_root: Headers
) -> None:
    cluster.join("n1")
    job = cluster.submit()
    for _ in range(cluster.settings.max_attempts + 1):
        attempt = cluster.place(job, "n1")
        act(client, as_root, "drain", {"deadline_s": 0})
        assert desired(cluster, "n1") == [Desired.STOP]
        cluster.end("n1", attempt, EndReason.CANCELLED, None)
        assert cluster.job(job).state == JobState.QUEUED
        act(client, as_root, "uncordon")


def test_a_drain_that_is_called_off_stops_nothing(
    client: TestClient, cluster: Cluster, as_root: Headers, cycle: Cycle
) -> None:
    cluster.join("n1")
    cluster.place(cluster.submit(), "n1")
    act(client, as_root, "drain", {"deadline_s": 30})
    assert act(client, as_root, "cordon")["drain_at"] is None
    cluster.advance(31)
    cycle.step(woken=False)
    assert desired(cluster, "n1") == [Desired.RUN]


def test_who_cancels_while_a_node_drains_is_heard(client: TestClient, cluster: Cluster, as_root: Headers) -> None:
    cluster.join("n1")
    job = cluster.submit()
    attempt = cluster.place(job, "n1")
    act(client, as_root, "drain", {"deadline_s": 0})
    cluster.cancel(job)
    cluster.end("n1", attempt, EndReason.CANCELLED, None)
    assert cluster.job(job).state == JobState.CANCELLED


def test_a_job_that_waits_for_a_cordoned_node_is_told_why(
    client: TestClient, cluster: Cluster, as_root: Headers
) -> None:
    cluster.join("n1")
    act(client, as_root, "cordon")
    job = client.post("/v1/jobs", json={"command": ["true"]}).json()
    assert job["verdict"]["outcome"] == "waiting", "it is not impossible: the node may be opened again"
    [verdict] = solve(cluster.problem()[0], Budget()).verdicts
    assert [reason.code for reason in verdict.reasons] == ["nodes_closed", "devices_busy"]


@pytest.mark.parametrize("action", ["cordon", "uncordon", "drain"])
def test_only_an_administrator_and_only_nodes_that_are(
    client: TestClient, cluster: Cluster, as_root: Headers, action: str
) -> None:
    cluster.join("n1")
    assert client.post(f"/v1/nodes/n1/{action}", json={}).status_code == 403
    unknown = client.post(f"/v1/nodes/n2/{action}", json={}, headers=as_root)
    assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:ergon:unknown-node")


@pytest.mark.parametrize("deadline_s", [-1, 1e10, "soon"])
def test_deadlines_that_cannot_be_are_refused(client: TestClient, as_root: Headers, deadline_s: object) -> None:
    refused = client.post("/v1/nodes/n1/drain", json={"deadline_s": deadline_s}, headers=as_root)
    assert refused.status_code == 422
    assert [error["field"] for error in refused.json()["errors"]] == ["deadline_s"]

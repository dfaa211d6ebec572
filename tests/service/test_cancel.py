"""Cancelling a job in every state: a clear answer, and in the end nothing runs, nothing is held, nothing is stuck."""

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from protocol.jobs import AttemptView
from protocol.states import AttemptState, Desired, EndReason, JobState
from service.models import jobs as jobs_table
from tests.service.cluster import Cluster

A, R = AttemptState, EndReason


def queued(cluster: Cluster) -> str:
    return cluster.submit(nodes=2)


def held(cluster: Cluster) -> str:
    job = queued(cluster)
    with cluster.engine.begin() as tx:  # no use case holds jobs yet
        tx.execute(update(jobs_table).where(jobs_table.c.id == job).values(state=JobState.HELD.value))
    return job


def granted(cluster: Cluster) -> str:
    job = queued(cluster)
    cluster.place(job, "n1", "n2")
    return job


def starting(cluster: Cluster) -> str:
    job = granted(cluster)
    report(cluster, job, A.STARTING)
    return job


def running(cluster: Cluster) -> str:
    job = granted(cluster)
    report(cluster, job, A.RUNNING)
    return job


def report(cluster: Cluster, job: str, state: AttemptState) -> None:
    for node in ("n1", "n2"):
        cluster.tell(node, attempt_of(cluster, job), state)


def attempt_of(cluster: Cluster, job: str) -> AttemptView:
    return cluster.job(job).attempts[-1]


def ended(cluster: Cluster, reason: EndReason) -> str:
    job = running(cluster)
    for node in ("n1", "n2"):
        cluster.end(node, attempt_of(cluster, job), reason)
    return job


@pytest.fixture
def two_nodes(cluster: Cluster) -> Cluster:
    cluster.join("n1")
    cluster.join("n2")
    return cluster


@pytest.mark.parametrize("state", [queued, held], ids=["queued", "held"])
def test_a_job_that_waits_ends_at_once(two_nodes: Cluster, client: TestClient, state: Callable[[Cluster], str]) -> None:
    job = state(two_nodes)
    two_nodes.advance(5)
    answer = client.post(f"/v1/jobs/{job}/cancel")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["state"], body["reason"], body["cancel_requested"]) == ("cancelled", "it was cancelled", True)
    assert (body["ended_at"], body["exit_code"], body["epoch"]) == ("2026-01-01T00:00:05Z", None, 0)
    assert two_nodes.events(job) == ["submitted", "cancel_requested", "ended"]
    assert two_nodes.problem()[0].jobs == ()
    assert client.post(f"/v1/jobs/{job}/cancel").json() == body, "asking again changes nothing"
    assert two_nodes.events(job) == ["submitted", "cancel_requested", "ended"]


@pytest.mark.parametrize(
    ("state", "before", "path"),
    [
        (granted, "starting", ["submitted", "placed"]),
        (starting, "starting", ["submitted", "placed"]),
        (running, "running", ["submitted", "placed", "running"]),
    ],
)
def test_a_job_that_has_devices_ends_when_its_ranks_are_gone(
    two_nodes: Cluster, client: TestClient, state: Callable[[Cluster], str], before: str, path: list[str]
) -> None:
    job = state(two_nodes)
    for _ in range(2):  # asking again changes nothing
        answer = client.post(f"/v1/jobs/{job}/cancel")
        assert answer.status_code == 200
        assert (answer.json()["state"], answer.json()["cancel_requested"]) == (before, True)
        assert answer.json()["attempts"][0]["state"] == "stopping"
        assert two_nodes.events(job) == [*path, "cancel_requested"]
    attempt = attempt_of(two_nodes, job)
    for node in ("n1", "n2"):
        assert [item.desired for item in two_nodes.sync(node).assignments] == [Desired.STOP]
    two_nodes.end("n1", attempt, R.CANCELLED, -15)
    assert two_nodes.job(job).state == before, "a member is left"
    assert {device.split(":")[1] for device in two_nodes.held_devices()} == {"n2"}
    two_nodes.advance(3)
    two_nodes.end("n2", attempt, R.CANCELLED, -15)
    ended = two_nodes.job(job)
    assert (ended.state, ended.reason, ended.exit_code) == ("cancelled", "it was cancelled", -15)
    assert ended.ended_at == two_nodes.now
    assert (ended.attempts[0].state, ended.attempts[0].reason) == (A.ENDED, R.CANCELLED)
    assert two_nodes.events(job) == [*path, "cancel_requested", "attempt_ended", "ended"]
    assert two_nodes.held_devices() == set()
    assert two_nodes.sync("n1").assignments == two_nodes.sync("n2").assignments == []
    assert client.post(f"/v1/jobs/{job}/cancel").status_code == 200, "asking again changes nothing"


def test_a_cancelled_job_whose_node_is_lost_is_cancelled_and_not_run_again(two_nodes: Cluster) -> None:
    job = running(two_nodes)
    two_nodes.cancel(job)
    two_nodes.end("n1", attempt_of(two_nodes, job), R.CANCELLED, -15)
    two_nodes.lose("n2")
    assert two_nodes.job(job).state == JobState.CANCELLED
    assert two_nodes.events(job)[-1] == "ended"


def test_a_job_that_finished_before_the_cancellation_reached_it_has_succeeded(two_nodes: Cluster) -> None:
    job = running(two_nodes)
    attempt = attempt_of(two_nodes, job)
    two_nodes.cancel(job)
    two_nodes.end("n1", attempt)
    two_nodes.end("n2", attempt)
    assert two_nodes.job(job).state == JobState.SUCCEEDED


@pytest.mark.parametrize(("reason", "state"), [(R.COMPLETED, "succeeded"), (R.FAILED, "failed")])
def test_a_job_that_has_ended_cannot_be_cancelled(
    two_nodes: Cluster, client: TestClient, reason: EndReason, state: str
) -> None:
    job = ended(two_nodes, reason)
    before, counts = two_nodes.job(job), two_nodes.row_counts()
    answer = client.post(f"/v1/jobs/{job}/cancel")
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:ergon:job-ended")
    assert answer.json()["detail"] == f"job {job} has already {state}"
    assert (two_nodes.job(job), two_nodes.row_counts()) == (before, counts)

"""The latest checkpoint of a job: it only moves to a later attempt, or a later step of the same."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from protocol.jobs import AttemptView, CheckpointMark
from protocol.states import AttemptState, EndReason, JobState
from tests.service.cluster import Cluster
from tests.service.conftest import bearer


@pytest.fixture
def cluster(cluster: Cluster) -> Cluster:
    cluster.join("n1", slots=4)
    cluster.join("n2", slots=4)
    return cluster


def latest(cluster: Cluster, job: str) -> tuple[int, int] | None:
    checkpoint = cluster.job(job).checkpoint
    return (checkpoint.epoch, checkpoint.step) if checkpoint else None


def save(cluster: Cluster, attempt: AttemptView, step: int, node: str = "n1") -> None:
    cluster.tell(node, attempt, AttemptState.RUNNING, checkpoint=step)


def stop(cluster: Cluster, attempt: AttemptView, **more: object) -> None:
    """The attempt is lost, and nothing of it is left."""
    report = {"reason": EndReason.NODE_LOST, "clean": True, **more}
    cluster.tell("n1", attempt, AttemptState.ENDED, **report)


@pytest.mark.parametrize(
    ("reports", "expected"),
    [([], None), ([0], 0), ([10, 20], 20), ([20, 10], 20), ([20, 20], 20), ([10, 30, 20], 30)],
)
def test_within_an_attempt_the_step_never_decreases(cluster: Cluster, reports: list[int], expected: int | None) -> None:
    job = cluster.submit()
    attempt = cluster.place(job, "n1")
    for step in reports:
        save(cluster, attempt, step)
    assert latest(cluster, job) == (None if expected is None else (1, expected))


def test_what_an_attempt_of_before_reports_late_changes_nothing(cluster: Cluster) -> None:
    job = cluster.submit()
    first = cluster.place(job, "n1")
    save(cluster, first, 10)
    cluster.lose("n1")
    second = cluster.place(job, "n2")
    save(cluster, first, 20)
    assert latest(cluster, job) == (1, 10)
    save(cluster, second, 15, "n2")
    save(cluster, first, 30)
    assert latest(cluster, job) == (2, 15)


def test_a_later_attempt_that_begins_again_from_earlier_counts(cluster: Cluster) -> None:
    job = cluster.submit()
    attempt = cluster.place(job, "n1")
    save(cluster, attempt, 100)
    stop(cluster, attempt)
    save(cluster, cluster.place(job, "n1"), 5)
    assert latest(cluster, job) == (2, 5)


def test_one_that_is_told_with_the_end_counts_and_the_next_attempt_goes_on_there(cluster: Cluster) -> None:
    job = cluster.submit(nodes=2, stop_grace_s=7)
    attempt = cluster.place(job, "n1", "n2")
    [assignment] = cluster.sync("n1").assignments
    assert (assignment.checkpoint, assignment.stop_grace_s) == (None, 7)
    stop(cluster, attempt, checkpoint=40)
    cluster.end("n2", attempt, EndReason.CANCELLED, None)
    cluster.place(job, "n1", "n2")
    marks = [cluster.sync(node).assignments[0].checkpoint for node in ("n1", "n2")]
    assert marks == [CheckpointMark(epoch=1, step=40)] * 2


def test_a_checkpoint_wakes_no_agent(cluster: Cluster) -> None:
    attempt = cluster.place(cluster.submit(), "n1")
    before = cluster.tell("n1", attempt, AttemptState.RUNNING).version
    assert cluster.tell("n1", attempt, AttemptState.RUNNING, checkpoint=1).version == before


def test_of_reports_at_the_same_time_the_latest_stays(cluster: Cluster) -> None:
    job = cluster.submit(nodes=2)
    attempt = cluster.place(job, "n1", "n2")

    def report(node: str) -> None:
        for step in range(1, 11):
            save(cluster, attempt, step * 2 + (node == "n2"), node)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(report, ("n1", "n2")))
    assert latest(cluster, job) == (1, 21)


def test_the_database_refuses_a_checkpoint_of_an_attempt_that_never_was(cluster: Cluster) -> None:
    cluster.submit()
    for values in ("checkpoint_epoch = 1", "checkpoint_epoch = 1, checkpoint_step = 1, checkpoint_at = submitted_at"):
        with pytest.raises(Exception, match="jobs_checkpoint"), cluster.engine.begin() as tx:
            tx.execute(text(f"UPDATE jobs SET {values}"))


def test_folders_of_jobs_are_kept_until_their_output_goes_too(cluster: Cluster, client: TestClient) -> None:
    """Never while a job may still run, or something of it is left on a node, or where nobody knows it."""

    def expired(days: float) -> list[str]:
        cluster.advance(days * 86_400)
        headers = bearer(cluster.node_token("n1"))
        asked = [*jobs.values(), "job-nobody-knows"]
        answer = client.post("/v1/agent/checkpoint-folders", json={"jobs": asked}, headers=headers)
        return answer.json()["jobs"]

    jobs = {name: cluster.submit() for name in ("ended", "lost", "runs", "waits")}
    cluster.end("n1", cluster.place(jobs["ended"], "n1"))
    cluster.place(jobs["lost"], "n2")
    cluster.cancel(jobs["lost"])
    cluster.lose("n2")
    cluster.place(jobs["runs"], "n1")
    assert cluster.job(jobs["lost"]).state == JobState.CANCELLED
    keep_days = cluster.settings.keep_output_days
    assert expired(keep_days) == []
    assert expired(0.001) == [jobs["ended"]]
    assert expired(1_000) == [jobs["ended"]]
    cluster.join("n2", slots=4, boot_id="boot-2")
    assert expired(0) == [jobs["ended"], jobs["lost"]]

"""Every verb in every state of a job: what changes, what does not, and what is answered."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from protocol.states import AttemptState, EndReason
from tests.service.cluster import Cluster
from tests.service.test_run_times import report

A, R = AttemptState, EndReason


def queued(cluster: Cluster) -> str:
    return cluster.submit()


def held(cluster: Cluster) -> str:
    return act(cluster, queued(cluster), "hold")


def dependent(cluster: Cluster) -> str:
    return cluster.submit(after=[{"job": cluster.submit(), "on": "end"}])


def starting(cluster: Cluster) -> str:
    job = queued(cluster)
    cluster.place(job, "n1")
    return job


def running(cluster: Cluster) -> str:
    job = starting(cluster)
    cluster.tell("n1", cluster.job(job).attempts[-1], A.RUNNING)
    return job


def succeeded(cluster: Cluster) -> str:
    return ended(cluster, R.COMPLETED)


def failed(cluster: Cluster) -> str:
    return ended(cluster, R.FAILED)


def cancelled(cluster: Cluster) -> str:
    job = queued(cluster)
    cluster.cancel(job)
    return job


def ended(cluster: Cluster, reason: EndReason) -> str:
    job = running(cluster)
    cluster.end("n1", cluster.job(job).attempts[-1], reason)
    return job


def act(cluster: Cluster, job: str, verb: str) -> str:
    assert cluster.control(job, verb).id == job
    return job


@pytest.fixture
def cluster(cluster: Cluster) -> Cluster:
    cluster.join("n1", slots=4)
    return cluster


ENDED, STARTED, NOT_ENDED = "urn:ergon:job-ended", "urn:ergon:job-started", "urn:ergon:job-not-ended"

# Verb, state before, state after or kind of refusal, what has happened.
TABLE: list[tuple[str, Callable[[Cluster], str], str, list[str]]] = [
    ("hold", queued, "held", ["held"]),
    ("hold", held, "held", []),
    ("hold", dependent, "held", ["held"]),
    ("hold", starting, STARTED, []),
    ("hold", running, STARTED, []),
    ("hold", succeeded, ENDED, []),
    ("hold", failed, ENDED, []),
    ("hold", cancelled, ENDED, []),
    ("release", queued, "queued", []),
    ("release", held, "queued", ["released"]),
    ("release", dependent, "held", []),
    ("release", starting, "starting", []),
    ("release", running, "running", []),
    ("release", succeeded, ENDED, []),
    ("release", failed, ENDED, []),
    ("release", cancelled, ENDED, []),
    ("priority", queued, "queued", ["priority"]),
    ("priority", held, "held", ["priority"]),
    ("priority", dependent, "held", ["priority"]),
    ("priority", starting, "starting", ["priority"]),
    ("priority", running, "running", ["priority"]),
    ("priority", succeeded, ENDED, []),
    ("priority", failed, ENDED, []),
    ("priority", cancelled, ENDED, []),
    ("resubmit", queued, NOT_ENDED, []),
    ("resubmit", held, NOT_ENDED, []),
    ("resubmit", dependent, NOT_ENDED, []),
    ("resubmit", starting, NOT_ENDED, []),
    ("resubmit", running, NOT_ENDED, []),
    ("resubmit", succeeded, "succeeded", []),
    ("resubmit", failed, "failed", []),
    ("resubmit", cancelled, "cancelled", []),
]


@pytest.mark.parametrize(
    ("verb", "state", "expected", "happened"), TABLE, ids=[f"{row[0]}-{row[1].__name__}" for row in TABLE]
)
def test_every_verb_in_every_state(
    cluster: Cluster,
    client: TestClient,
    verb: str,
    state: Callable[[Cluster], str],
    expected: str,
    happened: list[str],
) -> None:
    job = state(cluster)
    before, events = cluster.job(job), cluster.events(job)
    for _ in range(2):  # a request may arrive twice
        if verb == "priority":
            answer = client.patch(f"/v1/jobs/{job}", json={"priority": 7})
        else:
            answer = client.post(f"/v1/jobs/{job}/{verb}")
        if expected.startswith("urn:"):
            body = answer.json()
            assert (answer.status_code, body["type"]) == (409, expected)
            assert job in body["detail"]
            assert before.state.value in body["detail"]
            assert cluster.job(job) == before
        else:
            assert answer.status_code == (201 if verb == "resubmit" else 200)
            assert cluster.job(job).state == expected
            assert cluster.job(job).spec == before.spec
            assert cluster.job(job).priority == (7 if verb == "priority" else 0)
        assert cluster.events(job) == events + happened


WAITS = "urn:ergon:job-waits"


@pytest.mark.parametrize(
    ("state", "refusal"),
    [(queued, WAITS), (held, WAITS), (dependent, WAITS), (starting, None), (running, None)]
    + [(end, ENDED) for end in (succeeded, failed, cancelled)],
)
def test_an_administrator_preempts_what_has_devices(
    cluster: Cluster,
    client: TestClient,
    as_root: dict[str, str],
    state: Callable[[Cluster], str],
    refusal: str | None,
) -> None:
    job = state(cluster)
    before, events = cluster.job(job), cluster.events(job)
    assert client.post(f"/v1/jobs/{job}/preempt").status_code == 403
    assert client.post("/v1/jobs/job-none/preempt", headers=as_root).status_code == 404
    for _ in range(2):
        answer = client.post(f"/v1/jobs/{job}/preempt", headers=as_root)
        if refusal:
            assert (answer.status_code, answer.json()["type"]) == (409, refusal)
            assert cluster.job(job) == before
            continue
        assert answer.status_code == 200
        assert cluster.events(job) == [*events, "preempted"]
    if refusal:
        return
    cluster.end("n1", before.attempts[-1], R.CANCELLED, None)
    after = cluster.job(job)
    assert (after.state, after.attempts[-1].reason, after.not_before) == ("queued", R.PREEMPTED, None)
    assert cluster.place(job, "n1").epoch == 2


def test_preemption_is_at_the_expense_of_neither_budget(
    cluster: Cluster, client: TestClient, as_root: dict[str, str]
) -> None:
    job = cluster.submit(max_retries=1)
    for _ in range(5):
        attempt = cluster.place(job, "n1")
        client.post(f"/v1/jobs/{job}/preempt", headers=as_root)
        cluster.end("n1", attempt, R.CANCELLED, 1)
        assert cluster.job(job).state == "queued"
    cluster.end("n1", cluster.place(job, "n1"), R.FAILED, 1)
    assert cluster.job(job).state == "queued", "its own retry is still there"


def test_a_preempted_job_that_completes_first_or_is_cancelled_stays_so(
    cluster: Cluster, client: TestClient, as_root: dict[str, str]
) -> None:
    for end, expected in ((R.COMPLETED, "succeeded"), (R.CANCELLED, "cancelled")):
        job = running(cluster)
        client.post(f"/v1/jobs/{job}/preempt", headers=as_root)
        if end == R.CANCELLED:
            cluster.cancel(job)
        cluster.end("n1", cluster.job(job).attempts[-1], end)
        assert cluster.job(job).state == expected


def test_a_job_that_is_asked_to_leave_has_succeeded_only_if_it_reached_its_end(
    cluster: Cluster, client: TestClient, as_root: dict[str, str]
) -> None:
    last = {"step": 10, "total_steps": 10}
    cases: list[tuple[dict[str, int], int | None, str]] = [
        (last, 0, "succeeded"),
        ({"epoch": 2, "total_epochs": 2}, 0, "succeeded"),
        (last, 1, "queued"),
        (last, None, "queued"),
        ({"step": 9, "total_steps": 10}, 0, "queued"),  # it has saved and wants to go on
        (last | {"epoch": 1, "total_epochs": 2}, 0, "queued"),
        ({"step": 10}, 0, "queued"),
    ]
    for told, exit_code, state in cases:
        job = running(cluster)
        attempt = cluster.job(job).attempts[-1]
        client.post(f"/v1/jobs/{job}/preempt", headers=as_root)
        report(cluster, attempt, **told)
        cluster.end("n1", attempt, R.CANCELLED, exit_code)
        after = cluster.job(job)
        assert (after.state, told, exit_code) == (state, told, exit_code)
        reason = R.COMPLETED if state == "succeeded" else R.PREEMPTED
        assert (after.attempts[-1].reason, len(after.attempts)) == (reason, 1)
        if state == "queued":
            cluster.cancel(job)


@pytest.mark.parametrize("verb", ["hold", "release", "resubmit"])
def test_a_job_of_somebody_else_is_unknown(
    cluster: Cluster, client: TestClient, as_bob: dict[str, str], as_root: dict[str, str], verb: str
) -> None:
    job = failed(cluster) if verb == "resubmit" else queued(cluster)
    answer = client.post(f"/v1/jobs/{job}/{verb}", headers=as_bob)
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:ergon:unknown-job")
    assert client.patch(f"/v1/jobs/{job}", json={"priority": 1}, headers=as_bob).status_code == 404
    assert client.post(f"/v1/jobs/job-none/{verb}").status_code == 404
    allowed = client.post(f"/v1/jobs/{job}/{verb}", headers=as_root)
    assert allowed.status_code < 300
    assert allowed.json()["user"] == "alice"


@pytest.mark.parametrize("body", [{}, {"priority": 1001}, {"priority": "high"}, {"priority": 1, "queue": "x"}, None])
def test_a_change_that_cannot_be_made(cluster: Cluster, client: TestClient, body: object) -> None:
    job = queued(cluster)
    assert client.patch(f"/v1/jobs/{job}", json=body).status_code == 422
    assert cluster.job(job).priority == 0


def test_a_held_job_is_not_planned_and_says_why(cluster: Cluster) -> None:
    job = held(cluster)
    assert cluster.problem()[0].jobs == ()
    assert [reason.code for reason in reasons(cluster, job)] == ["held"]
    act(cluster, job, "release")
    assert [each.id for each in cluster.problem()[0].jobs] == [job]


def test_a_higher_priority_is_first_in_line(cluster: Cluster, client: TestClient) -> None:
    first, second = queued(cluster), queued(cluster)
    client.patch(f"/v1/jobs/{second}", json={"priority": 1})
    assert [(each.id, each.priority) for each in cluster.problem()[0].jobs] == [(second, 1), (first, 0)]


def test_a_plan_made_before_the_hold_is_not_committed_and_does_not_overwrite_the_reason(cluster: Cluster) -> None:
    job = queued(cluster)
    problem, seen = cluster.problem()
    act(cluster, job, "hold")
    cluster.say_waiting(job, seen, "no device is free")
    with pytest.raises(Exception, match="is not as the plan saw it"):
        cluster.commit_on(job, problem, seen, "n1")
    assert cluster.job(job).state == "held"
    assert [reason.code for reason in reasons(cluster, job)] == ["held"]


def reasons(cluster: Cluster, job: str) -> list[Any]:
    verdict = cluster.job(job).verdict
    assert verdict is not None
    return verdict.reasons


def test_a_failing_job_is_repeated_with_longer_and_longer_pauses(cluster: Cluster) -> None:
    job = cluster.submit(max_retries=2)
    for pause_s in (5, 10):
        cluster.end("n1", cluster.place(job, "n1"), R.FAILED, 3)
        waiting = cluster.job(job)
        assert (waiting.state, waiting.not_before) == ("queued", cluster.now + timedelta(seconds=pause_s))
        assert [reason.code for reason in reasons(cluster, job)] == ["backing_off"]
        assert "a rank failed" in reasons(cluster, job)[0].message
        cluster.advance(pause_s - 1)
        assert cluster.problem()[0].jobs == ()
        cluster.advance(1)
        assert [each.id for each in cluster.problem()[0].jobs] == [job]
    cluster.end("n1", cluster.place(job, "n1"), R.FAILED, 3)
    end = cluster.job(job)
    assert (end.state, end.exit_code, end.epoch) == ("failed", 3, 3)
    assert end.reason == "a rank failed; 2 retries were not enough"


def test_losses_and_faults_are_counted_apart(cluster: Cluster) -> None:
    job = cluster.submit(max_retries=1)
    for reason in (R.UNKNOWN_START, R.FAILED, R.UNKNOWN_START):  # two of three losses, one of one fault
        cluster.end("n1", cluster.place(job, "n1"), reason, None)
        assert cluster.job(job).state == "queued"
    cluster.end("n1", cluster.place(job, "n1"), R.FENCED, None)
    assert cluster.job(job).state == "failed"
    assert "with 3 attempts lost" in (cluster.job(job).reason or "")


def test_a_job_cancelled_while_it_backs_off_ends_at_once(cluster: Cluster) -> None:
    job = cluster.submit(max_retries=9)
    cluster.end("n1", cluster.place(job, "n1"), R.FAILED, 1)
    assert cluster.cancel(job).state == "cancelled"


def test_held_while_it_backs_off_it_still_backs_off_when_released(cluster: Cluster) -> None:
    job = cluster.submit(max_retries=9)
    cluster.end("n1", cluster.place(job, "n1"), R.FAILED, 1)
    act(cluster, act(cluster, job, "hold"), "release")
    assert cluster.problem()[0].jobs == ()
    cluster.advance(5)
    assert [each.id for each in cluster.problem()[0].jobs] == [job]

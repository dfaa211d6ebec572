"""Arrays: one line, one limit, one cancellation for many jobs."""

import contextlib

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.jobs import JobView
from protocol.states import EndReason, JobState
from service.cycle.commit import Overtaken
from tests.service.cluster import Cluster

LIVE = {JobState.STARTING, JobState.RUNNING}


@pytest.fixture
def cluster(cluster: Cluster) -> Cluster:
    cluster.join("n1", slots=32)
    return cluster


def submit(cluster: Cluster, count: int, limit: int | None = None, **spec: object) -> tuple[str, list[str]]:
    """An array's id, and those of its jobs by number."""
    place = cluster.job(cluster.submit(array={"count": count, "limit": limit}, **spec)).array
    assert place is not None
    return place.id, [job.id for job in cluster.array_jobs(place.id)]


def weighed(cluster: Cluster) -> list[str]:
    return [job.id for job in cluster.problem()[0].jobs]


def live(jobs: list[JobView]) -> int:
    return sum(job.state in LIVE for job in jobs)


def test_every_job_gets_its_number(cluster: Cluster) -> None:
    _, jobs = submit(cluster, 3)
    for index, job in enumerate(jobs):
        attempt = cluster.place(job, "n1")
        (assignment,) = [item for item in cluster.sync("n1").assignments if item.job == job]
        assert assignment.array_index == index
        cluster.end("n1", attempt)
    cluster.place(cluster.submit(), "n1")
    assert cluster.sync("n1").assignments[0].array_index is None


def test_no_more_are_weighed_than_may_run(cluster: Cluster) -> None:
    _, jobs = submit(cluster, 5, 2)
    other = cluster.submit()
    assert weighed(cluster) == [*jobs[:2], other]
    attempt = cluster.place(jobs[0], "n1")
    assert weighed(cluster) == [jobs[1], other]
    cluster.place(jobs[1], "n1")
    assert weighed(cluster) == [other]
    cluster.end("n1", attempt, EndReason.FAILED, 1)
    assert weighed(cluster) == [jobs[2], other]


def test_a_big_array_with_a_limit_does_not_crowd_out_others(cluster: Cluster) -> None:
    _, jobs = submit(cluster, 3_000, 1, priority=1)
    other = cluster.submit()
    assert weighed(cluster) == [jobs[0], other]


def test_the_reason_of_those_beyond_the_limit(cluster: Cluster) -> None:
    _, jobs = submit(cluster, 2, 1)
    codes = [[reason.code for reason in view.verdict.reasons] for job in jobs if (view := cluster.job(job)).verdict]
    assert codes == [["not_weighed_yet"], ["array_limit"]]


def test_two_plans_from_the_same_moment_do_not_exceed_the_limit_together(cluster: Cluster) -> None:
    _, jobs = submit(cluster, 3, 1)
    cluster.control(jobs[0], "hold")
    problem, seen = cluster.problem()  # weighs the second
    cluster.control(jobs[0], "release")
    cluster.place(jobs[0], "n1")
    with pytest.raises(Overtaken, match="has as many jobs running as it may"):
        cluster.commit_on(jobs[1], problem, seen, "n1")
    assert cluster.job(jobs[1]).state == "queued"


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_limit_holds_in_any_interleaving(cluster: Cluster, data: st.DataObject) -> None:
    """Plans are made, kept and committed late; jobs end, fail, come back, are held, released and moved in line."""
    limit = data.draw(st.integers(1, 3))
    array, jobs = submit(cluster, 6, limit, max_retries=1)
    plans = [cluster.problem()]
    for _ in range(data.draw(st.integers(5, 25))):
        step = data.draw(st.sampled_from(["plan", "commit", "commit", "end", "fail", "hold", "release", "wait"]))
        job = data.draw(st.sampled_from(jobs))
        view = cluster.job(job)
        if step == "plan":
            plans.append(cluster.problem())
        elif step == "commit":
            problem, seen = data.draw(st.sampled_from(plans))
            weighable = [each.id for each in problem.jobs if each.id in jobs]
            if weighable:
                with contextlib.suppress(Overtaken):
                    cluster.commit_on(data.draw(st.sampled_from(weighable)), problem, seen, "n1")
        elif step in ("end", "fail") and view.state in LIVE:
            cluster.end("n1", view.attempts[-1], EndReason.COMPLETED if step == "end" else EndReason.FAILED)
        elif step in ("hold", "release") and view.state in (JobState.QUEUED, JobState.HELD):
            cluster.control(job, step)
        elif step == "wait":
            cluster.advance(100)
        now = cluster.array_jobs(array)
        assert live(now) <= limit
        queued = {each.id for each in now if each.state == JobState.QUEUED}
        offered = set(weighed(cluster)) & set(jobs)
        assert offered <= queued
        assert live(now) + len(offered) <= limit
        if not any(each.not_before for each in now):
            assert len(offered) == min(limit - live(now), len(queued)), "no room is left unused"
    for job in jobs:
        if cluster.job(job).state in LIVE:
            cluster.end("n1", cluster.job(job).attempts[-1])
    if any(cluster.job(job).ended_at is None for job in jobs):
        cluster.cancel_array(array)


def test_an_array_is_one_line_with_counts(cluster: Cluster, client: TestClient) -> None:
    single = cluster.submit()
    array, jobs = submit(cluster, 4, name="sweep")
    cluster.place(jobs[0], "n1")
    cluster.end("n1", cluster.place(jobs[1], "n1"), EndReason.FAILED)
    folded = client.get("/v1/jobs", params={"folded": True}).json()["items"]
    assert [job["id"] for job in folded] == [jobs[0], single]
    assert folded[0]["array"] == {
        "id": array,
        "index": 0,
        "count": 4,
        "limit": None,
        "states": {"starting": 1, "failed": 1, "queued": 2},
    }
    waiting = client.get("/v1/jobs", params={"folded": True, "state": "queued"}).json()["items"]
    assert [job["id"] for job in waiting] == [jobs[2], single], "the first one in that state stands for all"
    expanded = client.get("/v1/jobs", params={"array": array}).json()["items"]
    assert [job["id"] for job in expanded] == jobs[::-1]
    assert all(job["array"]["states"] == {} for job in expanded)
    whole = client.get(f"/v1/arrays/{array}").json()
    assert (whole["count"], whole["states"]) == (4, {"starting": 1, "failed": 1, "queued": 2})


def test_folded_pages_give_every_array_once(cluster: Cluster, client: TestClient) -> None:
    arrays = [submit(cluster, 3)[0] for _ in range(4)]
    found: list[str] = []
    cursor = None
    while True:
        page = client.get("/v1/jobs", params={"folded": True, "limit": 1} | ({"cursor": cursor} if cursor else {}))
        found += [job["array"]["id"] for job in page.json()["items"]]
        cursor = page.json()["next"]
        if cursor is None:
            break
    assert found == arrays[::-1]


def test_cancelling_an_array_ends_what_waits_and_stops_what_runs(cluster: Cluster, client: TestClient) -> None:
    array, jobs = submit(cluster, 5)
    child = cluster.submit(after=[{"job": jobs[4]}])
    cluster.end("n1", cluster.place(jobs[0], "n1"))
    attempt = cluster.place(jobs[1], "n1")
    cluster.control(jobs[2], "hold")
    for _ in range(2):  # asking again changes nothing
        answer = client.post(f"/v1/arrays/{array}/cancel")
        assert answer.status_code == 200
        assert answer.json()["states"] == {"succeeded": 1, "starting": 1, "cancelled": 3}
    assert cluster.job(child).state == "cancelled"
    assert cluster.events(jobs[2]) == ["submitted", "held", "cancel_requested", "ended"]
    assert cluster.sync("n1").assignments[0].desired == "stop"
    cluster.end("n1", attempt, EndReason.CANCELLED, -15)
    assert client.get(f"/v1/arrays/{array}").json()["states"] == {"succeeded": 1, "cancelled": 4}
    assert client.post(f"/v1/arrays/{array}/cancel").status_code == 200
    assert cluster.held_devices() == set()


def test_an_array_that_has_ended_by_itself_cannot_be_cancelled(cluster: Cluster, client: TestClient) -> None:
    array, (job,) = submit(cluster, 1)
    cluster.end("n1", cluster.place(job, "n1"))
    answer = client.post(f"/v1/arrays/{array}/cancel")
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:ergon:job-ended")


def test_an_array_of_somebody_else_is_unknown(
    cluster: Cluster, client: TestClient, as_bob: dict[str, str], as_root: dict[str, str]
) -> None:
    array, _ = submit(cluster, 2)
    for answer in (
        client.get(f"/v1/arrays/{array}", headers=as_bob),
        client.post(f"/v1/arrays/{array}/cancel", headers=as_bob),
        client.get("/v1/arrays/array-none"),
    ):
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:ergon:unknown-array")
    assert client.get("/v1/jobs", params={"array": array}, headers=as_bob).json()["items"] == []
    assert client.get(f"/v1/arrays/{array}", headers=as_root).status_code == 200

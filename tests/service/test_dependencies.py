"""Jobs that wait for jobs: released once, by the end of the last one, or cancelled with the reason."""

import threading
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from protocol.states import EndReason, JobState
from service.models import dependencies
from tests.service.cluster import Cluster

R = EndReason


@pytest.fixture
def cluster(cluster: Cluster) -> Cluster:
    cluster.join("n1", slots=64)
    return cluster


def after(*jobs: str, on: str = "success") -> list[dict[str, str]]:
    return [{"job": job, "on": on} for job in jobs]


def finish(cluster: Cluster, job: str, reason: EndReason = R.COMPLETED) -> None:
    cluster.end("n1", cluster.place(job, "n1"), reason)


def why(cluster: Cluster, job: str) -> str:
    verdict = cluster.job(job).verdict
    assert verdict is not None
    return "; ".join(reason.message for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("on", "end", "expected"),
    [
        ("success", R.COMPLETED, "queued"),
        ("success", R.FAILED, "cancelled"),
        ("success", R.TIME_LIMIT, "cancelled"),
        ("success", R.NODE_LOST, "held"),
        ("end", R.COMPLETED, "queued"),
        ("end", R.FAILED, "queued"),
        ("end", R.UNKNOWN_START, "held"),
    ],
)
def test_the_end_of_the_parent_decides(cluster: Cluster, on: str, end: EndReason, expected: str) -> None:
    parent = cluster.submit()
    child = cluster.submit(after=after(parent, on=on))
    assert cluster.job(child).state == "held"
    assert why(cluster, child) == f"it waits for the {on} of job {parent}"
    assert [job.id for job in cluster.problem()[0].jobs] == [parent]
    finish(cluster, parent, end)
    job = cluster.job(child)
    assert job.state == expected
    with cluster.engine.begin() as tx:
        assert tx.execute(select(dependencies.c.met)).scalar_one() == (expected == "queued")
    if expected == "cancelled":
        assert job.reason == f"it was to wait for the success of job {parent}, which failed"
        assert job.ended_at == cluster.now
    assert (
        cluster.events(child)
        == {
            "queued": ["submitted", "released"],
            "cancelled": ["submitted", "ended"],
            "held": ["submitted"],
        }[expected]
    )


def test_a_job_cancelled_while_it_waits_takes_those_along_that_need_it(cluster: Cluster) -> None:
    first = cluster.submit()
    second = cluster.submit(after=after(first))
    third = cluster.submit(after=after(second))
    patient = cluster.submit(after=after(third, on="end"))
    cluster.cancel(first)
    assert [cluster.job(job).state for job in (second, third, patient)] == ["cancelled", "cancelled", "queued"]
    assert cluster.job(third).reason == f"it was to wait for the success of job {second}, which was cancelled"


def test_all_parents_must_have_ended(cluster: Cluster) -> None:
    parents = [cluster.submit() for _ in range(3)]
    child = cluster.submit(after=after(*parents))
    assert why(cluster, child) == f"it waits for 3 jobs, job {parents[0]} among them"
    finish(cluster, parents[0])
    finish(cluster, parents[2])
    assert cluster.job(child).state == "held"
    assert why(cluster, child) == f"it waits for the success of job {parents[1]}"
    finish(cluster, parents[1])
    assert cluster.job(child).state == "queued"


def test_what_has_happened_already_is_not_waited_for(cluster: Cluster, client: TestClient) -> None:
    good, bad = cluster.submit(), cluster.submit()
    finish(cluster, good)
    finish(cluster, bad, R.FAILED)
    assert cluster.job(cluster.submit(after=after(good))).state == "queued"
    assert cluster.job(cluster.submit(after=after(bad, on="end"))).state == "queued"
    answer = client.post("/v1/jobs", json={"command": ["true"], "after": after(good, bad)})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "after.1.job")
    assert answer.json()["detail"].startswith(f"job {bad} should have succeeded, but failed")


@pytest.mark.parametrize("fault", [{"job": "job-none"}, {"job": "../x"}, {"job": ""}, {}, {"job": "a", "on": "start"}])
def test_a_dependency_that_cannot_be(client: TestClient, cluster: Cluster, fault: dict[str, Any]) -> None:
    before = cluster.row_counts()
    answer = client.post("/v1/jobs", json={"command": ["true"], "after": [fault]})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].startswith("after.0")
    assert cluster.row_counts() == before


def test_a_job_of_somebody_else_cannot_be_waited_for(client: TestClient, cluster: Cluster) -> None:
    theirs = cluster.submit("bob")
    answer = client.post("/v1/jobs", json={"command": ["true"], "after": after(theirs)})
    unknown = client.post("/v1/jobs", json={"command": ["true"], "after": after("job-none")})
    assert answer.status_code == unknown.status_code == 422
    assert answer.json()["detail"] == unknown.json()["detail"].replace("job-none", theirs), "it gives nothing away"


def test_held_besides_it_stays_held_until_released(cluster: Cluster) -> None:
    parent = cluster.submit()
    child = cluster.submit(after=after(parent))
    cluster.control(child, "hold")
    assert "ergon release" in why(cluster, child)
    assert parent in why(cluster, child)
    finish(cluster, parent)
    assert cluster.job(child).state == "held"
    assert parent not in why(cluster, child)
    cluster.control(child, "release")
    assert cluster.job(child).state == "queued"


def test_released_before_its_parent_has_ended_it_waits_on(cluster: Cluster) -> None:
    parent = cluster.submit()
    child = cluster.submit(after=after(parent))
    cluster.control(child, "hold")
    cluster.control(child, "release")
    assert cluster.job(child).state == "held"
    assert why(cluster, child) == f"it waits for the success of job {parent}"
    assert [job.id for job in cluster.problem()[0].jobs] == [parent]
    finish(cluster, parent)
    assert cluster.job(child).state == "queued"


def test_a_whole_array_is_waited_for(cluster: Cluster) -> None:
    first = cluster.submit(array={"count": 3})
    place = cluster.job(first).array
    assert place is not None
    child = cluster.submit(after=after(place.id))
    for job in cluster.array_jobs(place.id):
        assert cluster.job(child).state == "held"
        finish(cluster, job.id)
    assert cluster.job(child).state == "queued"


def test_a_whole_array_waits(cluster: Cluster) -> None:
    parent = cluster.submit()
    place = cluster.job(cluster.submit(array={"count": 500}, after=after(parent))).array
    assert place is not None
    finish(cluster, parent)
    assert {job.state for job in cluster.array_jobs(place.id)} == {JobState.QUEUED}


def test_too_many_dependencies_in_one_request(client: TestClient, cluster: Cluster) -> None:
    parents = [cluster.submit() for _ in range(11)]
    body = {"command": ["true"], "array": {"count": 10_000}, "after": after(*parents)}
    answer = client.post("/v1/jobs", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "after")
    assert "110000 dependencies" in answer.json()["detail"]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_graph_in_any_order_ends_as_its_definition_says(cluster: Cluster, data: st.DataObject) -> None:
    """An oracle: a job runs if all its parents ended as it needs, and is cancelled if one did not."""
    size = data.draw(st.integers(2, 7))
    wants: dict[str, list[dict[str, str]]] = {}
    fate: dict[str, EndReason] = {}
    names: list[str] = []
    for _ in range(size):
        parents = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=3)) if names else []
        needs = [{"job": parent, "on": data.draw(st.sampled_from(["success", "end"]))} for parent in parents]
        name = cluster.submit(after=needs)
        wants[name] = needs
        fate[name] = data.draw(st.sampled_from([R.COMPLETED, R.FAILED]))
        names.append(name)
    while ready := [job.id for job in cluster.problem()[0].jobs if job.id in wants]:
        for job in ready:
            assert all(cluster.job(need["job"]).ended_at for need in wants[job]), "released too early"
        job = data.draw(st.sampled_from(ready))
        finish(cluster, job, fate[job])
    expected: dict[str, str] = {}
    for name in names:
        broken = any(need["on"] == "success" and expected[need["job"]] != "succeeded" for need in wants[name])
        expected[name] = "cancelled" if broken else "succeeded" if fate[name] == R.COMPLETED else "failed"
    assert {name: cluster.job(name).state.value for name in names} == expected
    for name in names:
        assert cluster.events(name).count("released") == int(bool(wants[name]) and expected[name] != "cancelled")


@pytest.mark.parametrize("round_number", range(5))
def test_parents_that_end_at_the_same_moment_release_exactly_once(cluster: Cluster, round_number: int) -> None:
    parents = [cluster.submit() for _ in range(4)]
    children = [cluster.submit(after=after(*parents)) for _ in range(3)]
    attempts = [cluster.place(parent, "n1") for parent in parents]
    ready = threading.Barrier(len(parents))
    failures: list[BaseException] = []

    def end(number: int) -> None:
        ready.wait()
        try:
            cluster.end_directly(attempts[number])
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=end, args=(number,)) for number in range(len(parents))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for child in children:
        assert cluster.job(child).state == "queued"
        assert cluster.events(child).count("released") == 1


def test_submitting_while_the_parent_ends_loses_nothing(cluster: Cluster) -> None:
    """The child is either held until the end that comes, or sees the end that was: it never waits for ever."""
    for _ in range(8):
        parent = cluster.submit()
        attempt = cluster.place(parent, "n1")
        ready = threading.Barrier(2)
        children: list[str] = []

        def submit(parent: str = parent, ready: threading.Barrier = ready, children: list[str] = children) -> None:
            ready.wait()
            children.append(cluster.submit(after=after(parent)))

        thread = threading.Thread(target=submit)
        thread.start()
        ready.wait()
        cluster.end_directly(attempt)
        thread.join()
        assert cluster.job(children[0]).state == "queued"

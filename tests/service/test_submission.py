"""Many jobs in one request, jobs anew, and dry runs: all or nothing, said once, with the field that is at fault."""

import threading
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from protocol.jobs import MAX_BATCH
from protocol.states import EndReason
from tests.service.cluster import Cluster

TRUE: dict[str, Any] = {"command": ["true"]}


def batch(client: TestClient, *specs: dict[str, Any], key: str | None = None) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post("/v1/jobs/batch", json={"jobs": [TRUE | spec for spec in specs]}, headers=headers)


def test_a_batch_keeps_the_order_of_the_request(client: TestClient, cluster: Cluster) -> None:
    cluster.join("n1")
    answer = batch(client, {"name": "a"}, {"name": "b", "nodes": 2}, {"name": "c", "array": {"count": 3}})
    assert answer.status_code == 201, answer.text
    items = answer.json()["items"]
    assert [item["verdict"]["outcome"] for item in items] == ["waiting", "impossible", "waiting"]
    assert [cluster.job(item["id"]).spec.name for item in items[:2]] == ["a", "b"]
    listed = client.get("/v1/jobs").json()["items"]
    assert [job["spec"]["name"] for job in listed] == ["c", "c", "c", "b", "a"]
    assert [job["array"]["index"] for job in listed[:3]] == [2, 1, 0]
    assert {job["array"]["id"] for job in listed[:3]} == {items[2]["id"]}
    assert cluster.events(items[0]["id"]) == ["submitted"]


def test_ten_thousand_jobs_in_one_request(client: TestClient, cluster: Cluster) -> None:
    cluster.join("n1")
    body = {"jobs": [TRUE | {"name": f"sweep-{index}", "env": {"SEED": str(index)}} for index in range(MAX_BATCH)]}
    answer = client.post("/v1/jobs/batch", json=body)
    assert answer.status_code == 201
    assert len({item["id"] for item in answer.json()["items"]}) == MAX_BATCH
    counts = cluster.row_counts()
    assert (counts["jobs"], counts["events"]) == (MAX_BATCH, MAX_BATCH)
    one_too_many = client.post("/v1/jobs/batch", json={"jobs": [*body["jobs"], TRUE]})
    assert (one_too_many.status_code, one_too_many.json()["errors"][0]["field"]) == (422, "jobs")
    assert cluster.row_counts() == counts


@pytest.mark.parametrize(
    ("fault", "field", "says"),
    [
        ({"nodes": 0}, "jobs.1.nodes", "a job has from 1 to 100000 nodes"),
        ({"nodess": 1}, "jobs.1.nodess", "unknown field"),
        ({"queue": "nope"}, "jobs.1.queue", "there is no queue 'nope'"),
        ({"after": [{"job": "job-none"}]}, "jobs.1.after.0.job", "there is no job or array 'job-none'"),
        ({"array": {"count": 0}}, "jobs.1.array.count", "greater than or equal to 1"),
        ({"array": {"count": 10_001}}, "jobs.1.array.count", "less than or equal to 10000"),
        ({"array": {"count": 9_999, "limit": 0}}, "jobs.1.array.limit", "greater than or equal to 1"),
        ({"array": {"count": 9_999}}, "jobs", "the request makes 10001 jobs"),
        ({"nodes": 99, "require_feasible": True}, "jobs.1.require_feasible", "99 members"),
        ({"max_retries": -1}, "jobs.1.max_retries", "greater than or equal to 0"),
    ],
)
def test_one_bad_job_of_a_batch_refuses_all(
    client: TestClient, cluster: Cluster, fault: dict[str, Any], field: str, says: str
) -> None:
    cluster.join("n1")
    before = cluster.row_counts()
    answer = batch(client, {}, fault, {})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    assert says in error["message"]
    assert says in answer.json()["detail"]
    assert cluster.row_counts() == before


@pytest.mark.parametrize("body", [{}, {"jobs": []}, {"jobs": {}}, {"jobs": None}, [TRUE]])
def test_a_batch_that_is_none_is_refused(client: TestClient, body: object) -> None:
    assert client.post("/v1/jobs/batch", json=body).status_code == 422


MILLION = 1_000_000
FLOODS: list[tuple[str, object, str]] = [
    ("/v1/jobs/batch", {"jobs": [1] * MILLION}, "jobs"),
    ("/v1/jobs", {"command": ["x"] * MILLION}, "command"),
    ("/v1/jobs", TRUE | {"device_kinds": [1] * MILLION}, "device_kinds"),
    ("/v1/jobs", TRUE | {"env": {str(n): 1 for n in range(200_000)}}, "env"),
    ("/v1/jobs", {"recipe": {"name": "r", "options": {str(n): 1 for n in range(200_000)}}}, "recipe.options"),
    ("/v1/jobs", TRUE | {str(n): 1 for n in range(200_000)}, "body"),
    ("/v1/jobs", TRUE | {"array": {"count": MILLION}}, "array.count"),
]


def test_a_million_of_anything_is_one_complaint(
    client: TestClient, cluster: Cluster, subtests: pytest.Subtests
) -> None:
    """One for each entry would take minutes and gigabytes."""
    for path, body, field in FLOODS:
        with subtests.test(path=path, field=field):
            answer = client.post(path, json=body)
            assert answer.status_code == 422
            assert [error["field"] for error in answer.json()["errors"]] == [field]
            assert len(answer.content) < 2_000
            assert cluster.row_counts()["jobs"] == 0


def test_a_batch_sent_again_is_recognised(client: TestClient, cluster: Cluster) -> None:
    specs = [{"name": "a"}, {"array": {"count": 2}}]
    first = batch(client, *specs, key="k")
    before = cluster.row_counts()
    again = batch(client, *specs, key="k")
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    other = batch(client, *specs, {}, key="k")
    assert (other.status_code, other.json()["type"]) == (422, "urn:ergon:idempotency-mismatch")
    assert client.post("/v1/jobs", json=TRUE, headers={"Idempotency-Key": "k"}).status_code == 422
    assert cluster.row_counts() == before


def test_the_same_batch_at_the_same_moment_is_taken_once(client: TestClient, cluster: Cluster) -> None:
    ready = threading.Barrier(2)
    answers: list[httpx.Response] = []

    def send() -> None:
        ready.wait()
        answers.append(batch(client, *([{}] * 50), key="twin"))

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200, 201]
    assert answers[0].json() == answers[1].json()
    assert cluster.row_counts()["jobs"] == 50


def test_a_single_array_answers_with_its_first_job(client: TestClient, cluster: Cluster) -> None:
    spec = TRUE | {"array": {"count": 3, "limit": 2}}
    answer = client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k"})
    place = answer.json()["array"]
    assert (answer.status_code, place["index"], place["count"], place["limit"]) == (201, 0, 3, 2)
    assert client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k"}).json() == answer.json()
    assert cluster.row_counts()["jobs"] == 3


def test_a_job_that_ended_is_run_anew(client: TestClient, cluster: Cluster, as_bob: dict[str, str]) -> None:
    cluster.join("n1")
    job = cluster.submit(name="again", priority=3)
    waiting = client.post(f"/v1/jobs/{job}/resubmit")
    assert (waiting.status_code, waiting.json()["type"]) == (409, "urn:ergon:job-not-ended")
    cluster.end("n1", cluster.place(job, "n1"), EndReason.FAILED, 1)
    assert client.post(f"/v1/jobs/{job}/resubmit", headers=as_bob).status_code == 404
    first = client.post(f"/v1/jobs/{job}/resubmit", headers={"Idempotency-Key": "k"})
    again = client.post(f"/v1/jobs/{job}/resubmit", headers={"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code) == (201, 200)
    new = first.json()
    assert again.json() == new
    assert new["id"] != job
    assert (new["resubmitted_from"], new["state"], new["epoch"]) == (job, "queued", 0)
    assert new["spec"] == client.get(f"/v1/jobs/{job}").json()["spec"]
    assert client.get(f"/v1/jobs/{new['id']}/events").json()["items"][0]["data"]["resubmitted_from"] == job


def test_one_job_of_an_array_runs_anew_alone_with_its_number(client: TestClient, cluster: Cluster) -> None:
    cluster.join("n1")
    array = batch(client, {"array": {"count": 3}}).json()["items"][0]["id"]
    second = client.get("/v1/jobs", params={"array": array}).json()["items"][1]
    attempt = cluster.place(second["id"], "n1")
    assert cluster.sync("n1").assignments[0].array_index == 1
    cluster.end("n1", attempt, EndReason.FAILED, 1)
    new = client.post(f"/v1/jobs/{second['id']}/resubmit").json()
    assert (new["array"], new["spec"]["array"]) == (None, None)
    cluster.place(new["id"], "n1")
    assert cluster.sync("n1").assignments[0].array_index == 1


def test_what_had_to_be_waited_for_counts_no_more_where_it_has_ended(client: TestClient, cluster: Cluster) -> None:
    cluster.join("n1")
    failed, going_on = cluster.submit(), cluster.submit()
    child = cluster.submit(after=[{"job": failed}, {"job": going_on}])
    cluster.end("n1", cluster.place(failed, "n1"), EndReason.FAILED, 1)
    assert cluster.job(child).state == "cancelled"
    new = client.post(f"/v1/jobs/{child}/resubmit").json()
    assert new["state"] == "held"
    assert [dependency["job"] for dependency in new["spec"]["after"]] == [going_on]


def dry_run(client: TestClient, *specs: dict[str, Any]) -> list[dict[str, Any]]:
    answer = client.post("/v1/jobs/dry-run", json={"jobs": [TRUE | spec for spec in specs]})
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


def test_a_dry_run_says_what_would_start_and_stores_nothing(client: TestClient, cluster: Cluster) -> None:
    cluster.join("n1", slots=2)
    cluster.join("n2", slots=2)
    parent = cluster.submit(devices_per_node=2)
    before = cluster.row_counts()
    items = dry_run(
        client,
        {"devices_per_node": 2, "name": "starts"},
        {"name": "behind"},
        {"nodes": 3},
        {"after": [{"job": parent}]},
        {"priority": 9, "name": "first"},
    )
    assert [item["verdict"]["outcome"] for item in items] == ["waiting", "placed", "impossible", "waiting", "placed"]
    codes = [[reason["code"] for reason in item["verdict"]["reasons"]] for item in items]
    assert codes == [["behind_others"], [], ["too_few_nodes"], ["after"], []]
    assert items[4]["nodes"] in (["n1"], ["n2"])
    assert items[0]["nodes"] == []
    assert items[0]["spec"]["queue"] == "default"
    assert cluster.row_counts() == before


def test_a_dry_run_agrees_with_the_first_cycle(client: TestClient, cluster: Cluster) -> None:
    cluster.join("n1", slots=2)
    cluster.place(cluster.submit(devices_per_node=1), "n1")
    (item,) = dry_run(client, {"devices_per_node": 2})
    assert item["verdict"]["outcome"] == "waiting"
    assert "free" in item["verdict"]["reasons"][0]["message"]
    assert dry_run(client, {})[0]["nodes"] == ["n1"]


def test_a_job_that_would_wait_for_another_takes_nobodys_place_in_a_dry_run(
    client: TestClient, cluster: Cluster
) -> None:
    cluster.join("n1", slots=1)
    parent = cluster.submit()
    cluster.place(parent, "n1")
    cluster.join("n2", slots=1)
    waits, starts = dry_run(client, {"after": [{"job": parent}], "priority": 5}, {})
    assert (waits["verdict"]["outcome"], waits["nodes"]) == ("waiting", [])
    assert waits["verdict"]["reasons"][0]["message"] == f"it waits for the success of job {parent}"
    assert (starts["verdict"]["outcome"], starts["nodes"]) == ("placed", ["n2"])


def test_a_dry_run_refuses_what_a_submission_would(client: TestClient) -> None:
    answer = client.post("/v1/jobs/dry-run", json={"jobs": [TRUE, TRUE | {"queue": "nope"}]})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "jobs.1.queue")
    assert client.post("/v1/jobs/dry-run", json={"jobs": [TRUE] * 101}).status_code == 422

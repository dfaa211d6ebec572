"""Submitting and looking at jobs over HTTP: bad input gets a clear answer, and what was acknowledged is kept once."""

import itertools
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from protocol.faults import SHAPES
from service import jobs as use_cases
from service.api.app import create_app
from service.api.deps import Parts
from service.api.hub import Hub
from service.api.limits import MAX_BODY_BYTES
from service.db import connect
from service.tariff_source import TariffSource
from tests.service.cluster import Cluster

TRUE: dict[str, Any] = {"command": ["true"]}
UNKNOWN = "unknown field; check its spelling, or remove it"
ONE_PROGRAM = "give exactly one of `command` and `recipe`"


def problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The body of a refusal, which has the one shape that all have."""
    body = answer.json()
    assert (answer.status_code, body["type"]) == (status, f"urn:ergon:{kind}"), body
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return body


REFUSED_SPECS: list[tuple[dict[str, Any], str, str]] = [
    (TRUE | {"gpus": 2}, "gpus", UNKNOWN),
    ({"recipe": {"name": "digits-mlp", "epochs": 3}}, "recipe.epochs", UNKNOWN),
    ({}, "body", ONE_PROGRAM),
    ({"command": None, "recipe": None}, "body", ONE_PROGRAM),
    (TRUE | {"recipe": {"name": "digits-mlp"}}, "body", ONE_PROGRAM),
    ({"command": []}, "command", "List should have at least 1 item"),
    ({"command": [""]}, "body", "the first word of `command` names the program and must not be empty"),
    ({"command": "true"}, "command", "Input should be a valid list"),
    ({"command": ["a\x00b"]}, "command.0", "the character NUL"),
    ({"command": ["a" * 131_073]}, "command.0", "String should have at most 131072 characters"),
    ({"command": ["x"] * 4_097}, "command", "List should have at most 4096 items"),
    (TRUE | {"env": {"A": "x\x00"}}, "env.A", "the character NUL"),
    (
        {"recipe": {"name": "r", "options": {"data": "a\x00"}}},
        "recipe.options.data.constrained-str",
        "the character NUL",
    ),
    (TRUE | {"env": {"1A": "x"}}, "env.1A.[key]", "a variable has letters"),
    (TRUE | {"name": "my job"}, "name", "use letters, digits"),
    (TRUE | {"name": "job\n"}, "name", "use letters, digits"),
    (TRUE | {"name": "j" * 64}, "name", "String should have at most 63 characters"),
    (TRUE | {"name": "\ud800"}, "name", "Input should be a valid string"),
    (TRUE | {"queue": "nope"}, "queue", "there is no queue 'nope'; there are: default"),
    (TRUE | {"priority": 1_001}, "priority", "less than or equal to 1000"),
    (TRUE | {"nodes": 0}, "nodes", "a job has from 1 to 100000 nodes"),
    (TRUE | {"nodes": -1}, "nodes", "a job has from 1 to 100000 nodes"),
    (TRUE | {"nodes": 100_001}, "nodes", "a job has from 1 to 100000 nodes"),
    (TRUE | {"nodes": 1.5}, "nodes", "give a number of nodes such as 2, or a range such as 1-4"),
    (TRUE | {"nodes": "two"}, "nodes", "give a number of nodes such as 2, or a range such as 1-4"),
    (TRUE | {"nodes": None}, "nodes", "give a number of nodes such as 2, or a range such as 1-4"),
    (TRUE | {"nodes": 10**400}, "nodes", "a job has from 1 to 100000 nodes"),
    (TRUE | {"devices_per_node": -1}, "devices_per_node", "greater than or equal to 0"),
    (TRUE | {"devices_per_node": 1_025}, "devices_per_node", "less than or equal to 1024"),
    (TRUE | {"device_kinds": ["GPU!"]}, "device_kinds.0", "use small letters"),
    (TRUE | {"ranks_per_node": 0}, "ranks_per_node", "greater than or equal to 1"),
    (TRUE | {"cpu_cores_per_node": 0}, "cpu_cores_per_node", "greater than 0"),
    (TRUE | {"cpu_cores_per_node": float("inf")}, "cpu_cores_per_node", "finite number"),
    (TRUE | {"memory_bytes_per_node": -1}, "memory_bytes_per_node", "greater than or equal to 0"),
    (TRUE | {"memory_bytes_per_node": (1 << 50) + 1}, "memory_bytes_per_node", "less than or equal to"),
    (TRUE | {"image": "--privileged"}, "image", "give an image as registry/path:tag"),
    (TRUE | {"image": "python 3"}, "image", "give an image as registry/path:tag"),
    (TRUE | {"image": "python:3\n"}, "image", "give an image as registry/path:tag"),
    (TRUE | {"image": ""}, "image", "give an image as registry/path:tag"),
    (TRUE | {"image": "a" * 513}, "image", "at most 512 characters"),
    (TRUE | {"image": "x", "requirements": "r.txt"}, "body", "`requirements` go without an `image`"),
    ({"recipe": {"name": "r"}, "image": "x"}, "body", "`image` goes with a `command`"),
    (TRUE | {"time_limit_s": 0}, "time_limit_s", "greater than 0"),
    (TRUE | {"time_limit_s": -5}, "time_limit_s", "greater than 0"),
    (TRUE | {"time_limit_s": 1e300}, "time_limit_s", "less than or equal to 1000000000"),
    (TRUE | {"expected_run_s": float("nan")}, "expected_run_s", "finite number"),
]


def test_a_spec_that_cannot_be_used_is_refused_by_field(
    client: TestClient, cluster: Cluster, subtests: pytest.Subtests
) -> None:
    for spec, field, says in REFUSED_SPECS:
        with subtests.test(field=field, says=says):
            answer = client.post("/v1/jobs", content=to_json(spec), headers={"Content-Type": "application/json"})
            body = problem(answer, 422, "invalid")
            assert field in {error["field"] for error in body["errors"]}
            assert any(says in error["message"] for error in body["errors"]), body["errors"]
            assert body["errors"][0]["message"] in body["detail"]
            assert cluster.row_counts()["jobs"] == 0


def to_json(value: Any) -> bytes:
    """JSON as a careless client writes it: with NaN, Infinity and halves of surrogate pairs."""
    return json.dumps(value).encode()


NO_OBJECTS: list[tuple[bytes, str]] = [
    (b"", "send a JSON object"),
    (b"{", "the body is not valid JSON: Expecting property name"),
    (b'{"command": ["true"]', "the body is not valid JSON"),
    (b"{'command': ['true']}", "the body is not valid JSON"),
    (b"null", "send a JSON object"),
    (b"[]", "send a JSON object"),
    (b'"true"', "send a JSON object"),
    (b"\xff\xfe\x00", ""),
    (b'{"nodes":' + b"9" * 5_000 + b"}", ""),
    (b"[" * 100_000, ""),
    (b'{"env":' * 100_000 + b"1" + b"}" * 100_000, ""),
    (b"[" + b"1," * 1_000_000 + b"1]", "send a JSON object"),
]


def test_what_is_no_json_object_is_refused(client: TestClient, cluster: Cluster, subtests: pytest.Subtests) -> None:
    for content, says in NO_OBJECTS:
        with subtests.test(begins=content[:20]):
            answer = client.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code in {400, 422}
            body = problem(answer, answer.status_code, {400: "http-400", 422: "invalid"}[answer.status_code])
            assert says in body["detail"]
            assert cluster.row_counts()["jobs"] == 0


def test_another_content_type_is_refused_with_the_one_to_send(client: TestClient) -> None:
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        body = problem(client.post("/v1/jobs", content=b'{"command": ["true"]}', headers=headers), 422, "invalid")
        assert "send a JSON object, with the header `Content-Type: application/json`" in body["detail"]


def pieces(count: int) -> Iterator[bytes]:
    """A body that does not say how long it is."""
    for _ in range(count):
        yield b" " * 1_048_576


def test_a_body_may_be_ten_mebibytes_long(client: TestClient, cluster: Cluster) -> None:
    headers = {"Content-Type": "application/json"}
    said = client.post("/v1/jobs", content=b" " * (MAX_BODY_BYTES + 1), headers=headers)
    found = client.post("/v1/jobs", content=pieces(11), headers=headers)
    for answer in (said, found):
        assert f"{MAX_BODY_BYTES} bytes long at most" in problem(answer, 413, "http-413")["detail"]
    assert cluster.row_counts()["jobs"] == 0
    spec = json.dumps(TRUE).encode()
    padded = spec + b" " * (MAX_BODY_BYTES - len(spec))
    assert client.post("/v1/jobs", content=padded, headers=headers).status_code == 201


def test_a_local_service_answers_under_names_of_loopback_only(client: TestClient) -> None:
    for own in ("127.0.0.1", "127.0.0.1:8765", "localhost:80", "LOCALHOST", "[::1]", "[::1]:8765"):
        assert client.get("/v1/jobs", headers={"Host": own}).status_code == 200
    for foreign in ("evil.example", "127.0.0.1.evil.example", "[::1", ""):
        problem(client.get("/v1/jobs", headers={"Host": foreign}), 400, "unknown-host")


NOT_THERE: list[tuple[str, str, int, str]] = [
    ("GET", "/v1/jobs/job-none", 404, "unknown-job"),
    ("POST", "/v1/jobs/job-none/cancel", 404, "unknown-job"),
    ("GET", "/v1/jobs/job-none/events", 404, "unknown-job"),
    ("GET", "/v1/jobs/job-none/metrics", 404, "unknown-job"),
    ("GET", "/v1/jobs/job-none/logs", 404, "unknown-job"),
    ("GET", "/v1/jobs/job-none/logs?follow=true", 404, "unknown-job"),
    ("GET", "/v1/nodes/none", 404, "unknown-node"),
    ("GET", "/v1/nothing", 404, "http-404"),
    ("PUT", "/v1/jobs", 405, "http-405"),
    ("GET", "/v1/jobs/" + "j" * 65, 422, "invalid"),
    ("GET", "/v1/jobs/job%00", 422, "invalid"),
    ("GET", "/v1/nodes/" + "n" * 64, 422, "invalid"),
    ("GET", "/v1/jobs?limit=0", 422, "invalid"),
    ("GET", "/v1/jobs?limit=501", 422, "invalid"),
    ("GET", "/v1/jobs?cursor=-1", 422, "invalid"),
    ("GET", "/v1/jobs?cursor=99999999999999999999", 422, "invalid"),
    ("GET", "/v1/jobs?state=done", 422, "invalid"),
    ("GET", "/v1/jobs?user=a%20b", 422, "invalid"),
    ("GET", "/v1/jobs/job-none/metrics?rank=99999999999", 422, "invalid"),
    ("GET", "/v1/jobs/job-none/logs?stream=progress", 422, "invalid"),
]


def test_what_is_not_there_is_said_plainly(client: TestClient, subtests: pytest.Subtests) -> None:
    for method, path, status, kind in NOT_THERE:
        with subtests.test(path=path):
            problem(client.request(method, path), status, kind)


def test_what_is_allowed_instead_is_said(client: TestClient) -> None:
    assert client.put("/v1/jobs").headers["Allow"] == "GET, POST"
    assert client.put("/v1/jobs/batch").headers["Allow"] == "POST"  # also a `/v1/jobs/{job_id}` to the router
    assert client.put("/v1/jobs/job-none").headers["Allow"] == "GET, PATCH"
    assert client.put("/livez").headers["Allow"] == "GET"


def test_a_submitted_job_is_answered_whole(client: TestClient, cluster: Cluster) -> None:
    cluster.join("n1")
    answer = client.post("/v1/jobs", json=TRUE | {"name": "first", "priority": 5})
    assert answer.status_code == 201
    job = answer.json()
    assert (job["user"], job["state"], job["epoch"], job["attempts"]) == ("alice", "queued", 0, [])
    assert (job["spec"]["name"], job["spec"]["priority"], job["spec"]["command"]) == ("first", 5, ["true"])
    assert job["submitted_at"] == "2026-01-01T00:00:00Z"
    assert job["verdict"]["outcome"] == "waiting"
    assert job["verdict"]["reasons"]
    assert client.get(f"/v1/jobs/{job['id']}").json() | {"expected": None} == job
    assert cluster.events(job["id"]) == ["submitted"]


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ({"nodes": 3}, "too_few_nodes"),
        ({"devices_per_node": 5}, "too_few_devices"),
        ({"device_kinds": ["h100"]}, "no_such_kind"),
        ({"cpu_cores_per_node": 64}, "too_few_cores"),
        ({"memory_bytes_per_node": 1 << 40}, "too_little_memory"),
    ],
)
def test_a_job_larger_than_the_cluster_waits_for_nodes_or_is_refused_as_it_asks(
    client: TestClient, cluster: Cluster, spec: dict[str, Any], code: str
) -> None:
    cluster.join("n1")
    cluster.join("n2")
    accepted = client.post("/v1/jobs", json=TRUE | spec)
    assert accepted.status_code == 201
    verdict = accepted.json()["verdict"]
    assert verdict["outcome"] == "impossible"
    assert [reason["code"] for reason in verdict["reasons"]] == [code]
    assert accepted.json()["state"] == "queued"
    refused = client.post("/v1/jobs", json=TRUE | spec | {"require_feasible": True})
    assert problem(refused, 422, "impossible")["detail"] == verdict["reasons"][0]["message"]
    assert cluster.row_counts()["jobs"] == 1


def test_a_job_that_asks_to_be_refused_is_taken_when_it_is_possible(client: TestClient, cluster: Cluster) -> None:
    cluster.join("n1")
    answer = client.post("/v1/jobs", json=TRUE | {"require_feasible": True})
    assert (answer.status_code, answer.json()["verdict"]["outcome"]) == (201, "waiting")


def test_the_same_key_gets_the_same_job(client: TestClient, cluster: Cluster) -> None:
    key = {"Idempotency-Key": "k-1"}
    first = client.post("/v1/jobs", json=TRUE, headers=key)
    again = client.post("/v1/jobs", json=TRUE | {"nodes": 1}, headers=key)  # the default, spelt out
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert cluster.events(first.json()["id"]) == ["submitted"]
    assert cluster.row_counts()["jobs"] == 1


def test_a_key_cannot_be_used_for_another_job(client: TestClient, cluster: Cluster) -> None:
    key = {"Idempotency-Key": "k-1"}
    first = client.post("/v1/jobs", json=TRUE, headers=key).json()["id"]
    refused = problem(client.post("/v1/jobs", json=TRUE | {"nodes": 2}, headers=key), 422, "idempotency-mismatch")
    assert refused["detail"] == f"the idempotency key 'k-1' was used for job {first} with another spec; use a fresh key"
    assert cluster.row_counts()["jobs"] == 1


def test_keys_are_each_users_own_and_of_limited_length(client: TestClient, as_bob: dict[str, str]) -> None:
    key = {"Idempotency-Key": "k" * 200}
    alices = client.post("/v1/jobs", json=TRUE, headers=key)
    bobs = client.post("/v1/jobs", json=TRUE, headers=key | as_bob)
    assert (alices.status_code, bobs.status_code) == (201, 201)
    assert alices.json()["id"] != bobs.json()["id"]
    for length in (0, 201):
        answer = client.post("/v1/jobs", json=TRUE, headers={"Idempotency-Key": "k" * length})
        assert problem(answer, 422, "invalid")["errors"][0]["field"] == "header.Idempotency-Key"


def test_a_refused_request_does_not_use_up_its_key(client: TestClient, cluster: Cluster) -> None:
    key, spec = {"Idempotency-Key": "k-1"}, TRUE | {"require_feasible": True}
    assert client.post("/v1/jobs", json=spec, headers=key).status_code == 422
    cluster.join("n1")
    assert client.post("/v1/jobs", json=spec, headers=key).status_code == 201


def test_one_key_sent_twice_at_once_makes_one_job(client: TestClient, cluster: Cluster) -> None:
    together = threading.Barrier(4)
    answers: list[httpx.Response] = []

    def send(number: int) -> None:
        together.wait()
        answers.append(client.post("/v1/jobs", json=TRUE, headers={"Idempotency-Key": f"k-{number}"}))

    for number in range(5):
        threads = [threading.Thread(target=send, args=(number,)) for _ in range(together.parties)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(answer.status_code for answer in answers) == [200] * 15 + [201] * 5
    assert len({answer.json()["id"] for answer in answers}) == 5
    assert cluster.row_counts()["jobs"] == 5
    assert cluster.row_counts()["events"] == 5


def test_a_user_sees_own_jobs_and_an_administrator_sees_all(
    client: TestClient, cluster: Cluster, as_bob: dict[str, str], as_root: dict[str, str]
) -> None:
    mine, others = cluster.submit("alice"), cluster.submit("bob")
    for path in ("", "/events", "/metrics", "/logs"):
        assert client.get(f"/v1/jobs/{mine}{path}").status_code == 200
        hidden = problem(client.get(f"/v1/jobs/{others}{path}"), 404, "unknown-job")
        assert hidden["detail"] == f"there is no job '{others}' that you may see; `ergon jobs` lists them"
        assert client.get(f"/v1/jobs/{others}{path}", headers=as_root).status_code == 200
    problem(client.post(f"/v1/jobs/{others}/cancel"), 404, "unknown-job")
    assert cluster.job(others).state == "queued"
    assert ids(client) == [mine]
    assert ids(client, headers=as_bob) == [others]
    assert ids(client, headers=as_root) == [others, mine]
    assert ids(client, user="bob") == []


def ids(client: TestClient, headers: dict[str, str] | None = None, **query: Any) -> list[str]:
    """Ids of all jobs of a listing, page by page."""
    found: list[str] = []
    cursor: str | None = None
    for _ in range(100):
        page = client.get("/v1/jobs", params={**query, **({"cursor": cursor} if cursor else {})}, headers=headers)
        body = page.json()
        assert len(body["items"]) <= query.get("limit", 100)
        found.extend(job["id"] for job in body["items"])
        cursor = body["next"]
        if cursor is None:
            return found
        assert len(body["items"]) == query.get("limit", 100)
    raise AssertionError("the pages never end")


def test_pages_of_a_listing_add_up(client: TestClient, cluster: Cluster) -> None:
    submitted = [cluster.submit() for _ in range(7)]
    for limit in range(1, 9):
        assert ids(client, limit=limit) == submitted[::-1]


def test_jobs_that_come_while_paging_disturb_nothing(client: TestClient, cluster: Cluster) -> None:
    submitted = [cluster.submit() for _ in range(4)]
    first = client.get("/v1/jobs", params={"limit": 2}).json()
    cluster.submit()
    rest = client.get("/v1/jobs", params={"limit": 100, "cursor": first["next"]}).json()
    assert [job["id"] for job in first["items"] + rest["items"]] == submitted[::-1]


def test_filters_of_a_listing_combine(client: TestClient, cluster: Cluster, as_root: dict[str, str]) -> None:
    cluster.settings = cluster.settings.model_copy(update={"queues": ("default", "night")})
    jobs: dict[str, tuple[str, str, str, str]] = {}
    for user, queue, name in itertools.product(("alice", "bob"), ("default", "night"), ("a", "b")):
        waiting, ended = (cluster.submit(user, queue=queue, name=name) for _ in range(2))
        cluster.cancel(ended, user)
        jobs[waiting], jobs[ended] = (user, queue, name, "queued"), (user, queue, name, "cancelled")
    choices = [(None, "alice", "carol"), (None, "night"), (None, "a", "zzz"), (None, "queued", "held")]
    for user, queue, name, state in itertools.product(*choices):
        wanted = (user, queue, name, state)
        query = dict(zip(("user", "queue", "name", "state"), wanted, strict=True))
        expected = [
            job for job, facts in jobs.items() if all(w in (None, f) for w, f in zip(wanted, facts, strict=True))
        ]
        found = ids(client, headers=as_root, limit=3, **{key: value for key, value in query.items() if value})
        assert found == expected[::-1], query
    both = ids(client, headers=as_root, state=["queued", "cancelled"])
    assert both == list(jobs)[::-1]


def test_events_and_their_pages(client: TestClient, cluster: Cluster) -> None:
    job = cluster.submit()
    cluster.advance(1)
    cluster.cancel(job)
    whole = client.get(f"/v1/jobs/{job}/events").json()
    assert whole["next"] is None
    assert [(event["kind"], event["at"], event["data"]) for event in whole["items"]] == [
        ("submitted", "2026-01-01T00:00:00Z", {"user": "alice"}),
        ("cancel_requested", "2026-01-01T00:00:01Z", {"user": "alice"}),
        ("ended", "2026-01-01T00:00:01Z", {"state": "cancelled"}),
    ]
    first = client.get(f"/v1/jobs/{job}/events", params={"limit": 2}).json()
    rest = client.get(f"/v1/jobs/{job}/events", params={"cursor": first["next"]}).json()
    assert first["items"] + rest["items"] == whole["items"]
    assert rest["next"] is None


def test_when_the_database_is_gone_the_answer_says_to_try_again(cluster: Cluster) -> None:
    nowhere = connect("postgresql://nobody@/nothing?host=/nonexistent")
    parts = Parts(
        engine=nowhere,
        settings=cluster.settings,
        tariffs=TariffSource(cluster.settings),
        hub=Hub(),
        now=lambda: cluster.now,
        new_id=cluster.new_id,
    )
    with TestClient(create_app(parts), "http://127.0.0.1", headers={"Authorization": "Bearer x"}) as client:
        for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/readyz")):
            answer = client.request(method, path, **({"json": TRUE} if method == "POST" else {}))
            assert "the database does not answer" in problem(answer, 503, "unavailable")["detail"]
            assert answer.headers["Retry-After"] == "1"
        assert client.get("/livez").status_code == 200


def test_a_bug_of_ours_is_answered_without_its_insides(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(use_cases, "look", broken)
    with TestClient(app, "http://127.0.0.1", raise_server_exceptions=False, headers=client.headers) as patient:
        body = problem(patient.get("/v1/jobs/job-1"), 500, "internal")
    assert "this is a bug of ours" in body["detail"]
    assert "secret" not in str(body)


def test_every_pattern_that_is_documented_is_said_in_words(client: TestClient) -> None:
    document = client.get("/openapi.json").text
    patterns = {json.loads(f'"{text}"') for text in re.findall(r'"pattern":"((?:[^"\\]|\\.)*)"', document)}
    assert patterns
    assert patterns <= SHAPES.keys()

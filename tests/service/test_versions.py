"""Clients and agents of other versions: what fits is served, what does not is told which side to upgrade."""

import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from protocol.states import AttemptState, JobState, Role
from protocol.version import PROTOCOL_HEADER, PROTOCOL_VERSION
from tests.recorded import first_version
from tests.recorded.first_version import Exchange, covers
from tests.service.cluster import Cluster
from tests.service.conftest import bearer
from tests.service.test_jobs_api import problem

TRUE = {"command": ["true"]}


class Caller:
    """Says what was recorded, under the ids of today, and compares the answers."""

    def __init__(self, app: FastAPI, token: str) -> None:
        self._client = TestClient(app, "http://127.0.0.1", headers=bearer(token))
        self.ids: dict[str, str] = {}

    def say(self, exchange: Exchange) -> object:
        """The answer; it has all that the caller of then finds in it."""
        path, body = exchange.path, json.dumps(exchange.body)
        for old, new in self.ids.items():
            path, body = path.replace(old, new), body.replace(old, new)
        body = body.replace('"wait_s": 20.0', '"wait_s": 0.0')  # nothing changes while this test waits
        headers = {"Content-Type": "application/json"} if exchange.body else {}
        answer = self._client.request(exchange.method, path, content=body if exchange.body else None, headers=headers)
        assert answer.status_code == exchange.status, answer.text
        if isinstance(exchange.answer, str):
            old, new = exchange.answer.splitlines()[0], answer.text.splitlines()[0]
            if old.startswith("{"):
                assert covers(json.loads(old), json.loads(new)) == []
            else:  # the heading of a table
                assert set(old.split(",")) <= set(new.split(","))
            return answer.text
        assert covers(exchange.answer, answer.json()) == []
        return answer.json()


def test_client_and_agent_of_the_first_version_run_a_job(app: FastAPI, cluster: Cluster) -> None:
    """Every request that they made then, byte for byte but for the ids, around the same job."""
    cluster.person("admin", Role.ADMIN)
    client, agent = Caller(app, cluster.tokens["admin"]), Caller(app, cluster.node_token("old-node"))
    asked, told = list(first_version.CLIENT), list(first_version.AGENT)
    agent.say(told.pop(0))
    cluster.join("node-1")
    for exchange in asked[:2]:
        client.say(exchange)
    job = client.say(asked[2])
    assert isinstance(job, dict)
    client.ids[asked[2].answer["id"]] = job["id"]
    attempt = cluster.place(job["id"], "node-1", "old-node")
    cluster.tell("node-1", attempt, AttemptState.RUNNING, rendezvous="127.0.0.1:20000")
    [old_attempt] = {member["attempt"] for exchange in told for member in exchange.body["members"]}
    agent.ids[old_attempt] = attempt.id
    for exchange in told[:-1]:
        agent.say(exchange)
    cluster.end("node-1", attempt)
    done = cluster.job(job["id"])
    assert (done.state, done.progress and done.progress.metrics) == (JobState.SUCCEEDED, {"loss": 0.5})
    assert cluster.held_devices() == set()
    for exchange in asked[3:]:
        answer = client.say(exchange)
        if exchange.method == "POST" and exchange.body:
            assert isinstance(answer, dict)
            client.ids[exchange.answer["id"]] = answer["id"]
    agent.say(told[-1])


@pytest.mark.parametrize(("version", "older"), [(PROTOCOL_VERSION - 1, "client"), (PROTOCOL_VERSION + 1, "service")])
def test_a_client_of_another_protocol_is_told_what_to_upgrade_and_changes_nothing(
    client: TestClient, cluster: Cluster, version: int, older: str
) -> None:
    for method, path in (("POST", "/v1/jobs"), ("GET", "/v1/jobs"), ("POST", "/v1/jobs/job-1/cancel")):
        body = problem(
            client.request(method, path, json=TRUE, headers={PROTOCOL_HEADER: str(version)}), 426, "protocol"
        )
        assert f"the client speaks protocol {version}, the service {PROTOCOL_VERSION}" in body["detail"]
        assert f"upgrade the {older}" in body["detail"]
    assert cluster.row_counts()["jobs"] == 0
    assert client.get("/v1/version", headers={PROTOCOL_HEADER: str(version)}).json()["protocol"] == PROTOCOL_VERSION
    assert client.post("/v1/jobs", json=TRUE, headers={PROTOCOL_HEADER: str(PROTOCOL_VERSION)}).status_code == 201


@pytest.mark.parametrize("said", ["one", "", "-1", "1.0", "9" * 5_000])
def test_a_protocol_that_is_no_number_is_named(client: TestClient, said: str) -> None:
    assert (
        PROTOCOL_HEADER in problem(client.get("/v1/jobs", headers={PROTOCOL_HEADER: said}), 400, "http-400")["detail"]
    )


def test_a_field_of_a_newer_client_or_agent_is_refused_by_name(
    client: TestClient, app: FastAPI, cluster: Cluster
) -> None:
    refused = problem(client.post("/v1/jobs", json=TRUE | {"gpus_of_tomorrow": 8}), 422, "invalid")
    assert [error["field"] for error in refused["errors"]] == ["gpus_of_tomorrow"]
    assert "unknown field" in refused["detail"]
    batch = {"jobs": [TRUE, TRUE | {"gpus_of_tomorrow": 8}]}
    refused = problem(client.post("/v1/jobs/batch", json=batch), 422, "invalid")
    assert [error["field"] for error in refused["errors"]] == ["jobs.1.gpus_of_tomorrow"]
    assert cluster.row_counts()["jobs"] == 0
    cluster.join("n1")
    agent = TestClient(app, "http://127.0.0.1", headers=bearer(cluster.node_token("n1")))
    sync = {"protocol": PROTOCOL_VERSION, "incarnation": cluster.incarnations["n1"]}
    refused = problem(agent.post("/v1/agent/sync", json=sync | {"dreams": []}), 422, "invalid")
    assert [error["field"] for error in refused["errors"]] == ["dreams"]
    assert agent.post("/v1/agent/sync", json=sync).status_code == 200

"""People and tokens over HTTP: who may add, see, make and revoke what, and that a revoked token is worth nothing."""

import json

import pytest
from fastapi.testclient import TestClient

from protocol.states import AttemptState
from protocol.version import PROTOCOL_VERSION
from service.store import accounts as store
from tests.service.cluster import Cluster
from tests.service.conftest import bearer

Headers = dict[str, str]


def ids(client: TestClient, user: str, headers: Headers | None = None) -> list[str]:
    return [token["id"] for token in client.get(f"/v1/users/{user}/tokens", headers=headers).json()["items"]]


def test_a_person_who_is_added_can_call_with_a_token(client: TestClient, as_root: Headers) -> None:
    added = client.post("/v1/users", json={"name": "carol"}, headers=as_root)
    assert (added.status_code, added.json()["role"], added.json()["tokens"]) == (201, "user", 0)
    made = client.post("/v1/users/carol/tokens", headers=as_root)
    assert made.status_code == 201
    token = made.json()["token"]
    assert made.json()["ending"] == token[-4:]
    assert client.get("/v1/me", headers=bearer(token)).json() == {"user": "carol", "role": "user"}
    listed = client.get("/v1/users/carol/tokens", headers=bearer(token))
    assert [item["id"] for item in listed.json()["items"]] == [made.json()["id"]]
    assert token not in listed.text, "a token is shown once"


def test_adding_somebody_twice_finds_the_same_person_and_another_role_is_no_way_in(
    client: TestClient, cluster: Cluster, as_root: Headers
) -> None:
    statuses = [
        client.post("/v1/users", json={"name": "carol"}, headers=as_root).status_code,
        client.post("/v1/users", json={"name": "carol"}, headers=as_root).status_code,
    ]
    assert statuses == [201, 200]
    refused = client.post("/v1/users", json={"name": "carol", "role": "admin"}, headers=as_root)
    assert refused.status_code == 409
    assert refused.json()["type"] == "urn:ergon:user-exists"
    assert "ergon user role carol admin" in refused.json()["detail"]
    assert cluster.row_counts()["users"] == 3  # alice, root, carol


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": "no name"}, "name"),
        ({"name": "x", "role": "king"}, "role"),
        ({"name": "x", "a": 1}, "a"),
    ],
)
def test_people_who_cannot_be_are_refused_by_field(
    client: TestClient, as_root: Headers, body: dict[str, object], field: str
) -> None:
    refused = client.post("/v1/users", json=body, headers=as_root)
    assert refused.status_code == 422
    assert [error["field"] for error in refused.json()["errors"]] == [field]


def test_people_are_listed_page_by_page(client: TestClient, cluster: Cluster, as_root: Headers) -> None:
    for name in ("carol", "bob"):
        cluster.person(name)
    names: list[str] = []
    cursor = ""
    while cursor is not None:
        page = client.get("/v1/users", params={"limit": 2, "cursor": cursor}, headers=as_root).json()
        assert len(page["items"]) <= 2
        names += [user["name"] for user in page["items"]]
        cursor = page["next"]
    assert names == ["alice", "bob", "carol", "root"]


def test_a_user_has_no_say_over_others(client: TestClient, cluster: Cluster, as_bob: Headers, as_root: Headers) -> None:
    [root_token] = ids(client, "root", as_root)
    [own] = ids(client, "alice")
    refused = [
        client.post("/v1/users", json={"name": "x"}),
        client.get("/v1/users"),
        client.patch("/v1/users/alice", json={"role": "admin"}),
        client.post("/v1/users/bob/tokens"),
        client.get("/v1/users/bob/tokens"),
        client.get("/v1/users/nobody/tokens"),
        client.get("/v1/nodes/n1/tokens"),
        client.post("/v1/join-tokens", json={}),
    ]
    assert [answer.status_code for answer in refused] == [403] * len(refused)
    assert client.delete(f"/v1/tokens/{root_token}").status_code == 404, "not even whether there is such a token"
    assert client.get("/v1/me", headers=as_root).status_code == 200
    assert client.delete(f"/v1/tokens/{own}").status_code == 204


def test_a_revoked_token_is_worth_nothing_and_the_others_go_on(client: TestClient, as_root: Headers) -> None:
    made = client.post("/v1/users/alice/tokens").json()
    second = bearer(made["token"])
    for _ in range(2):
        assert client.delete(f"/v1/tokens/{made['id']}").status_code == 204, "revoking again changes nothing"
    assert client.get("/v1/me", headers=second).status_code == 401
    assert client.get("/v1/me").status_code == 200
    assert made["id"] not in ids(client, "alice")
    assert client.delete("/v1/tokens/token-0", headers=as_root).status_code == 404


def test_an_administrator_revokes_anybodys_token(client: TestClient, as_root: Headers) -> None:
    [token] = ids(client, "alice", as_root)
    assert client.delete(f"/v1/tokens/{token}", headers=as_root).status_code == 204
    assert client.get("/v1/me").status_code == 401


def test_a_role_holds_for_every_token_of_the_person_at_once(client: TestClient, as_root: Headers) -> None:
    assert client.get("/v1/users").status_code == 403
    changed = client.patch("/v1/users/alice", json={"role": "admin"}, headers=as_root)
    assert (changed.status_code, changed.json()["role"]) == (200, "admin")
    assert client.get("/v1/users").status_code == 200
    client.patch("/v1/users/alice", json={"role": "user"}, headers=as_root)
    assert client.get("/v1/users").status_code == 403
    unknown = client.patch("/v1/users/nobody", json={"role": "user"}, headers=as_root)
    assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:ergon:unknown-user")


def test_there_is_always_an_administrator_who_can_call(client: TestClient, cluster: Cluster, as_root: Headers) -> None:
    [token] = ids(client, "root", as_root)
    for refused in (
        client.patch("/v1/users/root", json={"role": "user"}, headers=as_root),
        client.delete(f"/v1/tokens/{token}", headers=as_root),
    ):
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:ergon:last-admin")
    client.post("/v1/users", json={"name": "ada", "role": "admin"}, headers=as_root)
    assert client.patch("/v1/users/root", json={"role": "user"}, headers=as_root).status_code == 409, "ada has no token"
    client.post("/v1/users/ada/tokens", headers=as_root)
    assert client.patch("/v1/users/root", json={"role": "user"}, headers=as_root).status_code == 200


def test_a_followed_log_ends_when_the_token_is_revoked(
    client: TestClient, cluster: Cluster, as_root: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.join("n1")
    job = cluster.submit()
    attempt = cluster.place(job, "n1")
    chunk = {"attempt": attempt.id, "rank": 0, "stream": "stdout", "offset": 0, "data": "aGVsbG8="}
    cluster.sync("n1", chunks=[chunk])
    cluster.tell("n1", attempt, AttemptState.RUNNING)
    [token] = ids(client, "alice")
    waits = 0

    async def revoke_meanwhile(*_: object) -> None:
        nonlocal waits
        waits += 1
        assert waits < 3, "the stream should have ended"
        if waits == 2:
            with cluster.engine.begin() as tx:
                store.revoke_token(tx, token, now=cluster.now)

    monkeypatch.setattr("service.api.hub.Hub.wait", revoke_meanwhile)
    lines = [line for line in client.get(f"/v1/jobs/{job}/logs?follow=true").text.splitlines() if line]
    assert [json.loads(line)["text"] for line in lines] == ["hello"]
    assert waits == 2


def test_a_parked_agent_is_refused_when_its_credential_is_revoked(
    client: TestClient, cluster: Cluster, as_root: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.join("n1")
    credential = cluster.node_token("n1")
    [token] = client.get("/v1/nodes/n1/tokens", headers=as_root).json()["items"]
    assert (token["owner"], token["ending"]) == ("n1", credential[-4:])

    async def revoke_meanwhile(*_: object) -> None:
        with cluster.engine.begin() as tx:
            store.revoke_token(tx, token["id"], now=cluster.now)

    monkeypatch.setattr("service.api.hub.Hub.wait", revoke_meanwhile)
    body = {"protocol": PROTOCOL_VERSION, "incarnation": 1, "wait_s": 20, "version": cluster.sync("n1").version}
    refused = client.post("/v1/agent/sync", json=body, headers=bearer(credential))
    assert refused.status_code == 401
    assert "ergon join-token new" in refused.json()["detail"]

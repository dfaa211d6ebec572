"""How an agent becomes a node: one join token, one agent, one name, in time."""

import hashlib
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from protocol.version import PROTOCOL_VERSION
from tests.service.cluster import Cluster, node_report
from tests.service.conftest import bearer

Headers = dict[str, str]


def join_token(client: TestClient, as_root: Headers, **wanted: object) -> str:
    made = client.post("/v1/join-tokens", json=wanted, headers=as_root)
    assert made.status_code == 201, made.text
    return made.json()["token"]


def join(client: TestClient, token: str, node: str = "n1", credential: str = "c1", **more: Any) -> httpx.Response:
    digest = hashlib.sha256(credential.encode()).hexdigest()
    body = {"protocol": PROTOCOL_VERSION, "node": node, "credential_hash": digest} | more
    return client.post("/v1/agent/join", json=body, headers=bearer(token))


def register(client: TestClient, node: str, credential: str) -> int:
    body = {"protocol": PROTOCOL_VERSION, "report": node_report(node, 1).model_dump(mode="json")}
    return client.post("/v1/agent/register", json=body, headers=bearer(credential)).status_code


def test_an_agent_that_joins_is_the_node(client: TestClient, as_root: Headers) -> None:
    assert register(client, "n1", "c1") == 401
    joined = join(client, join_token(client, as_root))
    assert (joined.status_code, joined.json()) == (200, {"node": "n1"})
    assert register(client, "n1", "c1") == 200
    assert client.get("/v1/jobs", headers=bearer("c1")).status_code == 403, "a node is no person"


def test_the_same_agent_may_repeat_itself_and_nobody_else_may(client: TestClient, as_root: Headers) -> None:
    token = join_token(client, as_root)
    assert [join(client, token).status_code for _ in range(2)] == [200, 200], "as when the answer was lost"
    for refused in (join(client, token, credential="c2"), join(client, token, node="n2")):
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:ergon:join-token-spent")
        assert "node 'n1' has joined with this token" in refused.json()["detail"]
    assert register(client, "n1", "c2") == 401


def test_a_join_token_expires(client: TestClient, cluster: Cluster, as_root: Headers) -> None:
    early, late = (join_token(client, as_root, valid_s=60) for _ in range(2))
    cluster.advance(59)
    assert join(client, early, "n1", "c1").status_code == 200
    cluster.advance(1)
    refused = join(client, late, "n2", "c2")
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:ergon:join-token-spent")
    assert "was good until 2026-01-01 00:01:00 UTC" in refused.json()["detail"]
    assert join(client, early, "n1", "c1").status_code == 200, "who has joined has joined"


def test_a_join_token_for_one_name_is_for_no_other(client: TestClient, as_root: Headers) -> None:
    token = join_token(client, as_root, node="n1")
    refused = join(client, token, "n2")
    assert refused.status_code == 403
    assert "for node 'n1', not 'n2'; start the agent with --name n1" in refused.json()["detail"]
    assert join(client, token, "n1").status_code == 200, "a refusal does not use it up"


def test_a_node_with_a_credential_gives_way_only_to_a_token_that_says_so(client: TestClient, as_root: Headers) -> None:
    assert join(client, join_token(client, as_root)).status_code == 200
    by_name = client.post("/v1/join-tokens", json={"node": "n1"}, headers=as_root)
    anybody = join(client, join_token(client, as_root), "n1", "c2")
    for refused in (by_name, anybody):
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:ergon:node-taken")
        assert "ergon join-token new --node n1 --replace" in refused.json()["detail"]
    assert register(client, "n1", "c1") == 200
    assert join(client, join_token(client, as_root, node="n1", replace=True), "n1", "c2").status_code == 200
    assert register(client, "n1", "c1") == 401, "the agent of before is shut out"
    assert register(client, "n1", "c2") == 200


def test_a_node_whose_credential_is_revoked_may_join_anew(client: TestClient, as_root: Headers) -> None:
    join(client, join_token(client, as_root))
    [credential] = client.get("/v1/nodes/n1/tokens", headers=as_root).json()["items"]
    assert client.delete(f"/v1/tokens/{credential['id']}", headers=as_root).status_code == 204
    assert register(client, "n1", "c1") == 401
    again = join(client, join_token(client, as_root, node="n1"), "n1", "c1")
    assert again.status_code == 409
    assert "has joined as 'n1' before; empty its state folder" in again.json()["detail"]
    assert join(client, join_token(client, as_root, node="n1"), "n1", "c2").status_code == 200


@pytest.mark.parametrize("token", ["ergon_join_nonsense", "", "a token of alice"])
def test_without_a_join_token_nobody_joins(client: TestClient, cluster: Cluster, token: str) -> None:
    refused = join(client, cluster.tokens["alice"] if token.startswith("a ") else token)
    assert refused.status_code == 401
    assert cluster.row_counts()["join_tokens"] == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"valid_s": 0}, "valid_s"),
        ({"valid_s": 7 * 86_400 + 1}, "valid_s"),
        ({"node": "no name"}, "node"),
        ({"replace": True}, "replace"),
    ],
)
def test_join_tokens_that_cannot_be_are_refused_by_field(
    client: TestClient, as_root: Headers, body: dict[str, object], field: str
) -> None:
    refused = client.post("/v1/join-tokens", json=body, headers=as_root)
    assert refused.status_code == 422
    assert [error["field"] for error in refused.json()["errors"]] == [field]


def test_an_agent_of_another_version_is_told_so_and_keeps_its_join_token(client: TestClient, as_root: Headers) -> None:
    token = join_token(client, as_root)
    assert join(client, token, protocol=PROTOCOL_VERSION + 1).status_code == 426
    assert join(client, token, credential_hash="c1").status_code == 422
    assert join(client, token).status_code == 200

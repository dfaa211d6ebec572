"""Who may call: people and nodes have tokens of their own, and the database holds no token that could be used."""

import hashlib
import re
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select, text, update

from protocol.states import Role
from protocol.version import PROTOCOL_VERSION
from service import auth
from service.models import metadata, tokens
from service.refusals import Forbidden, Unauthorised
from tests.service.cluster import Cluster, node_report
from tests.service.conftest import bearer

PUBLIC = {"/livez", "/readyz", "/v1/version", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}


def test_only_the_hash_of_a_token_is_kept(cluster: Cluster) -> None:
    cluster.person("alice")
    token, node_token = cluster.tokens["alice"], cluster.node_token("n1")
    with cluster.engine.begin() as tx:
        rows = tx.execute(select(tokens.c.hash)).scalars().all()
        assert {bytes(row) for row in rows} == {hashlib.sha256(each.encode()).digest() for each in (token, node_token)}
        for table in metadata.sorted_tables:
            stored = tx.execute(text(f'SELECT row_to_json(t)::text FROM "{table.name}" t')).scalars().all()
            assert not [row for row in stored if token[len("ergon_user_") :] in row]


def test_tokens_begin_with_what_they_are_for_and_never_repeat(cluster: Cluster) -> None:
    cluster.person("alice")
    assert cluster.tokens["alice"].startswith("ergon_user_")
    made = [cluster.node_token("n1") for _ in range(3)]
    assert all(token.startswith("ergon_node_") and len(token) >= len("ergon_node_") + 43 for token in made)
    assert len(set(made)) == 3


def test_a_person_keeps_the_role_and_may_have_several_tokens(cluster: Cluster) -> None:
    first = cluster.person("alice")
    with cluster.engine.begin() as tx:
        token = auth.make_user_token(tx, name="alice", role=Role.USER, now=cluster.now, new_id=cluster.new_id)
        assert auth.identify_person(tx, f"bearer  {token} ") == first
        assert auth.identify_person(tx, f"Bearer {cluster.tokens['alice']}") == first
        with pytest.raises(Forbidden, match="user 'alice' exists with role 'user'; ask for a token with that role"):
            auth.make_user_token(tx, name="alice", role=Role.ADMIN, now=cluster.now, new_id=cluster.new_id)


def test_a_revoked_token_is_worth_nothing(cluster: Cluster) -> None:
    cluster.person("alice")
    with cluster.engine.begin() as tx:
        tx.execute(update(tokens).values(revoked_at=cluster.now))
        with pytest.raises(Unauthorised, match="the token is not valid"):
            auth.identify_person(tx, f"Bearer {cluster.tokens['alice']}")


REFUSED_HEADERS: list[tuple[str | None, str]] = [
    (None, "send the header `Authorization: Bearer TOKEN`"),
    ("", "send the header `Authorization: Bearer TOKEN`"),
    ("Bearer", "send the header `Authorization: Bearer TOKEN`"),
    ("Bearer   ", "send the header `Authorization: Bearer TOKEN`"),
    ("Basic YWxpY2U6cGFzc3dvcmQ=", "send the header `Authorization: Bearer TOKEN`"),
    ("Bearer ergon_user_", "the token is not valid; get a new one with"),
    ("Bearer ergon_user_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "the token is not valid"),
    ("Bearer ' OR 1=1 --", "the token is not valid"),
    ("Bearer \xff\x80", "the token is not valid"),
    ("Bearer " + "x" * 20_000, "the token is not valid"),
]


def test_without_a_valid_token_nobody_gets_in(client: TestClient, subtests: pytest.Subtests) -> None:
    client.headers.pop("Authorization")
    for header, says in REFUSED_HEADERS:
        with subtests.test(header=(header or "")[:30]):
            headers = {} if header is None else {"Authorization": header.encode("latin-1")}
            answer = client.get("/v1/me", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.json()["type"] == "urn:ergon:unauthorised"
            assert says in answer.json()["detail"]


def test_a_token_says_who_calls(client: TestClient, as_root: dict[str, str]) -> None:
    assert client.get("/v1/me").json() == {"user": "alice", "role": "user"}
    assert client.get("/v1/me", headers=as_root).json() == {"user": "root", "role": "admin"}


def test_people_and_nodes_cannot_stand_in_for_each_other(client: TestClient, cluster: Cluster) -> None:
    cluster.join("n1")
    as_node = bearer(cluster.node_token("n1"))
    sync = {"protocol": PROTOCOL_VERSION, "incarnation": 1}
    register = {"protocol": PROTOCOL_VERSION, "report": node_report("n1", 2).model_dump(mode="json")}
    for path, body in (("/v1/agent/sync", sync), ("/v1/agent/register", register)):
        refused = client.post(path, json=body)
        assert refused.status_code == 403
        assert "this is the token of a person" in refused.json()["detail"]
        assert client.post(path, json=body, headers=as_node).status_code == 200
    refused = client.get("/v1/jobs", headers=as_node)
    assert refused.status_code == 403
    assert "this is the token of a node" in refused.json()["detail"]


def test_plans_are_for_administrators(client: TestClient, as_root: dict[str, str]) -> None:
    for path in ("/v1/cycles", "/v1/cycles/1"):
        refused = client.get(path)
        assert refused.status_code == 403
        assert refused.json()["detail"] == "only an administrator may do this"
    assert client.get("/v1/cycles", headers=as_root).json() == {"items": [], "next": None}


def operations(app: FastAPI) -> list[tuple[str, str]]:
    """Every method and path that the application answers."""
    found: list[tuple[str, str]] = []
    pending: list[Any] = list(app.routes)
    while pending:
        route = pending.pop()
        included = getattr(route, "original_router", route)
        pending.extend(getattr(included, "routes", None) or ())
        found.extend((method, route.path) for method in getattr(route, "methods", None) or ())
    return found


def test_every_route_but_the_public_ones_wants_a_token(app: FastAPI, client: TestClient) -> None:
    client.headers.pop("Authorization")
    walked = operations(app)
    assert {path for _, path in walked} >= {"/v1/jobs", "/v1/jobs/{job_id}/logs", "/v1/agent/sync", "/metrics"} | PUBLIC
    for method, path in walked:
        if not path.startswith("/v1/") and path not in PUBLIC | {"/metrics"}:
            continue  # a page, which sends strangers to sign in: see test_web.py
        concrete = re.sub(r"\{\w+\}", "1", path)
        status = client.request(method, concrete).status_code
        if path in PUBLIC:
            assert status == 200, (method, path)
        else:
            assert status == 401, (method, path)

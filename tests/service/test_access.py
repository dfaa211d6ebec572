"""Who gets where: every operation with every kind of token, and what belongs to somebody else."""

from collections.abc import Iterator
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from protocol.accounts import NewJoinToken
from protocol.version import PROTOCOL_VERSION
from service import joining
from tests.service.cluster import Cluster
from tests.service.conftest import SignIn, bearer
from tests.service.test_archives import CODE, digest_of, upload

PUBLIC = {"GET /livez", "GET /readyz", "GET /v1/version"}
ADMIN_ONLY = {
    "POST /v1/users",
    "GET /v1/users",
    "PATCH /v1/users/{name}",
    "GET /v1/nodes/{name}/tokens",
    "POST /v1/join-tokens",
    "POST /v1/nodes/{name}/cordon",
    "POST /v1/nodes/{name}/uncordon",
    "POST /v1/nodes/{name}/drain",
    "POST /v1/nodes/{name}/confirm-down",
    "POST /v1/nodes/{name}/on",
    "POST /v1/nodes/{name}/off",
    "POST /v1/jobs/{job_id}/preempt",
    "GET /v1/cycles",
    "GET /v1/cycles/{cycle_id}",
}
JOIN_ONLY = {"POST /v1/agent/join"}
BODIES = {
    "POST /v1/agent/join": {"protocol": PROTOCOL_VERSION, "node": "n9", "credential_hash": "0" * 64},
}
"""Where the token is looked at after the body only."""

SEES = {"job_id", "array_id", "token_id"}
"""Parameters that name what belongs to one person."""


def operations(app: FastAPI) -> list[str]:
    return [f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods]


def who_may(operation: str) -> set[str]:
    if operation in PUBLIC:
        return {"admin", "user", "node", "join", "nobody"}
    if operation in JOIN_ONLY:
        return {"join"}
    if "/v1/agent/" in operation:
        return {"node"}
    return {"admin"} if operation in ADMIN_ONLY else {"admin", "user"}


def join_token(cluster: Cluster) -> str:
    with cluster.engine.begin() as tx:
        return joining.new_join_token(tx, cluster.people["root"], NewJoinToken(), now=cluster.now).token


@pytest.mark.parametrize("kind", ["admin", "user", "node", "join", "nobody"])
def test_each_kind_of_token_opens_its_own_operations_only(
    app: FastAPI, client: TestClient, as_root: dict[str, str], cluster: Cluster, kind: str
) -> None:
    cluster.join("n1")
    client.headers.pop("Authorization")
    headers = {
        "admin": as_root,
        "user": bearer(cluster.tokens["alice"]),
        "node": bearer(cluster.node_token("n1")),
        "join": bearer(join_token(cluster)),
        "nobody": {},
    }[kind]
    wrong: dict[str, int] = {}
    for operation in operations(app):
        method, path = operation.split()
        path = path.replace("/users/{name}", "/users/alice")
        for name in ("name", "job_id", "array_id", "cycle_id", "token_id", "attempt", "member"):
            path = path.replace(f"{{{name}}}", "7")
        path = path.replace("{sha256}", "0" * 64)
        status = client.request(method, path, headers=headers, json=BODIES.get(operation)).status_code
        if (status not in {401, 403}) != (kind in who_may(operation)):
            wrong[operation] = status
    assert not wrong


@pytest.fixture
def secret(client: TestClient, cluster: Cluster) -> dict[str, str]:
    """Something of everything that alice owns, each with a word of its own in it; the ids by parameter."""
    cluster.join("n1")
    digest = upload(client)
    spec = {"name": "canary-name", "command": ["python", "canary-word"], "env": {"KEY": "canary-value"}, "code": digest}
    job = cluster.submit("alice", **spec)
    array = cluster.job(cluster.submit("alice", name="canary-array", array={"count": 2})).array
    assert array is not None
    attempt = cluster.place(job, "n1")
    chunk = {"attempt": attempt.id, "rank": 0, "stream": "stdout", "offset": 0, "data": "Y2FuYXJ5LW91dHB1dA=="}
    cluster.sync("n1", chunks=[chunk])
    token = client.get("/v1/users/alice/tokens").json()["items"][0]["id"]
    return {"job_id": job, "array_id": array.id, "token_id": token, "attempt": attempt.id, "sha256": digest}


def test_what_belongs_to_somebody_else_is_as_good_as_unknown(
    app: FastAPI, client: TestClient, as_bob: dict[str, str], secret: dict[str, str]
) -> None:
    tried: set[str] = set()
    for operation in operations(app):
        method, path = operation.split()
        named = next((name for name in SEES if f"{{{name}}}" in path), None)
        if named is None or operation in ADMIN_ONLY:  # nothing of it is told anybody else
            continue
        body = {"priority": 1} if method == "PATCH" else None
        answers = [
            client.request(method, path.format(**{named: value}, member=0), headers=as_bob, json=body)
            for value in (secret[named], "unknown")
        ]
        assert [answer.status_code for answer in answers] == [404, 404], operation
        foreign, unknown = (answer.json() for answer in answers)
        assert foreign["detail"].replace(secret[named], "unknown") == unknown["detail"], operation
        tried.add(named)
    assert tried == SEES
    for name in ("alice", "unknown"):
        assert client.get(f"/v1/users/{name}/tokens", headers=as_bob).status_code == 403
        assert client.post(f"/v1/users/{name}/tokens", headers=as_bob).status_code == 403
    assert client.head(f"/v1/archives/{secret['sha256']}", headers=as_bob).status_code == 404
    assert client.get(f"/v1/jobs/{secret['job_id']}").json()["state"] == "starting"


def test_a_node_gets_at_nothing_of_another_node(client: TestClient, cluster: Cluster, secret: dict[str, str]) -> None:
    cluster.join("n2")
    headers = bearer(cluster.node_token("n2"))
    output = f"/v1/agent/attempts/{secret['attempt']}/outputs/0?sha256={digest_of(CODE)}"
    assert client.put(output, content=CODE, headers=headers).status_code == 404
    assert client.get(f"/v1/agent/archives/{secret['sha256']}", headers=headers).status_code == 404
    assert client.put(output, content=CODE, headers=bearer(cluster.node_token("n1"))).status_code == 204


def near(identity: str) -> Iterator[str]:
    """What a careless comparison takes for the same."""
    yield from (
        identity[:-1],
        identity.upper(),
        f"{identity} ",
        f"{identity}%",
        f"{identity}\0",
        f"{identity}/",
        f"./{identity}",
    )
    yield from (identity.replace("-", "_"), identity.replace("-", "\u2010"), f"x/../{identity}")


def test_an_id_is_that_id_and_nothing_like_it(client: TestClient, secret: dict[str, str]) -> None:
    assert client.get(f"/v1/jobs/{secret['job_id']}").status_code == 200
    for other in near(secret["job_id"]):
        status = client.get(f"/v1/jobs/{quote(other, safe='')}", follow_redirects=False).status_code
        assert status in {404, 422}, other


def test_nothing_of_somebody_else_is_in_any_listing_report_or_page(
    app: FastAPI, client: TestClient, as_bob: dict[str, str], secret: dict[str, str], sign_in: SignIn
) -> None:
    listings = [name.split()[1] for name in operations(app) if name.startswith("GET") and "{" not in name]
    for path in (*listings, "/v1/reports/allocation?format=csv", "/v1/jobs?user=alice", "/v1/nodes/n1"):
        assert canaries(client.get(path, headers=as_bob).text, secret) == [], path
    visitor = sign_in("bob")
    for path in ("/", "/jobs", "/jobs?user=alice", "/report", "/report.csv", f"/jobs/{secret['job_id']}"):
        assert canaries(visitor.get(path).text, secret) == [], path
    assert canaries(client.get("/v1/jobs").text, secret) != []


def canaries(text: str, secret: dict[str, str]) -> list[str]:
    words = ["canary", secret["array_id"], secret["attempt"], secret["token_id"], secret["sha256"]]
    return [word for word in words if word in text]

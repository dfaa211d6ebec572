"""Code and outputs over HTTP: who may store and see what, and that nothing wrong is kept."""

import hashlib
import os
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from protocol.jobs import AttemptView
from protocol.states import AttemptState
from service import archives as use_cases
from service.api import limits
from service.api.app import create_app
from service.api.deps import Parts
from service.api.hub import Hub
from service.settings import Settings
from service.tariff_source import TariffSource
from tests.service.cluster import Cluster
from tests.service.conftest import bearer
from tests.tmpfs import needs_root, small_disk

CODE = b"an archive, as far as the service can tell"
Headers = dict[str, str]


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def upload(client: TestClient, data: bytes = CODE, headers: Headers | None = None) -> str:
    digest = digest_of(data)
    answer = client.put(f"/v1/archives/{digest}", content=data, headers=headers)
    assert answer.status_code == 204, answer.text
    return digest


def blobs(cluster: Cluster) -> list[bytes]:
    """What lies in the store."""
    return [path.read_bytes() for path in Path(cluster.settings.data_dir / "store").rglob("*") if path.is_file()]


def kind_of(answer: object) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].removeprefix("urn:ergon:")  # pyright: ignore


def submit(client: TestClient, code: str, headers: Headers | None = None) -> object:
    return client.post("/v1/jobs", json={"command": ["python", "x.py"], "code": code}, headers=headers)


def test_an_archive_is_stored_once_and_found_again(client: TestClient, cluster: Cluster) -> None:
    assert client.head(f"/v1/archives/{digest_of(CODE)}").status_code == 404
    digest = upload(client)
    assert client.head(f"/v1/archives/{digest}").status_code == 204
    upload(client)
    assert blobs(cluster) == [CODE]


def test_a_body_that_is_not_its_digest_leaves_nothing(client: TestClient, cluster: Cluster) -> None:
    answer = client.put(f"/v1/archives/{digest_of(b'other')}", content=CODE)
    assert kind_of(answer) == (422, "invalid")
    assert digest_of(CODE) in answer.json()["detail"]
    assert blobs(cluster) == []
    assert client.head(f"/v1/archives/{digest_of(b'other')}").status_code == 404


@needs_root
def test_a_full_store_says_so_and_keeps_nothing_half(engine: Engine, tmp_path: Path) -> None:
    with small_disk(4) as disk:
        cluster = Cluster(engine=engine, settings=Settings(data_dir=tmp_path, store_url=str(disk.folder / "store")))
        cluster.person("alice")
        parts = Parts(
            engine=engine,
            settings=cluster.settings,
            tariffs=TariffSource(cluster.settings),
            hub=Hub(),
            now=lambda: cluster.now,
            new_id=cluster.new_id,
        )
        code = os.urandom(3 << 20)
        with TestClient(create_app(parts), "http://127.0.0.1", headers=bearer(cluster.tokens["alice"])) as client:
            disk.fill(leave=1 << 20)
            answer = client.put(f"/v1/archives/{digest_of(code)}", content=code)
            assert kind_of(answer) == (507, "no-space")
            assert "ERGON_STORE_URL" in answer.json()["detail"]
            assert client.head(f"/v1/archives/{digest_of(code)}").status_code == 404
            assert [path for path in (disk.folder / "store").rglob("*") if path.is_file()] == []
            assert client.get("/readyz").status_code == 200
            disk.make_room()
            assert upload(client, code) == digest_of(code)


def test_a_long_body_is_taken_up_to_the_limit(
    client: TestClient, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(client, bytes(11 << 20))
    monkeypatch.setattr(limits, "UPLOADS", [(limits.UPLOADS[0][0], 1_000)])
    data = bytes(2_000)
    assert kind_of(client.put(f"/v1/archives/{digest_of(data)}", content=data)) == (413, "http-413")
    pieces = (data[:900], data[900:])
    answer = client.put(f"/v1/archives/{digest_of(data)}", content=iter(pieces))
    assert kind_of(answer) == (413, "http-413")
    assert len(blobs(cluster)) == 1


def test_code_that_somebody_else_uploaded_is_unknown(client: TestClient, as_bob: Headers, cluster: Cluster) -> None:
    digest = upload(client)
    assert client.head(f"/v1/archives/{digest}", headers=as_bob).status_code == 404
    refused = submit(client, digest, as_bob)
    unknown = submit(client, digest_of(b"never seen"), as_bob)
    assert kind_of(refused) == kind_of(unknown) == (422, "invalid")
    assert refused.json()["errors"][0]["field"] == "code"  # pyright: ignore
    upload(client, headers=as_bob)
    assert submit(client, digest, as_bob).status_code == 201  # pyright: ignore
    assert blobs(cluster) == [CODE]


def test_a_node_gets_the_code_of_its_attempts_only(client: TestClient, cluster: Cluster) -> None:
    for name in ("n1", "n2"):
        cluster.join(name)
    mine, others = bearer(cluster.node_token("n1")), bearer(cluster.node_token("n2"))
    digest = upload(client)
    path = f"/v1/agent/archives/{digest}"
    job = submit(client, digest).json()["id"]  # pyright: ignore
    assert client.get(path, headers=mine).status_code == 404
    attempt = cluster.place(job, "n1")
    answer = client.get(path, headers=mine)
    assert (answer.status_code, answer.content) == (200, CODE)
    assert client.get(path, headers=others).status_code == 404
    assert client.get(path).status_code == 403
    assert cluster.sync("n1").assignments[0].code == digest
    cluster.end("n1", attempt)
    assert client.get(path, headers=mine).status_code == 404


def test_the_oldest_unneeded_code_makes_room(
    client: TestClient, cluster: Cluster, as_bob: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use_cases, "QUOTA_BYTES", 300)
    data = [bytes([number]) * 100 for number in range(5)]
    upload(client, data[0], headers=as_bob)
    for number in range(3):
        upload(client, data[number])
        cluster.advance(1)
    submit(client, digest_of(data[0]))
    upload(client, data[3])
    held = [client.head(f"/v1/archives/{digest_of(each)}").status_code for each in data]
    assert held == [204, 404, 204, 204, 404]
    assert sorted(blobs(cluster)) == sorted([data[0], data[2], data[3]])
    submit(client, digest_of(data[2]))
    submit(client, digest_of(data[3]))
    answer = client.put(f"/v1/archives/{digest_of(data[4])}", content=data[4])
    assert kind_of(answer) == (422, "archive-quota")
    assert "hold 300 bytes of code and this is 100 bytes more" in answer.json()["detail"]
    assert len(blobs(cluster)) == 3
    assert client.head(f"/v1/archives/{digest_of(data[0])}", headers=as_bob).status_code == 204


@pytest.fixture
def attempt(cluster: Cluster) -> AttemptView:
    """A gang of alice's on n1 and n2."""
    for name in ("n1", "n2"):
        cluster.join(name)
    return cluster.place(cluster.submit(nodes=2), "n1", "n2")


def put_output(
    client: TestClient, cluster: Cluster, node: str, attempt: str, member: int, data: bytes, sha256: str = ""
) -> object:
    return client.put(
        f"/v1/agent/attempts/{attempt}/outputs/{member}",
        params={"sha256": sha256 or digest_of(data)},
        content=data,
        headers=bearer(cluster.node_token(node)),
    )


def test_outputs_are_stored_once_and_listed(
    client: TestClient, cluster: Cluster, attempt: AttemptView, as_bob: Headers
) -> None:
    [job] = [item["id"] for item in client.get("/v1/jobs").json()["items"]]
    assert client.get(f"/v1/jobs/{job}/outputs").json() == {"items": []}
    assert kind_of(client.get(f"/v1/jobs/{job}/outputs/0")) == (404, "unknown-output")
    for _ in range(2):
        assert put_output(client, cluster, "n1", attempt.id, 0, b"model").status_code == 204  # pyright: ignore
    assert kind_of(put_output(client, cluster, "n1", attempt.id, 0, b"another")) == (409, "output-exists")
    assert blobs(cluster) == [b"model"]
    [item] = client.get(f"/v1/jobs/{job}/outputs").json()["items"]
    assert (item["member"], item["node"], item["epoch"], item["size_bytes"]) == (0, "n1", 1, 5)
    assert client.get(f"/v1/jobs/{job}/outputs/0").content == b"model"
    assert client.get(f"/v1/jobs/{job}/outputs/0", params={"epoch": 2}).status_code == 404
    for path in (f"/v1/jobs/{job}/outputs", f"/v1/jobs/{job}/outputs/0"):
        assert kind_of(client.get(path, headers=as_bob)) == (404, "unknown-job")


@pytest.mark.parametrize(("node", "member"), [("n1", 1), ("n2", 0), ("n1", 7)])
def test_a_node_stores_for_its_own_member_only(
    client: TestClient, cluster: Cluster, attempt: AttemptView, node: str, member: int
) -> None:
    assert kind_of(put_output(client, cluster, node, attempt.id, member, b"x")) == (404, "unknown-attempt")
    assert kind_of(put_output(client, cluster, node, "try-none", 0, b"x")) == (404, "unknown-attempt")
    assert blobs(cluster) == []


def test_an_output_that_comes_after_the_end_is_refused(
    client: TestClient, cluster: Cluster, attempt: AttemptView
) -> None:
    cluster.tell("n1", attempt, AttemptState.ENDED, reason="completed", exit_code=0, clean=False)
    assert put_output(client, cluster, "n1", attempt.id, 0, b"x").status_code == 204  # pyright: ignore
    cluster.end("n2", attempt)
    assert kind_of(put_output(client, cluster, "n2", attempt.id, 1, b"x")) == (404, "unknown-attempt")


def test_an_output_that_is_not_its_digest_leaves_nothing(
    client: TestClient, cluster: Cluster, attempt: AttemptView
) -> None:
    answer = put_output(client, cluster, "n1", attempt.id, 0, b"x", sha256=digest_of(b"y"))
    assert kind_of(answer) == (422, "invalid")
    assert blobs(cluster) == []


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"code": "0" * 64, "command": None, "recipe": {"name": "digits-mlp"}}, "go with a `command`"),
        ({"requirements": "requirements.txt"}, "a file inside `code`"),
        ({"requirements": "../r.txt", "code": "0" * 64}, "plain path inside the code"),
        ({"requirements": "/r.txt", "code": "0" * 64}, "plain path inside the code"),
        ({"datasets": {"a": "/x", "A": "/y"}}, "differ only in capitals"),
        ({"datasets": {"a": "data/x"}}, "absolute path on the node or a URL"),
        ({"datasets": {"a b": "/x"}}, "begin with a letter"),
        ({"code": "../../etc/passwd"}, "a SHA-256"),
        ({"python": ""}, "at least 1"),
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused(client: TestClient, fields: dict[str, object], says: str) -> None:
    answer = client.post("/v1/jobs", json={"command": ["python", "x.py"], **fields})
    assert kind_of(answer) == (422, "invalid")
    assert says in answer.json()["detail"]

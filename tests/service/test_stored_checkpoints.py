"""Checkpoints that the service keeps for nodes without a shared folder: they count once all of it has arrived."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from ergon.checkpoints import Mark, prune, written
from protocol.checkpoints import CheckpointPart, PartAnswer
from protocol.jobs import AttemptView, CheckpointMark
from protocol.states import EndReason
from service.api.app import create_app
from service.api.deps import Parts
from service.api.hub import Hub
from service.tariff_source import TariffSource
from tests.invariants import i11_the_latest_is_of_an_attempt_and_whole
from tests.service.cluster import Cluster
from tests.service.conftest import bearer
from tests.tmpfs import needs_root, small_disk
from workers.checkpoints import Watched
from workers.uploads import Uploads

Files = dict[str, bytes]
LOCAL = "http://127.0.0.1"


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blobs(cluster: Cluster) -> set[bytes]:
    """What lies in the store."""
    return {path.read_bytes() for path in Path(cluster.settings.data_dir / "store").rglob("*") if path.is_file()}


class Node:
    """A node as its agent calls."""

    def __init__(self, client: TestClient, cluster: Cluster, name: str) -> None:
        self._client = client
        self._headers = bearer(cluster.node_token(name))

    def tell(self, attempt: AttemptView, step: int, files: Files, rank: int = 0, world_size: int = 1):
        told = [{"path": path, "size": len(data), "sha256": digest_of(data)} for path, data in files.items()]
        return self.tell_part(attempt, step, {"world_size": world_size, "files": told}, rank)

    def tell_part(self, attempt: AttemptView, step: int, part: dict, rank: int):
        path = f"/v1/agent/attempts/{attempt.id}/checkpoints/{step}/ranks/{rank}"
        return self._client.put(path, json=part, headers=self._headers)

    def send(self, attempt: AttemptView, data: bytes):
        path = f"/v1/agent/attempts/{attempt.id}/checkpoint-files/{digest_of(data)}"
        return self._client.put(path, content=data, headers=self._headers)

    def get(self, attempt: AttemptView, path: str):
        return self._client.get(f"/v1/agent/attempts/{attempt.id}/{path}", headers=self._headers)

    def store(self, attempt: AttemptView, step: int, files: Files, rank: int = 0, world_size: int = 1) -> list[str]:
        """As an agent does it; what had to be sent."""
        missing = self.tell(attempt, step, files, rank, world_size).json()["missing"]
        for data in {data for data in files.values() if digest_of(data) in missing}:
            assert self.send(attempt, data).status_code == 204
        assert self.tell(attempt, step, files, rank, world_size).json()["missing"] == []
        return missing


@pytest.fixture
def n1(client: TestClient, cluster: Cluster) -> Node:
    cluster.join("n1", slots=4)
    return Node(client, cluster, "n1")


@pytest.fixture
def n2(client: TestClient, cluster: Cluster) -> Node:
    cluster.join("n2", slots=4)
    return Node(client, cluster, "n2")


def latest(cluster: Cluster, job: str) -> CheckpointMark | None:
    found = cluster.job(job).checkpoint
    return found and CheckpointMark(epoch=found.epoch, step=found.step, stored=found.stored)


def stored(epoch: int, step: int) -> CheckpointMark:
    return CheckpointMark(epoch=epoch, step=step, stored=True)


def kind_of(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].removeprefix("urn:ergon:")


def test_it_counts_when_the_last_file_of_the_last_rank_has_arrived(cluster: Cluster, n1: Node, n2: Node) -> None:
    job = cluster.submit(nodes=2)
    attempt = cluster.place(job, "n1", "n2")
    n1.store(attempt, 10, {"a": b"one", "b/c": b"two"}, 0, 2)
    assert n2.tell(attempt, 10, {"a": b"three"}, 1, 2).json()["missing"] == [digest_of(b"three")]
    assert n2.tell(attempt, 10, {"a": b"three"}, 1, 2).json()["missing"] == [digest_of(b"three")]
    assert latest(cluster, job) is None
    assert kind_of(n1.get(attempt, "checkpoints/1/10")) == (404, "unknown-checkpoint")
    n2.store(attempt, 10, {"a": b"three"}, 1, 2)
    assert latest(cluster, job) == stored(1, 10)
    [first, second] = n1.get(attempt, "checkpoints/1/10").json()["parts"]
    assert [file["path"] for file in first["files"]] == ["a", "b/c"]
    assert second == {"rank": 1, "files": [{"path": "a", "size": 5, "sha256": digest_of(b"three")}]}
    assert n1.get(attempt, f"checkpoint-files/{digest_of(b'three')}").content == b"three"


def test_the_invariant_sees_a_checkpoint_of_which_something_is_missing(cluster: Cluster, n1: Node, n2: Node) -> None:
    attempt = cluster.place(cluster.submit(nodes=2), "n1", "n2")
    for step in (10, 20):
        n1.store(attempt, step, {"a": b"one"}, 0, 2)
        n2.store(attempt, step, {"a": b"two", "b": b"%d" % step}, 1, 2)

    def violations(damage: str) -> list[str]:
        with cluster.engine.connect() as tx:
            tx.execute(text(damage))
            return list(i11_the_latest_is_of_an_attempt_and_whole(tx))

    assert violations("SELECT 1") == []
    for damage in (
        f"DELETE FROM checkpoint_files WHERE digest = '{digest_of(b'20')}'",
        "DELETE FROM checkpoint_parts WHERE step = 20 AND rank = 1",
        "UPDATE checkpoint_parts SET arrived = false WHERE step = 20 AND rank = 0",
        "DELETE FROM checkpoint_parts",
    ):
        [said] = violations(damage)
        assert said.endswith("goes on from step 20 of attempt 1, of which something is missing"), damage
    assert violations("UPDATE checkpoint_parts SET arrived = false WHERE step = 10") == [], "an older one"


def test_the_next_attempt_hears_of_it_and_fetches_it_on_another_node(cluster: Cluster, n1: Node, n2: Node) -> None:
    job = cluster.submit()
    attempt = cluster.place(job, "n1")
    n1.store(attempt, 10, {"a": b"one"})
    cluster.end("n1", attempt, EndReason.FENCED, None)
    again = cluster.place(job, "n2")
    assert cluster.sync("n2").assignments[0].checkpoint == stored(1, 10)
    assert n2.get(again, f"checkpoint-files/{digest_of(b'one')}").content == b"one"
    assert kind_of(n1.get(attempt, "checkpoints/1/10")) == (404, "unknown-attempt")
    assert n2.store(again, 20, {"a": b"one", "b": b"new"}) == [digest_of(b"new")], "what is there is not sent again"
    assert latest(cluster, job) == stored(2, 20)


def test_two_are_kept_and_what_they_need(cluster: Cluster, n1: Node) -> None:
    job = cluster.submit()
    attempt = cluster.place(job, "n1")
    for step in (10, 20, 30):
        n1.store(attempt, step, {"same": b"same", "own": str(step).encode()})
    n1.tell(attempt, 40, {"own": b"40"})
    assert blobs(cluster) == {b"same", b"20", b"30"}
    assert n1.get(attempt, "checkpoints/1/20").status_code == 200
    assert kind_of(n1.get(attempt, "checkpoints/1/10")) == (404, "unknown-checkpoint")
    assert n1.tell(attempt, 20, {"own": b"other"}).json()["missing"] == [], "an old one is not wanted any more"
    assert latest(cluster, job) == stored(1, 30)


def test_what_an_attempt_of_before_brings_changes_nothing(cluster: Cluster, n1: Node, n2: Node) -> None:
    job = cluster.submit()
    first = cluster.place(job, "n1")
    n1.tell(first, 10, {"a": b"one"})
    cluster.lose("n1")
    second = cluster.place(job, "n2")
    n1.send(first, b"one")
    assert n1.tell(first, 10, {"a": b"one"}).json()["missing"] == []
    assert latest(cluster, job) is None
    n2.store(second, 5, {"a": b"two"})
    assert latest(cluster, job) == stored(2, 5)
    assert blobs(cluster) == {b"two"}


def test_only_what_was_announced_by_who_runs_it_is_taken(cluster: Cluster, n1: Node, n2: Node) -> None:
    attempt = cluster.place(cluster.submit(), "n1")
    assert kind_of(n2.tell(attempt, 10, {"a": b"one"})) == (404, "unknown-attempt")
    assert kind_of(n1.send(attempt, b"never announced")) == (404, "unknown-checkpoint")
    assert kind_of(n1.tell(attempt, 10, {}, rank=0, world_size=2)) == (422, "invalid")
    assert kind_of(n1.tell(attempt, 10, {}, rank=1, world_size=1)) == (422, "invalid")
    for path in ("../x", "/etc/x", "a//b", "a/./b", ""):
        assert n1.tell(attempt, 10, {path: b"one"}).status_code == 422, path
    n1.tell(attempt, 10, {"a": b"one"})
    assert kind_of(n2.send(attempt, b"one")) == (404, "unknown-attempt")
    assert blobs(cluster) == set()


def test_a_size_that_was_not_announced_is_refused(cluster: Cluster, n1: Node) -> None:
    attempt = cluster.place(cluster.submit(), "n1")
    told = [{"path": "a", "size": 1, "sha256": digest_of(b"one")}]
    path = f"/v1/agent/attempts/{attempt.id}/checkpoints/10/ranks/0"
    n1._client.put(path, json={"world_size": 1, "files": told}, headers=n1._headers)
    assert kind_of(n1.send(attempt, b"one")) == (422, "invalid")
    assert blobs(cluster) == set()


def app_with(cluster: Cluster, **settings: object) -> FastAPI:
    parts = Parts(
        engine=cluster.engine,
        settings=cluster.settings.model_copy(update=settings),
        tariffs=TariffSource(cluster.settings),
        hub=Hub(),
        now=lambda: cluster.now,
        new_id=cluster.new_id,
    )
    return create_app(parts)


def test_a_user_may_not_fill_the_store(cluster: Cluster) -> None:
    cluster.join("n1", slots=4)
    with TestClient(app_with(cluster, checkpoint_quota_bytes=5), LOCAL) as client:
        n1 = Node(client, cluster, "n1")
        attempt = cluster.place(cluster.submit(), "n1")
        n1.store(attempt, 10, {"a": b"123"})
        refused = n1.tell(attempt, 20, {"a": b"456"})
        assert kind_of(refused) == (422, "checkpoint-quota")
        assert "ERGON_CHECKPOINT_QUOTA_BYTES" in refused.json()["detail"]
        other = cluster.place(cluster.submit("bob"), "n1")
        n1.store(other, 10, {"a": b"456"})


@needs_root
def test_a_full_disk_keeps_what_was_there(cluster: Cluster) -> None:
    cluster.join("n1", slots=4)
    old, new = b"x" * (1 << 20), b"y" * (8 << 20)
    with small_disk(4) as disk, TestClient(app_with(cluster, store_url=str(disk.folder / "store")), LOCAL) as client:
        n1 = Node(client, cluster, "n1")
        job = cluster.submit()
        attempt = cluster.place(job, "n1")
        n1.store(attempt, 10, {"a": old})
        n1.tell(attempt, 20, {"a": new})
        assert kind_of(n1.send(attempt, new)) == (507, "no-space")
        assert latest(cluster, job) == stored(1, 10)
        assert n1.get(attempt, f"checkpoint-files/{digest_of(old)}").content == old


class Carrier:
    """What an agent sends files with, straight to the API. `meanwhile` happens once, in the middle of an upload."""

    def __init__(self, node: Node, attempt: AttemptView) -> None:
        self._node, self._attempt = node, attempt
        self.meanwhile: Callable[[], None] | None = None
        self.brought: list[int] = []

    def tell_part(self, _attempt: str, step: int, rank: int, part: CheckpointPart) -> PartAnswer:
        answer = self._node.tell_part(self._attempt, step, part.model_dump(), rank)
        if not answer.json()["missing"] and step not in self.brought:
            self.brought.append(step)
        return PartAnswer.model_validate(answer.json())

    def upload_file(self, _attempt: str, file: int, _digest: str) -> None:
        happens, self.meanwhile = self.meanwhile, None
        if happens:
            happens()
        assert self._node.send(self._attempt, os.pread(file, 1 << 20, 0)).status_code == 204


class Member:
    """One node of a gang: its ranks save in a folder of its own, its agent brings what they saved."""

    def __init__(self, node: Node, attempt: AttemptView, rank: int, folder: Path) -> None:
        self._rank, self._folder = rank, folder
        self.carrier = Carrier(node, attempt)
        self._uploads = Uploads(self.carrier, lambda: None, Random(0))  # pyright: ignore[reportArgumentType]
        self._watched = Watched(folder=folder, epoch=1, ranks=range(rank, rank + 1), world_size=2)

    def save(self, step: int) -> None:
        with written(self._folder, Mark(1, step), rank=self._rank, world_size=2) as place:
            (place / "state").write_text(f"{self._rank} at {step}")
        prune(self._folder, 1, [self._rank])

    def look(self) -> None:
        """As the agent's thread does every second."""
        self._uploads._look("a1", self._watched)


def test_nodes_of_a_gang_bring_the_same_checkpoint_however_long_it_takes(
    cluster: Cluster, n1: Node, n2: Node, tmp_path: Path
) -> None:
    job = cluster.submit(nodes=2)
    attempt = cluster.place(job, "n1", "n2")
    quick, slow = (Member(node, attempt, rank, tmp_path / str(rank)) for rank, node in enumerate((n1, n2)))

    def train(step: int) -> None:
        for member in (quick, slow):
            member.save(step)

    def while_the_slow_one_is_at_it() -> None:
        quick.look()
        train(20)
        quick.look()
        quick.look()

    def while_the_quick_one_is_at_it() -> None:
        train(40)
        slow.look()

    train(10)
    slow.carrier.meanwhile = while_the_slow_one_is_at_it
    slow.look()
    assert (quick.carrier.brought, slow.carrier.brought) == ([10], [10]), "who is done waits"
    assert latest(cluster, job) == stored(1, 10)
    train(30)
    quick.carrier.meanwhile = while_the_quick_one_is_at_it
    quick.look()
    assert (quick.carrier.brought, slow.carrier.brought) == ([10, 30], [10, 30]), "what another has begun goes first"
    assert latest(cluster, job) == stored(1, 30)
    for member in (slow, quick):
        member.look()
    assert latest(cluster, job) == stored(1, 40)


def test_a_node_that_has_no_longer_what_another_has_begun_brings_its_newest_and_they_meet_there(
    cluster: Cluster, n1: Node, n2: Node, tmp_path: Path
) -> None:
    job = cluster.submit(nodes=2)
    attempt = cluster.place(job, "n1", "n2")
    one, other = (Member(node, attempt, rank, tmp_path / str(rank)) for rank, node in enumerate((n1, n2)))
    for member in (one, other):
        member.save(10)
    one.look()
    for step in (20, 30, 40):
        for member in (one, other):
            member.save(step)
    other.look()
    one.look()
    assert (one.carrier.brought, other.carrier.brought) == ([10, 40], [40])
    assert latest(cluster, job) == stored(1, 40)

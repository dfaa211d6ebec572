"""What nodes keep, how fast they fetch, and what plans make of it."""

import pytest
from fastapi.testclient import TestClient

from protocol.caches import dataset_key
from protocol.states import AttemptState
from service.store import archives as archive_store
from tests.service.cluster import Cluster
from tests.service.conftest import SignIn
from tests.service.test_cycle import new_cycle

GB = 1_000_000_000
DATA = "https://user:secret@data.example:8443/sets/one.tar?version=3"
CODE = "c" * 64


def entry(key: str, size: int, *, source: str, seconds: float, kind: str = "datasets") -> dict[str, object]:
    fetch = {"source": source, "size_bytes": size, "wait_s": 0.2, "transfer_s": seconds}
    return {"kind": kind, "key": key, "size_bytes": size, "fetch": fetch}


def has_data(size: int = GB, seconds: float = 10.0) -> dict[str, object]:
    return entry(dataset_key(DATA), size, source="https://data.example:8443", seconds=seconds)


@pytest.fixture(autouse=True)
def _nodes(cluster: Cluster) -> None:
    for name in ("a", "b", "c"):
        cluster.join(name)


def planned(cluster: Cluster, job: str) -> dict[str, float]:
    """How long each node takes to fetch what the job needs, as the planner gets it."""
    problem, _ = cluster.problem()
    found = next(one for one in problem.jobs if one.id == job)
    return {node.id: found.staged_s([node.id]) for node in problem.nodes}


def test_a_job_starts_where_its_data_is(cluster: Cluster) -> None:
    job = cluster.submit(datasets={"one": DATA, "own": "/data/own"})
    assert planned(cluster, job) == {"a": 0.0, "b": 0.0, "c": 0.0}, "nobody knows how much it is"
    cluster.sync("b", cache=[has_data()])
    cluster.sync("b")
    took = planned(cluster, job)
    assert took["b"] == 0.0
    assert took["a"] == took["c"] == pytest.approx(10.2, rel=0.25)
    new_cycle(cluster).step(woken=True)
    assert [member.node for member in cluster.job(job).attempts[-1].members] == ["b"]
    cluster.sync("c", cache=[has_data(size=2**62, seconds=1e9)])
    assert planned(cluster, cluster.submit(datasets={"one": DATA}))["a"] < 100_000.0, "whatever an agent says"
    cluster.sync("b", cache=[])
    cluster.sync("c", cache=[])
    again = cluster.submit(datasets={"one": DATA})
    assert set(planned(cluster, again).values()) == {0.0}, "it is nowhere, and its size is forgotten"


def test_code_has_its_size_before_any_node_has_fetched_it(cluster: Cluster) -> None:
    with cluster.engine.begin() as tx:
        archive_store.add_archive(tx, digest=CODE, size=100_000_000, blob="one", now=cluster.now)
        archive_store.add_owner(tx, digest=CODE, user_id=cluster.person("alice").id, now=cluster.now)
    job = cluster.submit(code=CODE)
    before = planned(cluster, job)
    assert before["a"] == before["b"] > 1.0, "as fast as the prior has it"
    other = entry("d" * 64, 100_000_000, source="service", seconds=20.0, kind="archives")
    cluster.sync("a", cache=[other])
    after = planned(cluster, job)
    assert after["a"] == pytest.approx(20.0, rel=0.25)
    assert before["b"] < after["b"] <= after["a"], "what one node did says something of the others"
    cluster.sync("a", cache=[entry(CODE, 100_000_000, source="service", seconds=20.0, kind="archives"), other])
    assert planned(cluster, job)["a"] == 0.0


def test_links_are_learned_once_for_each_fetch_and_shown(cluster: Cluster, client: TestClient) -> None:
    assert client.get("/v1/nodes/a").json()["links"] == []
    small = entry("e" * 32, 1000, source="service", seconds=0.001)
    for _ in range(3):  # said again, as after a lost answer
        cluster.sync("a", cache=[has_data(seconds=4.0), small])
    shown = client.get("/v1/nodes/a").json()
    assert (shown["cache_entries"], shown["cache_bytes"]) == (2, GB + 1000)
    by_source = {link["source"]: link for link in shown["links"]}
    assert {source: link["fetches"] for source, link in by_source.items()} == {
        "https://data.example:8443": 1,
        "service": 1,
    }
    assert by_source["https://data.example:8443"]["bytes_per_s"] == pytest.approx(GB / 4, rel=0.2)
    assert [node["cache_entries"] for node in client.get("/v1/nodes").json()["items"]] == [2, 0, 0]
    for number in range(20):  # fetched, gone and fetched again
        cluster.sync("a", cache=[])
        cluster.sync("a", cache=[has_data(seconds=4.0 if number < 10 else 40.0)])
    (link, _) = client.get("/v1/nodes/a").json()["links"]
    assert link["fetches"] == 8
    assert link["bytes_per_s"] == pytest.approx(GB / 40, rel=0.1), "what was long ago is forgotten"


def test_a_user_sees_what_is_fetched(cluster: Cluster, client: TestClient, sign_in: SignIn) -> None:
    job = cluster.submit(datasets={"one": DATA})
    assert client.get(f"/v1/jobs/{job}").json()["inputs"]["unsized"] == 1
    assert "<dd>of unknown size</dd>" in sign_in("alice").get(f"/jobs/{job}").text
    cluster.sync("b", cache=[has_data()])
    inputs = client.get(f"/v1/jobs/{job}").json()["inputs"]
    assert (inputs["size_bytes"], inputs["nodes"], inputs["missing_bytes"]) == (GB, ["b"], GB)
    assert inputs["fetch_s"] == pytest.approx(10.2, rel=0.2)
    attempt = cluster.place(job, "a")
    cluster.advance(4.0)
    starting = client.get(f"/v1/jobs/{job}").json()["inputs"]
    assert starting["missing_bytes"] == GB
    assert starting["fetch_s"] == pytest.approx(inputs["fetch_s"] - 4.0)
    page = " ".join(sign_in("alice").get(f"/jobs/{job}").text.split())
    assert 'Code and data</dt><dd>953.7 MiB <span class="muted">fetching 953.7 MiB: about' in page
    (first, *_), _ = cluster.problem()[0].nodes, None
    busy_s = first.busy_s
    cluster.tell("a", attempt, AttemptState.RUNNING)
    assert client.get(f"/v1/jobs/{job}").json()["inputs"] is None
    assert busy_s - cluster.problem()[0].nodes[0].busy_s == pytest.approx(starting["fetch_s"], abs=0.1)
    free = cluster.submit(datasets={"own": "/data/own"})
    assert client.get(f"/v1/jobs/{free}").json()["inputs"] is None

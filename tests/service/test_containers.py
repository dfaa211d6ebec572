"""A job with an image goes where containers can run, and is told why where they cannot."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.service.cluster import Cluster
from tests.service.test_cycle import new_cycle

IMAGE = "registry.example:5000/team/train:2.1@sha256:" + "0" * 64
JOB: dict[str, Any] = {"command": ["python", "train.py"], "image": IMAGE}


def test_without_a_node_that_can_the_first_verdict_says_why(client: TestClient, cluster: Cluster) -> None:
    cluster.join("silent")
    cluster.join("lame-1", container_fault="docker: the daemon does not answer")
    cluster.join("lame-2", container_fault="docker: the daemon does not answer")
    verdict = client.post("/v1/jobs", json=JOB).json()["verdict"]
    assert verdict["outcome"] == "impossible"
    (reason,) = verdict["reasons"]
    assert reason["code"] == "no_container_runtime"
    assert "2 nodes: docker: the daemon does not answer | 1 node: its agent does not say" in reason["message"]
    refused = client.post("/v1/jobs", json=JOB | {"require_feasible": True})
    assert (refused.status_code, refused.json()["detail"]) == (422, reason["message"])
    (item,) = client.post("/v1/jobs/dry-run", json={"jobs": [JOB]}).json()["items"]
    assert item["verdict"]["reasons"] == [reason]


def test_it_is_placed_on_a_node_that_can_and_its_agent_is_told_the_image(
    client: TestClient, cluster: Cluster, as_root: dict[str, str]
) -> None:
    cluster.join("a-lame", container_fault="not installed: podman")
    cluster.join("b-able", container_runtime="podman")
    boxed, bound = cluster.submit(**JOB, cpu_cores_per_node=1.5), cluster.submit(**JOB, nodes=2)
    new_cycle(cluster).step(woken=True)
    (assignment,) = cluster.sync("b-able").assignments
    assert (assignment.job, assignment.image, assignment.cpu_limit) == (boxed, IMAGE, 1.5)
    assert cluster.sync("a-lame").assignments == []
    verdict = cluster.job(bound).verdict
    assert verdict is not None
    assert (verdict.outcome, verdict.reasons[0].code) == ("impossible", "too_few_nodes")
    cluster.join("a-lame", container_runtime="docker")
    shown = client.get("/v1/nodes/a-lame", headers=as_root).json()
    assert (shown["container_runtime"], shown["container_fault"]) == ("docker", None)


@pytest.mark.parametrize("image", ["python", "python:3.12", "docker.io/library/python", "localhost/x_y.z:1-a", IMAGE])
def test_references_that_are_taken(client: TestClient, cluster: Cluster, image: str) -> None:
    answer = client.post("/v1/jobs", json=JOB | {"image": image})
    assert (answer.status_code, answer.json()["spec"]["image"]) == (201, image)

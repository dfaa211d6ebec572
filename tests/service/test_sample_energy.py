"""Joules of each example or token: what a job's devices draw, over how fast it trains."""

import json

import pytest
from fastapi.testclient import TestClient

from protocol.jobs import AttemptView
from protocol.nodes import PowerSample
from protocol.states import AttemptState, EndReason
from protocol.sync import StreamChunk
from scheduler.power import active_w, device_power
from tests.service.cluster import Cluster
from tests.service.conftest import SignIn

T4_BUSY_W = device_power("t4").bare_idle_w + active_w("t4")


@pytest.fixture(autouse=True)
def _nodes(cluster: Cluster) -> None:
    for name in ("n1", "n2"):
        cluster.join(name, kind="t4", slots=2)
    cluster.join("n3", kind="cpu", slots=2)


def start(cluster: Cluster, *nodes: str, **spec: object) -> tuple[str, AttemptView]:
    """A job that runs on these nodes."""
    kinds = {"device_kinds": ["t4"]} if "n3" not in nodes else {}
    job = cluster.submit(nodes=len(nodes), **kinds, **spec)
    attempt = cluster.place(job, *nodes)
    for node in nodes:
        cluster.tell(node, attempt, AttemptState.RUNNING)
    return job, attempt


def tell_rate(cluster: Cluster, node: str, attempt: AttemptView, offset: int = 0, **metrics: float) -> int:
    """One line of progress of rank 0; where the next one begins."""
    data = json.dumps({"step": 1, "metrics": metrics}).encode() + b"\n"
    fields = {"attempt": attempt.id, "rank": 0, "stream": "progress", "offset": offset, "data": data}
    cluster.sync(node, chunks=[StreamChunk.model_validate(fields)])
    return offset + len(data)


def count(cluster: Cluster, node: str, watts: float, seconds: float = 100.0) -> None:
    """The counter of the first device of the node over the past seconds."""
    device = f"t4:{node}:0"
    energy_j = watts * seconds
    sample = PowerSample(seconds=seconds, age_s=0.0, device=device, energy_j=energy_j, source="nvml")
    cluster.sync(node, samples=[sample])


def shown(client: TestClient, job: str) -> tuple[float, str, str] | None:
    found = client.get(f"/v1/jobs/{job}").json()["sample_energy"]
    return found and (found["joules"], found["per"], found["quality"])


def test_a_job_tells_joules_per_token_while_it_runs_and_once_it_has_ended(
    cluster: Cluster, client: TestClient, sign_in: SignIn
) -> None:
    job, attempt = start(cluster, "n1", "n2")
    assert shown(client, job) is None
    end = tell_rate(cluster, "n1", attempt, tokens_per_s=10.0, examples_per_s=2.0)
    assert shown(client, job) == (pytest.approx(2 * T4_BUSY_W / 10.0), "token", "modelled")
    cluster.advance(100.0)
    count(cluster, "n1", 40.0)
    # The other node's device was not counted: a part is not what the job draws.
    assert shown(client, job) == (pytest.approx(2 * T4_BUSY_W / 10.0), "token", "modelled")
    count(cluster, "n2", 60.0)
    tell_rate(cluster, "n1", attempt, end, tokens_per_s=20.0)
    measured = (pytest.approx(2 * 50.0 / 20.0), "token", "measured")
    assert shown(client, job) == measured
    for node in ("n1", "n2"):
        cluster.end(node, attempt, EndReason.COMPLETED, 0)
    assert shown(client, job) == measured
    page = sign_in("alice").get(f"/jobs/{job}").text
    assert ">Energy per token<" in page
    assert "5 J <" in page
    assert "at 50 W each device, measured" in page


def test_on_cpus_the_model_says_it_and_a_part_of_a_device_takes_its_part(cluster: Cluster, client: TestClient) -> None:
    job, attempt = start(cluster, "n3", device_share=0.5)
    tell_rate(cluster, "n3", attempt, examples_per_s=4.0)
    busy_w = device_power("cpu").training_w
    assert shown(client, job) == (pytest.approx(0.5 * busy_w / 4.0), "example", "modelled")


def test_a_minute_at_least_must_have_been_counted(cluster: Cluster, client: TestClient) -> None:
    job, attempt = start(cluster, "n1")
    tell_rate(cluster, "n1", attempt, examples_per_s=4.0)
    cluster.advance(59.0)
    count(cluster, "n1", 40.0, seconds=59.0)
    assert shown(client, job) == (pytest.approx(T4_BUSY_W / 4.0), "example", "modelled")


@pytest.mark.parametrize("metrics", [{}, {"loss": 0.5}, {"examples_per_s": 0.0}, {"tokens_per_s": -3.0}])
def test_without_a_rate_nothing_is_said(cluster: Cluster, client: TestClient, metrics: dict[str, float]) -> None:
    job, attempt = start(cluster, "n1")
    tell_rate(cluster, "n1", attempt, **metrics)
    assert shown(client, job) is None


def test_without_a_device_nothing_is_said(cluster: Cluster, client: TestClient) -> None:
    job, attempt = start(cluster, "n3", devices_per_node=0)
    tell_rate(cluster, "n3", attempt, examples_per_s=4.0)
    assert shown(client, job) is None


def test_what_an_attempt_of_before_told_is_not_said_of_a_job_that_waits_again(
    cluster: Cluster, client: TestClient
) -> None:
    job, attempt = start(cluster, "n1")
    tell_rate(cluster, "n1", attempt, examples_per_s=4.0)
    cluster.end("n1", attempt, EndReason.FENCED, None)
    assert (client.get(f"/v1/jobs/{job}").json()["state"], shown(client, job)) == ("queued", None)

"""What jobs draw: counted by devices' meters while they run, and expected of the next of the same work."""

import pytest
from fastapi.testclient import TestClient

from protocol.nodes import PowerSample
from protocol.states import AttemptState, EndReason
from scheduler.power import active_w, device_power
from tests.service.cluster import Cluster
from tests.service.conftest import SignIn

TRAIN = {"command": ["python", "train.py"]}
ON_T4 = {**TRAIN, "device_kinds": ["t4"]}
T4_W = device_power("t4").bare_idle_w


@pytest.fixture(autouse=True)
def _nodes(cluster: Cluster) -> None:
    cluster.join("n1", kind="t4", slots=4)
    cluster.join("n2", kind="a100", slots=1)


def counted(device: int, watts: float, seconds: float = 100.0) -> PowerSample:
    """What the counter of a device of n1 says of the past seconds."""
    return PowerSample(seconds=seconds, age_s=0.0, device=f"t4:n1:{device}", energy_j=watts * seconds, source="nvml")


def ran(cluster: Cluster, *samples: PowerSample, **spec: object) -> None:
    """A job of one device that runs for 100 s on n1, of which these samples come."""
    attempt = cluster.place(cluster.submit(**ON_T4 | spec), "n1")
    cluster.tell("n1", attempt, AttemptState.RUNNING)
    cluster.advance(100.0)
    cluster.sync("n1", samples=list(samples))
    cluster.end("n1", attempt, EndReason.COMPLETED, 0)


def planned_w(cluster: Cluster, job: str) -> dict[str, float]:
    """What a device draws by kind in the problem that the planner gets, in W above idle."""
    found = next(one for one in cluster.problem()[0].jobs if one.id == job)
    return {shape.kind: shape.active_w for shape in found.shapes}


def test_the_next_job_of_a_work_draws_what_the_last_ones_did(
    cluster: Cluster, client: TestClient, sign_in: SignIn
) -> None:
    ran(cluster, counted(0, T4_W + 20.0))
    ran(cluster, counted(0, T4_W + 30.0), counted(1, 70.0))  # device 1 is nobody's
    job = cluster.submit(**TRAIN)
    planned = planned_w(cluster, job)
    assert planned == {"t4": pytest.approx(25.0), "a100": pytest.approx(25.0 / active_w("t4") * active_w("a100"))}
    shown = client.get(f"/v1/jobs/{job}").json()["expected"]
    assert (shown["kind"], shown["device_w"], shown["metered_on"]) == ("t4", pytest.approx(25.0), ["t4"])
    assert "25 W above idle each device, as metered on t4" in sign_in("alice").get(f"/jobs/{job}").text
    other = cluster.submit(command=["python", "other.py"])
    assert planned_w(cluster, other) == {"t4": active_w("t4"), "a100": active_w("a100")}


@pytest.mark.parametrize(
    "sample",
    [
        counted(0, 500.0, seconds=101.0),  # began before the job did
        counted(1, 500.0),  # another device
        PowerSample(seconds=100.0, age_s=0.0, device="t4:n1:0", utilisation=1.0, source="nvml"),  # no counter
        PowerSample(seconds=100.0, age_s=0.0, energy_j=5e4, source="rapl"),  # the node's CPUs
    ],
)
def test_what_was_not_counted_of_the_job_alone_tells_nothing(cluster: Cluster, sample: PowerSample) -> None:
    ran(cluster, sample)
    assert planned_w(cluster, cluster.submit(**TRAIN))["t4"] == active_w("t4")


def test_a_shared_device_tells_nothing_of_who_drew_it(cluster: Cluster) -> None:
    ran(cluster, counted(0, 500.0), device_share=0.5)
    assert planned_w(cluster, cluster.submit(**TRAIN))["t4"] == active_w("t4")


def test_samples_that_are_sent_again_count_once(cluster: Cluster) -> None:
    attempt = cluster.place(cluster.submit(**ON_T4), "n1")
    cluster.tell("n1", attempt, AttemptState.RUNNING)
    cluster.advance(100.0)
    for samples in ([counted(0, T4_W + 10.0)], [counted(0, T4_W + 10.0), counted(0, T4_W + 40.0, seconds=50.0)]):
        cluster.sync("n1", samples=samples, first_sample=0)
        cluster.advance(50.0)
    cluster.end("n1", attempt, EndReason.COMPLETED, 0)
    assert planned_w(cluster, cluster.submit(**TRAIN))["t4"] == pytest.approx((10.0 * 100 + 40.0 * 50) / 150)

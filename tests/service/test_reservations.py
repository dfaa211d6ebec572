"""A gang that small jobs have overtaken for long enough gets its nodes, and everybody is told why they wait."""

import pytest

from protocol.batch import DryRunView
from protocol.jobs import JobSpec
from service import dry_run
from service.cycle.problem import NO_TARIFF
from service.db import snapshot
from tests.service.cluster import Cluster
from tests.service.test_cycle import new_cycle, reasons, states


@pytest.fixture
def first(cluster: Cluster) -> str:
    """A job that takes one of two nodes of one device for two hours."""
    for name in ("n1", "n2"):
        cluster.join(name, slots=1)
    job = cluster.submit(expected_run_s=7_200.0)
    cluster.place(job, "n1")
    return job


def wait(cluster: Cluster, seconds: float) -> None:
    cluster.advance(seconds)
    for name in ("n1", "n2"):
        cluster.sync(name)


def try_out(cluster: Cluster, **spec: object) -> DryRunView:
    with snapshot(cluster.engine) as tx:
        run = dry_run.read(
            tx,
            cluster.person("alice"),
            [JobSpec.model_validate({"command": ["true"], **spec})],
            queues=cluster.settings.queues,
            pue=1.0,
            overtaken_s=cluster.settings.overtaken_s,
            power=cluster.settings.power,
            tariff=NO_TARIFF,
            now=cluster.now,
        )
    return dry_run.weigh(run)


def test_until_then_others_overtake_it(cluster: Cluster, first: str) -> None:
    gang = cluster.submit(nodes=2, expected_run_s=600.0)
    wait(cluster, cluster.settings.overtaken_s)
    small = cluster.submit(expected_run_s=10_000.0)
    new_cycle(cluster).step(woken=True)
    assert states(cluster, gang, small) == ["queued", "starting"]


def test_then_nodes_are_kept_for_it_and_who_waits_is_told(cluster: Cluster, first: str) -> None:
    gang = cluster.submit(nodes=2, expected_run_s=600.0)
    wait(cluster, cluster.settings.overtaken_s + 1)
    long, short = cluster.submit(expected_run_s=10_000.0), cluster.submit(expected_run_s=60.0)
    cycle = new_cycle(cluster)
    cycle.step(woken=True)
    assert states(cluster, gang, long, short) == ["queued", "queued", "starting"]
    assert reasons(cluster, gang) == ("waiting", ["nodes_kept"])
    assert reasons(cluster, long) == ("waiting", ["kept_for_another"])
    cluster.end("n2", cluster.job(short).attempts[0])
    asked = try_out(cluster, expected_run_s=10_000.0).items[0].verdict
    assert (asked.outcome, [reason.code for reason in asked.reasons]) == ("waiting", ["kept_for_another"])
    cluster.end("n1", cluster.job(first).attempts[0])
    cycle.step(woken=True)
    assert states(cluster, gang, long) == ["starting", "queued"]


def test_where_jobs_share_devices_it_is_only_the_first(cluster: Cluster, first: str) -> None:
    gang = cluster.submit(nodes=2, expected_run_s=600.0)
    wait(cluster, cluster.settings.overtaken_s + 1)
    share = cluster.submit(device_share=0.5, expected_run_s=10_000.0)
    new_cycle(cluster).step(woken=True)
    assert states(cluster, gang, share) == ["queued", "starting"]

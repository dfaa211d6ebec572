"""Nothing grows for ever, and nothing that is needed goes."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from protocol.states import EndReason
from service import retention
from service.blobs import Blobs
from service.models import metadata
from service.store import archives as archive_store
from service.store import cycles as cycle_store
from tests.service.cluster import Cluster

KEPT_FOR_EVER = {
    *("alarms", "archives", "archive_owners", "devices", "kind_speeds", "leadership", "node_cache", "nodes"),
    *("tokens", "users"),
}
"""Tables that grow with the cluster and its people, not with time; archives have a quota for each user."""


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(str(tmp_path / "store"))


@pytest.fixture
def sweep(cluster: Cluster, blobs: Blobs) -> Callable[[float], None]:
    """Let days pass, then sweep until nothing is left to do."""

    def days_later(days: float) -> None:
        cluster.now += timedelta(days=days)
        while retention.sweep(cluster.engine, cluster.settings, blobs, now=cluster.now):
            pass

    return days_later


def write(blobs: Blobs, name: str) -> None:
    file = blobs.create(name)
    blobs.write(file, b"what a rank left")
    blobs.close(file)


def run_job(cluster: Cluster, blobs: Blobs, node: str, **spec: object) -> str:
    """A job that wrote, reported and left something, and has ended."""
    job = cluster.submit(**spec)
    attempt = cluster.place(job, node)
    place = {"attempt": attempt.id, "rank": 0, "offset": 0}
    line = b'{"step": 1, "metrics": {"loss": 0.5}}\n'
    chunks = [{**place, "stream": "stdout", "data": b"hello\n"}, {**place, "stream": "progress", "data": line}]
    sample = {"seconds": 1, "age_s": 0, "energy_j": 1, "source": "rapl"}
    cluster.sync(node, chunks=chunks, samples=[sample])
    write(blobs, f"blob-{job}")
    with cluster.engine.begin() as tx:
        archive_store.add_output(
            tx, attempt_id=attempt.id, member=0, digest="0" * 64, size=16, blob=f"blob-{job}", now=cluster.now
        )
        cycle_store.add_cycle(
            tx, term=1, at=cluster.now, pending=1, placed=1, committed=1, objective_j=1.0, bound_j=1.0, gap=0.0,
            method="greedy", status="optimal", snapshot_s=0.0, solve_s=0.0, commit_s=0.0, problem=b"", plan=b"",
        )  # fmt: skip
    cluster.end(node, attempt)
    return job


def test_an_old_job_loses_its_output_first_and_is_forgotten_in_the_end(
    cluster: Cluster, blobs: Blobs, sweep: Callable[[float], None]
) -> None:
    cluster.join("n1")
    job = run_job(cluster, blobs, "n1")
    before = cluster.row_counts()
    sweep(cluster.settings.keep_output_days - 1)
    assert cluster.row_counts() == before
    assert not cluster.job(job).output_deleted
    sweep(2)
    left = cluster.row_counts()
    gone = {table for table in before if left[table] < before[table]}
    assert gone == {"chunks", "metrics", "outputs", "samples", "cycles"}
    assert cluster.job(job).output_deleted
    assert cluster.job(job).state == "succeeded"
    assert not list(Path(blobs._root).rglob("blob-*"))
    sweep(cluster.settings.keep_records_days)
    left = cluster.row_counts()
    assert {table for table, count in left.items() if count} <= KEPT_FOR_EVER | {"node_sessions"}
    assert left["node_sessions"] == 1, "the node is still on"


def test_every_table_has_an_end(cluster: Cluster, blobs: Blobs, sweep: Callable[[float], None]) -> None:
    """A table that is added without a thought for its growth is found here."""
    swept = set(retention.store.__dict__) & set(metadata.tables)
    assert swept | KEPT_FOR_EVER == set(metadata.tables)


def test_what_is_still_needed_stays(cluster: Cluster, blobs: Blobs, sweep: Callable[[float], None]) -> None:
    cluster.join("n1", slots=4)
    ended = run_job(cluster, blobs, "n1")
    runs = cluster.submit()
    cluster.place(runs, "n1")
    waits = cluster.submit(devices_per_node=64)
    parent = cluster.submit()
    cluster.submit(after=[{"job": parent, "on": "end"}])
    unclean = cluster.submit()
    attempt = cluster.place(unclean, "n1")
    cluster.tell("n1", attempt, "ended", reason=EndReason.COMPLETED, exit_code=0, clean=False)
    sweep(10 * cluster.settings.keep_records_days)
    assert {cluster.job(job).state for job in (runs, waits, parent)} == {"starting", "queued"}
    assert cluster.job(unclean).state == "succeeded", "a process of it is left, and a device held"
    with pytest.raises(Exception, match=ended):
        cluster.job(ended)


def test_a_copy_of_a_job_outlives_it(cluster: Cluster, blobs: Blobs, sweep: Callable[[float], None]) -> None:
    cluster.join("n1")
    first = run_job(cluster, blobs, "n1")
    cluster.now += timedelta(days=cluster.settings.keep_records_days)
    copy = cluster.resubmit(first)
    sweep(1)
    assert cluster.job(copy).resubmitted_from is None


def test_of_a_large_heap_a_part_goes_at_a_time(cluster: Cluster, blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "JOBS_AT_ONCE", 2)
    cluster.join("n1")
    jobs = [run_job(cluster, blobs, "n1") for _ in range(5)]
    cluster.now += timedelta(days=cluster.settings.keep_output_days + 1)
    assert retention.sweep(cluster.engine, cluster.settings, blobs, now=cluster.now)
    assert [cluster.job(job).output_deleted for job in jobs] == [True, True, False, False, False]
    while retention.sweep(cluster.engine, cluster.settings, blobs, now=cluster.now):
        pass
    assert all(cluster.job(job).output_deleted for job in jobs)

"""Backups: everything comes back, and time that went back does no harm. Bad files and broken-off ones: see
`test_backup_files.py`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from protocol.jobs import AttemptView
from protocol.states import AttemptState, EndReason, JobState, Role
from service import auth, fencing, migrate
from service.backups.file import DUMP, BackupWriter, Header
from service.backups.make import make
from service.backups.programs import dump, load
from service.backups.restore import NotEmpty, Restored, check_complete, restore
from service.cycle.leases import MARGIN_S
from service.db import connect, snapshot
from service.models import metadata
from service.postgres import EmbeddedPostgres
from service.refusals import StaleIncarnation, UnknownIncarnation
from service.settings import Settings
from service.store import archives as archive_store
from service.store import cycles as cycle_store
from service.store import restores as restore_store
from tests.service.backups import get_blob, put_blob
from tests.service.cluster import Cluster

A, R = AttemptState, EndReason
CODE, OUTPUT = b"code" * 100_000, bytes(range(256)) * 1_000
BEGAN = datetime(2026, 3, 1, tzinfo=UTC)
"""Late enough that a number made from the time is not one that was counted."""


@dataclass
class Past:
    """A cluster of which everything is in the backup: a job that has ended, with code, log, metrics and output, and an
    attempt that runs, one that was granted only, a job that waits, one that is held, and two whose ranks outlast their
    lease, of which one runs."""

    cluster: Cluster
    ended: str
    runs: str
    granted: str
    waits: str
    held: str
    outlasts: str
    outlasting: str

    def attempt(self, job: str) -> AttemptView:
        return self.cluster.job(job).attempts[-1]


@pytest.fixture
def past(engine: Engine, origin: Settings) -> Past:
    cluster = Cluster(engine=engine, settings=origin, now=BEGAN)
    cluster.join("n1", slots=4)
    cluster.join("n2", slots=4)
    names = ("ended", "runs", "granted", "waits", "held")
    outlast = (cluster.submit(name=name, on_disconnect="wait") for name in ("outlasts", "outlasting"))
    past = Past(cluster, *(cluster.submit(name=name) for name in names), *outlast)
    done = cluster.place(past.ended, "n1")
    cluster.sync(
        "n1",
        chunks=[
            {"attempt": done.id, "rank": 0, "stream": stream, "offset": 0, "data": data}
            for stream, data in (("stdout", "aGVsbG8K"), ("progress", "eyJtZXRyaWNzIjogeyJsb3NzIjogMC4yNX19Cg=="))
        ],
    )
    put_blob(origin, "blob-code", CODE)
    put_blob(origin, "blob-output", OUTPUT)
    with engine.begin() as tx:
        archive_store.add_archive(tx, digest="sha", size=len(CODE), blob="blob-code", now=BEGAN)
        archive_store.add_owner(tx, digest="sha", user_id=cluster.person("alice").id, now=BEGAN)
        archive_store.add_output(
            tx, attempt_id=done.id, member=0, digest="sha2", size=len(OUTPUT), blob="blob-output", now=BEGAN
        )
    cluster.end("n1", done)
    cluster.tell("n1", cluster.place(past.runs, "n1"), A.RUNNING)
    cluster.place(past.granted, "n1")
    cluster.tell("n2", cluster.place(past.outlasting, "n2"), A.RUNNING)
    cluster.control(past.held, "hold")
    return past


@pytest.fixture
def backup(past: Past, origin: Settings, tmp_path: Path) -> Path:
    path = tmp_path / "backup"
    make(origin, path, now=past.cluster.now)
    return path


@pytest.fixture
def later(past: Past, backup: Path, target: Settings) -> Iterator["Later"]:
    """An hour after the backup: the service is restored from it, and the agents are still those of before."""
    assert target.database_url
    past.cluster.advance(3_600)
    done = restore(target, backup, clock=lambda: past.cluster.now)
    engine = connect(target.database_url, pool_size=5)
    yield Later(past, done, replace(past.cluster, engine=engine, settings=target))
    engine.dispose()


@dataclass
class Later:
    """`before` goes on as if nothing had been restored; `cluster` is the restored one, with the same agents."""

    before: Past
    done: Restored
    cluster: Cluster


def contents(engine: Engine) -> dict[str, list[dict[str, object]]]:
    """Every row of every table."""
    with snapshot(engine) as tx:
        rows = {table.name: tx.execute(select(table)).mappings() for table in metadata.sorted_tables}
        return {name: sorted((dict(row) for row in found), key=repr) for name, found in rows.items()}


def without(rows: list[dict[str, object]], *columns: str) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name not in columns} for row in rows]


FENCED = {
    "leadership": ("term", "holder", "renewals", "least_epoch"),
    "jobs": ("not_before", "version", "verdict", "state", "hold"),
    "attempts": ("state",),
    "members": ("state",),
}
"""What a restore changes of each table; see the tests of what it is for."""


def test_everything_comes_back(past: Past, later: Later, target: Settings) -> None:
    was, now = contents(past.cluster.engine), contents(later.cluster.engine)
    assert min(len(was[name]) for name in ("jobs", "chunks", "metrics", "outputs", "tokens", "leadership")) > 0
    for name, rows in was.items():
        assert without(now[name], *FENCED.get(name, ())) == without(rows, *FENCED.get(name, ())), name
    assert (get_blob(target, "blob-code"), get_blob(target, "blob-output")) == (CODE, OUTPUT)
    assert later.done.blobs == 2
    with later.cluster.engine.begin() as tx:
        assert auth.identify_person(tx, f"Bearer {past.cluster.tokens['alice']}").name == "alice"
    assert target.database_url
    check_complete(target.database_url)


def test_an_agent_that_goes_on_keeps_what_it_runs(later: Later) -> None:
    """Its registration is in the backup, and so is the attempt."""
    attempt = later.before.attempt(later.before.runs)
    held = later.cluster.tell("n1", attempt, A.RUNNING)
    assert attempt.id in {item.attempt for item in held.assignments}
    later.cluster.end("n1", attempt)
    assert later.cluster.job(later.before.runs).state is JobState.SUCCEEDED


def test_an_attempt_that_may_have_run_since_is_not_started_again(later: Later) -> None:
    """An agent starts without a record only what it is told that nobody has seen start."""
    attempt = later.before.attempt(later.before.granted)
    [item] = [item for item in later.cluster.sync("n1").assignments if item.attempt == attempt.id]
    assert item.observed is A.STARTING
    later.cluster.tell("n1", attempt, A.ENDED, reason=R.UNKNOWN_START, clean=True)
    job = later.cluster.job(later.before.granted)
    assert job.state is JobState.QUEUED
    assert job.not_before is not None
    assert job.not_before >= later.done.not_before, "its back-off does not cut the wait short"


def test_no_job_of_the_backup_starts_before_every_lease_of_before_is_over(later: Later) -> None:
    settings, cluster = later.cluster.settings, later.cluster
    assert later.done.not_before - cluster.now >= timedelta(seconds=settings.lease_s + MARGIN_S)
    assert later.before.waits not in {job.id for job in cluster.problem()[0].jobs}
    verdict = cluster.job(later.before.waits).verdict
    assert verdict is not None
    assert "restored from a backup; the next attempt starts at 2026-03-01 01:0" in verdict.reasons[0].message
    cluster.now = later.done.not_before
    assert later.before.waits in {job.id for job in cluster.problem()[0].jobs}


def test_a_job_that_may_run_where_nobody_hears_it_starts_only_when_released(later: Later) -> None:
    """It may have started after the backup, on a node that cannot reach the service: no lease ends its ranks."""
    cluster = later.cluster
    assert later.done.held == 2
    cluster.now = later.done.not_before
    waiting = cluster.job(later.before.outlasts)
    assert waiting.state is JobState.HELD
    assert waiting.verdict is not None
    assert "`ergon release` lets it start" in waiting.verdict.reasons[0].message
    cluster.control(later.before.outlasts, "release")
    assert later.before.outlasts in {job.id for job in cluster.problem()[0].jobs}


@pytest.mark.parametrize(("released", "state"), [(False, JobState.HELD), (True, JobState.QUEUED)])
def test_one_that_runs_goes_on_and_is_held_when_it_would_start_again(
    later: Later, released: bool, state: JobState
) -> None:
    job, cluster = later.before.outlasting, later.cluster
    cluster.tell("n2", later.before.attempt(job), A.RUNNING)
    if released:
        cluster.control(job, "release")
    assert cluster.job(job).state is JobState.RUNNING
    cluster.end("n2", later.before.attempt(job), R.UNKNOWN_START, None)
    assert cluster.job(job).state is state
    if not released:
        cluster.control(job, "release")
        assert cluster.job(job).state is JobState.QUEUED


def test_epochs_and_terms_are_not_given_out_again(later: Later) -> None:
    """The service of before has gone on after the backup, and gave out the next epoch and the next term."""
    before = later.before.cluster
    lost = before.place(later.before.waits, "n2")
    with before.engine.begin() as tx:
        old = cycle_store.read_leadership(tx)
    later.cluster.now = later.done.not_before
    anew = later.cluster.place(later.before.waits, "n2")
    assert anew.epoch > lost.epoch
    assert old is not None
    assert later.cluster.lead() > old.term + 1
    assert anew.id != lost.id
    later.cluster.tell("n2", anew, A.RUNNING)
    assert later.cluster.job(later.before.waits).epoch == anew.epoch


def test_a_registration_that_the_backup_does_not_know_is_asked_for_again(later: Later) -> None:
    before, cluster = later.before.cluster, later.cluster
    before.join("n2")
    since = before.incarnations["n2"]
    cluster.incarnations["n2"] = since
    with pytest.raises(UnknownIncarnation, match="restored from a backup; register again"):
        cluster.sync("n2")
    cluster.advance(1)
    cluster.join("n2")
    assert cluster.incarnations["n2"] > since, "two agents never have the same incarnation"
    cluster.incarnations["n2"], latest = since, cluster.incarnations["n2"]
    with pytest.raises(StaleIncarnation):
        cluster.sync("n2")
    cluster.incarnations["n2"] = latest
    cluster.sync("n2")


def test_numbers_made_from_the_time_are_above_all_that_were_counted() -> None:
    first = fencing.least(BEGAN)
    assert first == 59 * 86_400
    assert fencing.least(BEGAN + timedelta(seconds=1)) == first + 1
    assert fencing.least(datetime(2025, 1, 1, tzinfo=UTC)) == 0
    assert fencing.least(datetime(2093, 12, 31, tzinfo=UTC)) < 2**31


def test_a_backup_is_of_one_moment(past: Past, origin: Settings, target: Settings) -> None:
    """What is committed after its snapshot is not in it, however long the rest takes."""
    assert origin.database_url
    assert target.database_url
    was = contents(past.cluster.engine)
    with snapshot(past.cluster.engine) as tx:
        name = restore_store.export_snapshot(tx)
        past.cluster.end("n1", past.attempt(past.runs))
        load(target.database_url, dump(origin.database_url, name))
    engine = connect(target.database_url, pool_size=1)
    assert contents(engine) == was
    engine.dispose()


def test_a_database_that_holds_something_is_left_alone(backup: Path, past: Past, origin: Settings) -> None:
    before = contents(past.cluster.engine)
    with pytest.raises(NotEmpty, match="the database is not empty, and a restore replaces nothing"):
        restore(origin, backup, clock=lambda: past.cluster.now)
    assert contents(past.cluster.engine) == before


def test_a_backup_of_an_older_version_is_migrated(target: Settings, tmp_path: Path) -> None:
    """One that the version of then made: the dump of its schema, with a user in it."""
    url = target.database_url
    assert url
    migrate.upgrade(url, "0004")
    engine = connect(url, pool_size=2)
    with engine.begin() as tx:
        auth.make_user_token(tx, name="alice", role=Role.USER, now=BEGAN, new_id=lambda prefix: prefix)
    with snapshot(engine) as tx, (tmp_path / "old").open("w+b") as file:
        header = Header(schema="0004", version="0.1.0", made_at=BEGAN)
        with BackupWriter(file, header) as writer:
            writer.add(DUMP, dump(url, restore_store.export_snapshot(tx)))
            writer.finish()
    with engine.begin() as tx:
        restore_store.mark_unfinished(tx)  # as empty as one needs to be
        assert restore_store.table_names(tx) == [restore_store.UNFINISHED.name]
    restore(target, tmp_path / "old", clock=lambda: BEGAN)
    assert migrate.is_current(url)
    assert [row["name"] for row in contents(engine)["users"]] == ["alice"]
    engine.dispose()


def test_an_embedded_database_that_does_not_run_is_started_for_it(short_dir: Path, tmp_path: Path) -> None:
    settings = Settings(data_dir=short_dir / "origin")
    with EmbeddedPostgres(settings.data_dir) as server:
        migrate.upgrade(server.url)
    make(settings, tmp_path / "backup", now=BEGAN)
    restored = settings.model_copy(update={"data_dir": short_dir / "target"})
    restore(restored, tmp_path / "backup", clock=lambda: BEGAN)
    with pytest.raises(NotEmpty):
        restore(restored, tmp_path / "backup", clock=lambda: BEGAN)
    with EmbeddedPostgres(restored.data_dir) as server:
        assert migrate.is_current(server.url)

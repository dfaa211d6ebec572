"""Nodes that share no folder: a job goes on on another one from what the first has brought to the service."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ergon.cli.local import LocalCluster, LocalSettings, local_cluster
from ergon.client import Client
from protocol.jobs import JobSpec
from protocol.states import EndReason, JobState, Role
from tests.system.jobs import words_of
from tests.system.test_checkpoints import LAST, TRAIN, unbroken, wait_saved

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

PYTHON = [sys.executable, "-P", "-m"]
Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ergon-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[LocalCluster]:
    """Database, API and cycle, without agents."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ERGON_")}
    settings = LocalSettings(data_dir=folder / "data", port=0, agents=0, slots_per_agent=1, environment=environment)
    with local_cluster(settings) as running:
        yield running


@pytest.fixture(scope="module")
def admin(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster.url, cluster.user_token("root", Role.ADMIN)) as client:
        yield client


@pytest.fixture
def start(cluster: LocalCluster, folder: Path) -> Iterator[Start]:
    """Starts agents by name, each with one CPU slot and a folder of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> subprocess.Popen[bytes]:
        state = folder / name
        state.mkdir(exist_ok=True)
        token = state / "token"
        if not token.exists():
            environment = {**os.environ, "ERGON_DATA_DIR": str(folder / "data")}
            token.write_bytes(subprocess.check_output([*PYTHON, "service", "token", "node", name], env=environment))
        with (state / "log").open("ab") as log:
            process = subprocess.Popen(
                [
                    *(*PYTHON, "workers", "--server", cluster.url, "--name", name, "--token-file", str(token)),
                    *("--state-dir", str(state), "--cpu-slots", f"{name[-1]}-{name[-1]}", "--stop-attempts-on-exit"),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline(), (state / "log").read_text()
        return process

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_job_goes_on_on_a_node_that_has_never_seen_its_checkpoint(admin: Client, start: Start, folder: Path) -> None:
    for name in ("node-1", "node-2"):
        start(name)
    spec = JobSpec.model_validate({"command": ["python", "-c", TRAIN], "stop_grace_s": 60})
    job = wait_saved(admin, admin.submit(spec).id, 1, 10)
    assert job.checkpoint is not None
    assert job.checkpoint.stored
    node = job.attempts[0].members[0].node
    admin.drain(node, deadline_s=0)
    job = wait_saved(admin, job.id, 2, 20)
    assert job.attempts[1].members[0].node != node
    admin.uncordon(node)
    admin.preempt(job.id)
    end = admin.wait(job.id)
    assert end.state == JobState.SUCCEEDED, end.reason
    reasons = [attempt.reason for attempt in end.attempts]
    assert reasons == [EndReason.DRAINED, EndReason.PREEMPTED, EndReason.COMPLETED]
    lines = [line for line in words_of(admin, end).splitlines() if not line.startswith("ergon: ")]
    assert lines == ["from 0", "waits", "from 15", "waits", "from 20", f"weight {unbroken()}"]
    assert end.checkpoint is not None
    assert (end.checkpoint.epoch, end.checkpoint.step) == (3, LAST)
    assert [event.text for event in admin.follow_logs(job.id) if "fetching the checkpoint of step 15" in event.text]
    assert not list(folder.glob("node-?/attempts/*/checkpoints")), "what ended leaves nothing on the nodes"


MANY = """
import os
from ergon import runtime

found = runtime.latest_checkpoint()
if found is None:
    with runtime.checkpoint(7) as folder:
        for number in range(120):
            (folder / str(number)).write_bytes(os.urandom(20_000))
else:
    print("files", len(list((found / "rank-0").iterdir())), flush=True)
if found is None:
    runtime.watch_for_stop()
    while not runtime.stop_requested():
        os.sched_yield()
"""


def test_an_agent_that_is_killed_while_it_uploads_goes_on_with_the_rest(
    admin: Client, start: Start, folder: Path
) -> None:
    first = start("node-3")
    before = len(list((folder / "data" / "store").glob("*/*")))
    job = admin.submit(JobSpec.model_validate({"command": ["python", "-c", MANY]}))
    while len(list((folder / "data" / "store").glob("*/*"))) < before + 5:
        assert first.poll() is None
    first.kill()
    first.wait()
    assert admin.job(job.id).checkpoint is None, "it was not killed in the middle"
    start("node-3")
    wait_step(admin, job.id, 7)
    admin.preempt(job.id)
    end = admin.wait(job.id)
    assert end.state == JobState.SUCCEEDED, end.reason
    assert words_of(admin, end).splitlines()[-1] == "files 121"


def wait_step(client: Client, job_id: str, step: int) -> None:
    while (found := client.job(job_id).checkpoint) is None:
        assert client.job(job_id).state in (JobState.STARTING, JobState.RUNNING)
    assert (found.step, found.stored) == (step, True)

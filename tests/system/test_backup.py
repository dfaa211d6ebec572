"""A backup of a real cluster, taken while it runs, and a new cluster from it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ergon.cli.local import LocalSettings, local_cluster
from ergon.client import Client
from protocol.jobs import JobSpec
from protocol.states import JobState, Role

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ERGON_")}


def settings(data_dir: Path) -> LocalSettings:
    return LocalSettings(data_dir=data_dir, port=0, agents=1, slots_per_agent=2, environment=ENVIRONMENT)


def ergon(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", "import sys; from ergon.cli.main import main; sys.exit(main())"]
    return subprocess.run(
        [*command, *map(str, words)], env=ENVIRONMENT, cwd="/", capture_output=True, text=True, check=False
    )


def output_of(client: Client, job: str) -> bytes:
    return b"".join(client.output(job, 0))


def test_a_cluster_comes_back_with_all_that_it_had(short_dir: Path, tmp_path: Path) -> None:
    old, new = short_dir / "old", short_dir / "new"
    write = "echo said; echo written > $ERGON_OUTPUT/file"
    with local_cluster(settings(old)) as cluster:
        token = cluster.user_token("alice", Role.USER)
        with Client(cluster.url, token) as alice:
            done = alice.submit(JobSpec(command=["sh", "-c", write]))
            assert alice.wait(done.id).state is JobState.SUCCEEDED
            kept = output_of(alice, done.id)
            running = alice.submit(JobSpec(command=["sh", "-c", "echo up; exec sleep 600"]))
            assert next(alice.follow_logs(running.id)).text == "up\n"
            made = ergon("backup", tmp_path / "backup", "--data-dir", old, "--json")
            assert (made.returncode, made.stderr) == (0, "")
            assert json.loads(made.stdout)["blobs"] == 1
            refused = ergon("restore", tmp_path / "backup", "--data-dir", old)
            assert refused.returncode == 2
            assert "is already supervised by process" in refused.stderr
    restored = ergon("restore", tmp_path / "backup", "--data-dir", new)
    assert restored.returncode == 0, restored.stderr
    with local_cluster(settings(new)) as cluster, Client(cluster.url, token) as alice:
        assert alice.job(done.id).state is JobState.SUCCEEDED
        assert [piece.text for piece in alice.logs(done.id)] == ["said\n"]
        assert output_of(alice, done.id) == kept
        while (job := alice.job(running.id)).state is not JobState.QUEUED:
            cluster.check()
        assert job.not_before is not None
        assert job.attempts[-1].reason == "unknown_start", "the new agent has no record of it"

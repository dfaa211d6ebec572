"""An array with a limit, a job after it, a retry: planned by the cycle, run by the agents, in real processes."""

import re
import sys
from pathlib import Path

import pytest

from ergon.cli.local import LocalCluster
from ergon.cli.main import main
from ergon.client import Client
from protocol.jobs import JobSpec
from protocol.states import EndReason, JobState, Role

DOCUMENT = Path(__file__).parents[2] / "docs" / "jobs.md"

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


def spec(**fields: object) -> JobSpec:
    return JobSpec.model_validate({"device_kinds": ["cpu"], **fields})


def test_an_array_with_a_limit_and_a_job_after_it(alice: Client, tmp_path: Path) -> None:
    touch = spec(command=["sh", "-c", f"touch {tmp_path}/seen-$ERGON_ARRAY_INDEX"], array={"count": 6, "limit": 2})
    array = alice.submit_many([touch]).items[0].id
    last = alice.submit(spec(command=["sh", "-c", f"ls {tmp_path}"], after=[{"job": array}]))
    assert last.state == JobState.HELD
    end = alice.wait(last.id)
    assert end.state == JobState.SUCCEEDED, end.reason
    output = "".join(piece.text for piece in alice.logs(last.id))
    assert output.split() == [f"seen-{index}" for index in range(6)], "it ran after all six, each with its number"
    assert alice.array(array).states == {JobState.SUCCEEDED: 6}
    attempts = [alice.job(job.id).attempts[0] for job in alice.jobs(array=array)]
    for one in attempts:
        at = one.granted_at
        assert (
            sum(other.granted_at <= at and (other.ended_at is None or other.ended_at > at) for other in attempts) <= 2
        )


def test_the_job_file_of_the_documentation(
    cluster: LocalCluster,
    alice: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERGON_SERVER", cluster.url)
    monkeypatch.setenv("ERGON_TOKEN", cluster.user_token("alice", Role.USER))
    assert main(["submit", "-f", "sweep.yaml", "--dry-run"]) == 0
    assert "would start now on node-" in capfd.readouterr().out
    assert main(["submit", "-f", "sweep.yaml", "--wait"]) == 0
    array, job = capfd.readouterr().out.split()
    assert alice.array(array).states == {JobState.SUCCEEDED: 6}
    for words in (f"jobs --array {array}", f"show {array}", "jobs", "schema", f"resubmit {job}"):
        assert main(words.split()) == 0
    again = capfd.readouterr().out.split()[-1]
    assert alice.wait(again).resubmitted_from == job
    for words in (f"hold {again}", f"release {again}", f"priority 5 {again}", f"cancel {array}"):
        assert main(words.split()) == 2
        assert "has already succeeded" in (error := capfd.readouterr().err) or "has already ended" in error


def test_a_job_that_fails_once_is_repeated(alice: Client, tmp_path: Path) -> None:
    script = (
        "import pathlib, sys; p = pathlib.Path(sys.argv[1]); sys.exit(0) if p.exists() else (p.touch(), sys.exit(3))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "tried")]
    end = alice.wait(alice.submit(spec(command=command, max_retries=2)).id)
    assert (end.state, end.epoch) == (JobState.SUCCEEDED, 2)
    assert [attempt.reason for attempt in end.attempts] == [EndReason.FAILED, EndReason.COMPLETED]

"""What a user sees of jobs that really run: over HTTP, on two agents, with real processes and real gloo."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from ergon.client import Client
from protocol.jobs import JobSpec, JobView, Recipe
from protocol.states import EndReason, JobState

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


def run(client: Client, **spec: object) -> JobView:
    """Submit, and wait for the end."""
    job = client.submit(JobSpec.model_validate({"device_kinds": ["cpu"], **spec}))
    return client.wait(job.id)


def output(client: Client, job: JobView) -> str:
    return "".join(piece.text for piece in client.logs(job.id))


def processes_of(job: JobView) -> list[int]:
    """Processes on this machine whose environment names one of the job's attempts."""
    marks = {f"ERGON_ATTEMPT={attempt.id}".encode() for attempt in job.attempts}
    found: list[int] = []
    for process in psutil.process_iter():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if marks & set(environment):
            found.append(process.pid)
    return found


def test_a_gang_trains_over_both_nodes(alice: Client) -> None:
    job = run(alice, name="digits", nodes=2, recipe=Recipe(name="digits-mlp", options={"min_accuracy": 0.95}))
    assert job.state == JobState.SUCCEEDED, output(alice, job)
    assert {member.node for member in job.attempts[-1].members} == {"node-1", "node-2"}
    assert job.progress is not None
    assert job.progress.metrics["accuracy"] >= 0.95
    losses = [point.value for point in alice.metrics(job.id, name="loss")]
    assert len(losses) > 1
    assert losses[-1] < losses[0]


def test_ranks_get_torchruns_environment(alice: Client) -> None:
    script = "import os; print(*(os.environ[n] for n in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'GROUP_RANK')))"
    job = run(alice, nodes=2, devices_per_node=2, command=[sys.executable, "-c", script])
    assert job.state == JobState.SUCCEEDED
    assert sorted(output(alice, job).splitlines()) == ["0 0 4 0", "1 1 4 0", "2 0 4 1", "3 1 4 1"]


def test_exit_code_of_a_failing_script_is_told(alice: Client) -> None:
    job = run(alice, command=["sh", "-c", "echo before; echo oops >&2; exit 7"])
    assert (job.state, job.exit_code) == (JobState.FAILED, 7)
    assert job.attempts[-1].reason == EndReason.FAILED
    assert output(alice, job).splitlines() == ["before", "oops"] or "oops" in output(alice, job)
    assert job.epoch == 1


def test_program_that_does_not_exist(alice: Client) -> None:
    job = run(alice, command=["no-such-program-anywhere"])
    assert job.state == JobState.FAILED
    assert job.attempts[-1].reason == EndReason.START_FAILED
    assert "no-such-program-anywhere" in (job.reason or "")


def test_time_limit_ends_the_job_and_all_its_processes(alice: Client) -> None:
    job = run(alice, command=["sh", "-c", "setsid sleep 1000 & sleep 1000"], time_limit_s=1.0)
    assert job.state == JobState.FAILED
    assert job.attempts[-1].reason == EndReason.TIME_LIMIT
    assert processes_of(job) == []


def test_one_bad_member_ends_the_gang(alice: Client) -> None:
    script = "import os, sys, time; sys.exit(3) if os.environ['GROUP_RANK'] == '1' else time.sleep(1000)"
    job = run(alice, nodes=2, command=[sys.executable, "-c", script])
    assert (job.state, job.exit_code) == (JobState.FAILED, 3)
    assert {member.reason for member in job.attempts[-1].members} == {EndReason.FAILED, EndReason.PEER_ENDED}
    assert processes_of(job) == []


def test_cancel_while_running_leaves_nothing_behind(alice: Client) -> None:
    submitted = alice.submit(JobSpec(command=["sh", "-c", "echo running; sleep 1000"], device_kinds=["cpu"]))
    first = next(iter(alice.follow_logs(submitted.id)))
    assert first.text == "running\n"
    alice.cancel(submitted.id)
    job = alice.wait(submitted.id)
    assert job.state == JobState.CANCELLED
    assert processes_of(job) == []


def test_logs_are_followed_live_and_whole(alice: Client) -> None:
    """The job goes on only after its first line has been read from the live log."""
    gate = Path("/tmp") / f"ergon-gate-{os.getpid()}"
    os.mkfifo(gate)
    try:
        script = f"import sys; print('ready', flush=True); open({str(gate)!r}).read(); print('x' * 300_000)"
        job = alice.submit(JobSpec(command=[sys.executable, "-c", script], device_kinds=["cpu"]))
        pieces: list[str] = []
        for piece in alice.follow_logs(job.id):
            if not pieces:
                assert piece.text == "ready\n"
                gate.write_text("go")
            pieces.append(piece.text)
    finally:
        gate.unlink()
    assert "".join(pieces) == "ready\n" + "x" * 300_000 + "\n"


def test_a_rank_does_not_see_our_tokens(alice: Client) -> None:
    job = run(alice, command=["env"])
    seen = {line.partition("=")[0] for line in output(alice, job).splitlines()}
    ours = {name for name in seen if name.startswith("ERGON_")}
    assert ours == {
        "ERGON_JOB_ID",
        "ERGON_ATTEMPT",
        "ERGON_EPOCH",
        "ERGON_PROGRESS",
        "ERGON_OUTPUT",
        "ERGON_CHECKPOINT_DIR",
        "ERGON_CHECKPOINT_LATEST",
        "ERGON_DUMP_SIGNAL",
    }


def test_report_and_plans_follow(admin: Client, alice: Client) -> None:
    job = run(alice, command=["true"])
    assert job.state == JobState.SUCCEEDED
    report = admin.report()
    assert {line.node for line in report.nodes} == {"node-1", "node-2"}
    assert "alice" in {line.user for line in report.users}
    held = sum(line.allocated_device_hours for line in report.users)
    assert held == pytest.approx(sum(line.allocated_device_hours for line in report.nodes))
    assert report.total_energy_kwh is not None
    assert report.idle_energy_kwh is not None
    by_users = sum(line.energy_kwh for line in report.users)
    assert by_users + report.idle_energy_kwh == pytest.approx(report.total_energy_kwh)
    assert report.quality == "modelled"
    assert next(iter(admin.cycles())).gap == pytest.approx(0, abs=1e-6)

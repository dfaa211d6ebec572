"""A job that loses its node, and one that is preempted, go on elsewhere to exactly the result of an unbroken run."""

import hashlib
import textwrap

import pytest

from ergon.client import Client
from protocol.jobs import JobSpec, JobView
from protocol.states import EndReason, JobState
from tests.system.jobs import words_of

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

LAST, EVERY = 40, 10
# In the first attempt it waits at step 15 until it is stopped and saves, in the second at step 29 and does not save.
TRAIN = textwrap.dedent(
    f"""
    import hashlib, os, time
    from ergon import runtime

    runtime.watch_for_stop()
    step, weight = 0, ""
    found = runtime.latest_checkpoint()
    if found:
        step, weight = (found / "rank-0" / "state").read_text().split()
    step, epoch = int(step), int(os.environ["ERGON_EPOCH"])
    print("from", step, flush=True)

    def save():
        with runtime.checkpoint(step) as folder:
            (folder / "state").write_text(f"{{step}} {{weight}}")

    while step < {LAST}:
        step += 1
        weight = hashlib.sha256(f"{{step}} {{weight}}".encode()).hexdigest()
        if step % {EVERY} == 0:
            save()
        if (epoch, step) in ((1, 15), (2, 29)):
            print("waits", flush=True)
            while not runtime.stop_requested():
                time.sleep(0.01)
            if epoch == 1:
                save()
            raise SystemExit(1)
    print("weight", weight)
    """
)


def unbroken() -> str:
    weight = ""
    for step in range(1, LAST + 1):
        weight = hashlib.sha256(f"{step} {weight}".encode()).hexdigest()
    return weight


def wait_saved(client: Client, job_id: str, epoch: int, step: int) -> JobView:
    """Until the service knows of this checkpoint."""
    for event in client.follow_logs(job_id):
        if event.epoch == epoch and "waits" in event.text:
            break
    while True:
        job = client.job(job_id)
        if job.checkpoint is not None and (job.checkpoint.epoch, job.checkpoint.step) == (epoch, step):
            return job
        assert job.state == JobState.RUNNING


def test_a_job_goes_on_from_its_checkpoint_on_another_node(alice: Client, admin: Client) -> None:
    spec = JobSpec.model_validate({"command": ["python", "-c", TRAIN], "stop_grace_s": 60})
    job = wait_saved(alice, alice.submit(spec).id, 1, 10)
    node = job.attempts[0].members[0].node
    admin.drain(node, deadline_s=0)
    try:
        job = wait_saved(alice, job.id, 2, 20)
        assert job.attempts[1].members[0].node != node
    finally:
        admin.uncordon(node)
    admin.preempt(job.id)
    end = alice.wait(job.id)
    assert end.state == JobState.SUCCEEDED, end.reason
    reasons = [attempt.reason for attempt in end.attempts]
    assert reasons == [EndReason.DRAINED, EndReason.PREEMPTED, EndReason.COMPLETED]
    lines = words_of(alice, end).splitlines()
    assert lines == ["from 0", "waits", "from 15", "waits", "from 20", f"weight {unbroken()}"]
    assert end.checkpoint is not None
    assert (end.checkpoint.epoch, end.checkpoint.step) == (3, LAST)

"""A job that loses its node, and one that is preempted, go on elsewhere to exactly the result of an unbroken run."""

import pytest

from ergon.client import Client
from protocol.jobs import JobSpec, JobView
from protocol.states import EndReason, JobState
from tests.system.jobs import words_of

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("system"), pytest.mark.timeout(180)]


def wait_saved(client: Client, job_id: str, epoch: int) -> JobView:
    """Until this attempt of the job has a checkpoint."""
    for _piece in client.follow_logs(job_id):
        job = client.job(job_id)
        if job.checkpoint is not None and job.checkpoint.epoch == epoch:
            return job
    raise AssertionError(f"{job_id} ended without: {client.job(job_id).reason}")


def test_a_job_goes_on_from_its_checkpoint_on_another_node(alice: Client, admin: Client) -> None:
    options = {"epochs": 150, "hidden": 8, "checkpoint_every": 2}
    spec = JobSpec.model_validate(
        {"recipe": {"name": "digits-mlp", "options": options}, "devices_per_node": 2, "stop_grace_s": 60}
    )
    job = wait_saved(alice, alice.submit(spec).id, 1)
    [member] = job.attempts[0].members
    admin.drain(member.node, deadline_s=0)
    try:
        job = wait_saved(alice, job.id, 2)
        assert job.attempts[1].members[0].node != member.node
        admin.preempt(job.id)
        end = alice.wait(job.id)
    finally:
        admin.uncordon(member.node)
    assert end.state == JobState.SUCCEEDED, end.reason
    reasons = [attempt.reason for attempt in end.attempts]
    assert reasons == [EndReason.DRAINED, EndReason.PREEMPTED, EndReason.COMPLETED]
    told = words_of(alice, end)
    assert told.count("going on from epoch-") == 2
    # It was asked to stop and has saved at once: no epoch is trained twice.
    assert [told.count(f"epoch {number}/150 ") for number in range(1, 151)] == [1] * 150
    unbroken = alice.wait(alice.submit(spec).id)
    assert words_of(alice, unbroken).splitlines()[-1] == told.splitlines()[-1]
    assert end.progress is not None
    assert unbroken.progress is not None
    assert end.progress.metrics == unbroken.progress.metrics

"""How attempts move on: what agents report, what the service asks, and what follows for the job."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import Connection

from protocol.jobs import JobSpec
from protocol.states import AttemptState, Desired, EndReason, JobState
from protocol.sync import MemberReport
from service import broken_nodes, dependencies, verdicts
from service.db import Record, notify
from service.lifecycle import (
    ASKED,
    GOES_ON,
    LOSSES,
    OWN_FAULTS,
    MemberFacts,
    back_off_s,
    check_job_change,
    describe,
    job_state_after,
    judge_gang,
    moves_forward,
)
from service.store import attempts as store
from service.store import jobs as job_store

COUNTS = (("step", "total_steps"), ("epoch", "total_epochs"))
"""What ranks report of how far they are, and of how far they go."""


def stop(tx: Connection, attempt: Record, reason: EndReason, *, now: datetime) -> None:
    """Ask every member's agent to stop it. Nothing is released before the agents say that nothing is left."""
    store.stop_attempt(tx, attempt.id, reason)
    if moves_forward(AttemptState(attempt.state), AttemptState.STOPPING):
        store.change_attempt(tx, attempt.id, state=AttemptState.STOPPING.value)
    _tell_nodes(tx, attempt.id)
    notify(tx, f"job:{attempt.job_id}")


def take_report(tx: Connection, node_id: str, report: MemberReport, *, max_attempts: int, now: datetime) -> None:
    """Take in what an agent observes of its member. Old news changes nothing."""
    attempt = store.lock_attempt(tx, report.attempt)
    if attempt is None or attempt.epoch != report.epoch:
        return
    member = next((row for row in store.list_members(tx, attempt.id) if row.node_id == node_id), None)
    if member is None or member.released_at is not None:
        return
    changed = False
    if report.checkpoint is not None and job_store.advance_checkpoint(
        tx, attempt.job_id, epoch=attempt.epoch, step=report.checkpoint, now=now
    ):
        notify(tx, f"job:{attempt.job_id}")
    if report.rendezvous and member.member == 0 and attempt.rendezvous is None:
        store.change_attempt(tx, attempt.id, rendezvous=report.rendezvous)
        _tell_nodes(tx, attempt.id)
    if moves_forward(AttemptState(member.state), report.state):
        reason = report.reason
        if reason == EndReason.CANCELLED:  # the agent knows that it was told to stop, not why
            reason = EndReason(attempt.reason) if attempt.reason in ASKED else EndReason.PEER_ENDED
        store.change_member(
            tx,
            attempt.id,
            member.member,
            state=report.state.value,
            exit_code=report.exit_code,
            reason=reason.value if reason else None,
            message=report.message,
        )
        changed = True
        if reason == EndReason.UNKNOWN_START:
            broken_nodes.consider(tx, node_id, now=now)
    if report.quiet != member.quiet:
        store.change_member(tx, attempt.id, member.member, quiet=report.quiet)
        changed = True
    if report.state == AttemptState.ENDED and report.clean:
        store.release_member(tx, attempt.id, member.member, now=now)
        notify(tx, "cycle")
        notify(tx, f"node:{node_id}")
    if changed:
        settle(tx, attempt.id, max_attempts=max_attempts, now=now)


def lose_node(tx: Connection, node_id: str, *, release: bool, max_attempts: int, now: datetime) -> None:
    """End the members on a node that is gone. Their devices stay held until the node says they are clean.

    Args:
        release: nothing of before can still run, because the machine has booted since or somebody said that it is
            down: release the devices too, and end those members as well whose job would rather wait.
    """
    for attempt in store.live_attempts_on_node(tx, node_id):
        store.lock_attempt(tx, attempt.id)
        if not release and _waits_for_node(tx, attempt.job_id):
            job_store.add_event(tx, attempt.job_id, kind="disconnected", now=now, epoch=attempt.epoch, node=node_id)
            continue
        for member in store.list_members(tx, attempt.id):
            if member.node_id == node_id and member.state != AttemptState.ENDED.value:
                reason = EndReason.NODE_LOST.value
                store.change_member(tx, attempt.id, member.member, state=AttemptState.ENDED.value, reason=reason)
        settle(tx, attempt.id, max_attempts=max_attempts, now=now)
    if release:
        for held in store.held_members(tx, node_id):
            store.release_member(tx, held.attempt_id, held.member, now=now)
        notify(tx, "cycle")


def settle(tx: Connection, attempt_id: str, *, max_attempts: int, now: datetime) -> None:
    """Bring attempt and job in line with the members."""
    attempt = store.lock_attempt(tx, attempt_id)
    assert attempt is not None
    old = AttemptState(attempt.state)
    if old == AttemptState.ENDED:
        return
    stopping_for = EndReason(attempt.reason) if attempt.reason else None
    members = [_facts(row) for row in store.list_members(tx, attempt_id)]
    gang = judge_gang(members, stopping_for)
    if gang.reason in GOES_ON and gang.state == AttemptState.ENDED and _has_finished(tx, attempt, members):
        gang = replace(gang, reason=EndReason.COMPLETED, message=None)
    if gang.stop and attempt.desired == Desired.RUN.value:
        assert gang.reason is not None
        stop(tx, attempt, gang.reason, now=now)
        return
    if not moves_forward(old, gang.state):
        return
    values: dict[str, object] = {"state": gang.state.value}
    if gang.state == AttemptState.RUNNING:
        values["started_at"] = now
    if gang.state == AttemptState.ENDED:
        assert gang.reason is not None
        values |= {"ended_at": now, "reason": gang.reason.value}
    store.change_attempt(tx, attempt_id, **values)
    if gang.state == AttemptState.RUNNING:
        _job_runs(tx, attempt.job_id, now=now)
    elif gang.state == AttemptState.ENDED:
        assert gang.reason is not None
        _job_after_attempt(tx, attempt, gang.reason, gang.exit_code, gang.message, max_attempts=max_attempts, now=now)
    notify(tx, f"job:{attempt.job_id}")


def _has_finished(tx: Connection, attempt: Record, members: Sequence[MemberFacts]) -> bool:
    """Whether a job that was asked to leave had reached its end: every rank exited with 0, and the last step (or epoch)
    that one reported is the last there is. With 0 alone a script may as well leave that has saved and wants to go on.
    """
    if any(member.exit_code != 0 for member in members):
        return False
    job = job_store.lock_job(tx, attempt.job_id)
    progress = job.progress or {} if job.epoch == attempt.epoch else {}
    told = [(progress.get(done), progress.get(total)) for done, total in COUNTS]
    ends = [done is not None and done >= total for done, total in told if total is not None]
    return bool(ends) and all(ends)


def _waits_for_node(tx: Connection, job_id: str) -> bool:
    return JobSpec.model_validate(job_store.lock_job(tx, job_id).spec).on_disconnect == "wait"


def _job_runs(tx: Connection, job_id: str, *, now: datetime) -> None:
    job = job_store.lock_job(tx, job_id)
    if job.state != JobState.STARTING.value:
        return
    started_at = job.started_at or now
    job_store.change_job(tx, job_id, old=JobState.STARTING, state=JobState.RUNNING.value, started_at=started_at)
    job_store.add_event(tx, job_id, kind="running", now=now, epoch=job.epoch)


def _job_after_attempt(
    tx: Connection,
    attempt: Record,
    reason: EndReason,
    exit_code: int | None,
    message: str | None,
    *,
    max_attempts: int,
    now: datetime,
) -> None:
    job = job_store.lock_job(tx, attempt.job_id)
    old = JobState(job.state)
    max_retries = JobSpec.model_validate(job.spec).max_retries
    new = job_state_after(
        reason,
        losses=job.losses,
        faults=job.faults,
        max_attempts=max_attempts,
        max_retries=max_retries,
        cancel_requested=job.cancel_requested,
    )
    check_job_change(old, new)
    sentence = describe(reason, message)
    job_store.add_event(
        tx, job.id, kind="attempt_ended", now=now, epoch=attempt.epoch, reason=reason.value, message=sentence
    )
    if new == JobState.QUEUED:
        _requeue(tx, job, reason, sentence, now=now)
        return
    if new == JobState.FAILED and reason in LOSSES:
        sentence += f"; with {max_attempts} attempts lost it is not tried again"
    elif new == JobState.FAILED and reason in OWN_FAULTS and max_retries:
        sentence += f"; {max_retries} retries were not enough"
    # Two requests may take the time in one order and the lock in the other.
    ended_at = max(now, job.started_at or now)
    job_store.change_job(tx, job.id, old=old, state=new.value, ended_at=ended_at, reason=sentence, exit_code=exit_code)
    job_store.add_event(tx, job.id, kind="ended", now=now, state=new.value, exit_code=exit_code)
    dependencies.follow(tx, {job.id: new}, now=now)


def _requeue(tx: Connection, job: Record, reason: EndReason, sentence: str, *, now: datetime) -> None:
    """Back into the queue; after a loss or a fault not before a pause, so that a broken node or job makes no storm.

    A pause that the job has already, after a restore, is not cut short.
    """
    losses, faults = job.losses + (reason in LOSSES), job.faults + (reason in OWN_FAULTS)
    not_before, said = job.not_before, verdicts.waiting(verdicts.NOT_WEIGHED_YET)
    if (losses, faults) != (job.losses, job.faults):
        not_before = max(job.not_before or now, now + timedelta(seconds=back_off_s(losses + faults)))
        said = verdicts.waiting(verdicts.backing_off(sentence, not_before))
    job_store.change_job(
        tx,
        job.id,
        old=JobState(job.state),
        state=JobState.QUEUED.value,
        losses=losses,
        faults=faults,
        not_before=not_before,
        verdict=said,
        progress=None,
    )
    job_store.add_event(tx, job.id, kind="requeued", now=now, epoch=job.epoch, reason=reason.value)
    if job.hold:
        said = verdicts.waiting(verdicts.MAY_RUN_UNHEARD)
        job_store.change_job(tx, job.id, old=JobState.QUEUED, state=JobState.HELD.value, verdict=said)
        job_store.add_event(tx, job.id, kind="held", now=now)
    notify(tx, "cycle")


def _facts(row: Record) -> MemberFacts:
    return MemberFacts(
        state=AttemptState(row.state),
        reason=EndReason(row.reason) if row.reason else None,
        exit_code=row.exit_code,
        message=row.message,
        quiet=row.quiet,
    )


def _tell_nodes(tx: Connection, attempt_id: str) -> None:
    for node_id in store.nodes_of_attempt(tx, attempt_id):
        notify(tx, f"node:{node_id}")

"""The agent's exchange: take in all it observes, answer with all it should hold."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection

from protocol.jobs import CheckpointMark, JobSpec
from protocol.nodes import PowerSample
from protocol.progress import ProgressLine
from protocol.states import AttemptState, Desired, NodeState
from protocol.sync import Assignment, DeviceGrant, MemberReport, StreamChunk, SyncRequest, SyncResponse
from scheduler.pace import Line
from service import attempts, nodes, power, run_times, staging
from service.db import Record, notify
from service.power_states import Event
from service.refusals import StaleIncarnation, StaleReport, UnknownIncarnation
from service.store import attempts as attempt_store
from service.store import jobs as job_store
from service.store import logs as log_store
from service.store import nodes as node_store


def take(tx: Connection, name: str, request: SyncRequest, *, max_attempts: int, now: datetime) -> None:
    """Take in what the agent of node `name` observes. Sent twice, it changes nothing the second time.

    Raises:
        ProtocolMismatch: agent and service do not speak the same version.
        StaleIncarnation: another agent has registered as this node since.
        UnknownIncarnation: the database went back to a backup that was made before the agent registered.
        StaleReport: the agent has told more since, and has been heard.
    """
    nodes.check_protocol(request.protocol)
    node = node_store.touch_node(tx, name, incarnation=request.incarnation, now=now)
    if node is None:
        raise _not_the_latest(tx, name, request.incarnation)
    if request.seq is not None:
        if request.seq <= node.report_seq:
            raise StaleReport(f"report {request.seq} of node {name!r} comes after report {node.report_seq}")
        node_store.change_node(tx, name, report_seq=request.seq)
    if node.state == NodeState.LOST.value and not request.leaving:
        _welcome_back(tx, node, now=now)
    if request.state_folder is not None and request.state_folder != node.state_folder:
        _meet(tx, node, request.state_folder, max_attempts=max_attempts, now=now)
    held = {row.attempt_id: row for row in attempt_store.held_members(tx, node.id)}
    # Attempts before jobs, and always in one order: the agents of a gang must not wait for each other.
    attempt_store.lock_attempts(tx, held.keys() & _told_of(request, held))
    for chunk in request.chunks:
        if chunk.attempt in held:
            _take_chunk(tx, held[chunk.attempt], chunk, now=now)
    for report in request.members:
        if report.attempt in held:
            attempts.take_report(tx, node.id, report, max_attempts=max_attempts, now=now)
    _take_samples(tx, node, request, now=now)
    _take_inventory(tx, node, request)
    if request.cache is not None:
        staging.take(tx, node, request.cache)
    if request.leaving:
        nodes.lose(tx, node.id, last_seen_at=now, max_attempts=max_attempts, now=now)


def _take_inventory(tx: Connection, node: Record, request: SyncRequest) -> None:
    """What the agent says of its devices and of the kernel, as far as it is news."""
    if request.unfit is not None and node_store.set_unfit(tx, node.id, request.unfit):
        notify(tx, "cycle")
    if request.limits is not None:
        node_store.change_node(tx, node.id, limits=request.limits)
    if request.caps is not None and node_store.set_caps(tx, node.id, request.caps):
        notify(tx, "cycle")


def _told_of(request: SyncRequest, held: Iterable[str]) -> set[str]:
    """Attempts that what is told may change. What a device has drawn may be any's."""
    named = {part.attempt for part in (*request.members, *request.chunks)}
    return named.union(held) if any(_counted(sample) for sample in request.samples) else named


def check_latest(tx: Connection, name: str, incarnation: int) -> None:
    """Raises StaleIncarnation or UnknownIncarnation, as `take` does, once another agent has registered as this node."""
    node = node_store.find_node(tx, name)
    if node is None or node.incarnation != incarnation:
        raise _not_the_latest(tx, name, incarnation)


def _meet(tx: Connection, node: Record, state_folder: str, *, max_attempts: int, now: datetime) -> None:
    """Hear an agent with another memory than the one before: what that one was given it may have started unsaid.

    So the new one is told that it was seen starting, and answers that it does not know of it instead of starting it.
    """
    if node.state_folder is not None:
        held = {row.attempt_id: row for row in attempt_store.held_members(tx, node.id)}
        attempt_store.lock_attempts(tx, held.keys())
        for row in held.values():
            started = MemberReport(attempt=row.attempt_id, epoch=row.epoch, state=AttemptState.STARTING)
            attempts.take_report(tx, node.id, started, max_attempts=max_attempts, now=now)
    node_store.change_node(tx, node.id, state_folder=state_folder)


def _not_the_latest(tx: Connection, name: str, incarnation: int) -> StaleIncarnation | UnknownIncarnation:
    """Why an agent is refused. Numbers only rise: one that was never given out here was given out by a later state."""
    node = node_store.find_node(tx, name)
    if node is None or node.incarnation < incarnation:
        return UnknownIncarnation(
            f"incarnation {incarnation} of node {name!r} is not known: the database has been restored from a backup; "
            "register again"
        )
    return StaleIncarnation(
        f"incarnation {incarnation} of node {name!r} is not the latest: another agent has registered with this name; "
        "stop one of the two"
    )


def answer(tx: Connection, node_id: str, *, stop_grace_s: float, lease_s: float) -> SyncResponse:
    """Everything the agent of this node should hold, and a version that changes when that does."""
    held = attempt_store.held_members(tx, node_id)
    grants: dict[str, list[DeviceGrant]] = {}
    for row in attempt_store.devices_of_members(tx, node_id):
        grant = DeviceGrant(id=row.id, kind=row.kind, index=row.number, thousandths=int(row.thousandths))
        grants.setdefault(row.attempt_id, []).append(grant)
    assignments = [_assignment(row, grants.get(row.attempt_id, []), stop_grace_s) for row in held]
    digest = hashlib.sha256()
    for assignment in assignments:
        digest.update(assignment.model_dump_json(exclude={"observed", "checkpoint"}).encode())
    ends = log_store.ends_of_streams(tx, [row.attempt_id for row in held]) if held else {}
    assignments = [item.model_copy(update={"offsets": ends.get(item.attempt, {})}) for item in assignments]
    return SyncResponse(assignments=assignments, version=digest.hexdigest()[:16], lease_s=lease_s)


def _assignment(row: Record, devices: Sequence[DeviceGrant], stop_grace_s: float) -> Assignment:
    spec = JobSpec.model_validate(row.spec)
    return Assignment(
        attempt=row.attempt_id,
        job=row.job_id,
        job_name=row.job_name,
        user=row.user_name,
        epoch=row.epoch,
        desired=Desired.STOP if row.attempt_state == AttemptState.ENDED.value else row.desired,
        observed=row.observed,
        command=spec.command,
        recipe=spec.recipe,
        env=spec.env,
        image=spec.image,
        cpu_limit=spec.cpu_cores_per_node,
        array_index=row.array_index,
        code=spec.code,
        python=spec.python,
        requirements=spec.requirements,
        datasets=spec.datasets,
        member=row.member,
        members=row.nodes,
        ranks=spec.ranks,
        devices=list(devices),
        cpu_cores=row.millicores / 1000,
        memory_bytes=row.memory_bytes,
        rendezvous=row.rendezvous,
        time_limit_s=spec.time_limit_s,
        stall_timeout_s=spec.stall_timeout_s,
        disk_bytes=spec.disk_bytes_per_node,
        on_disconnect=spec.on_disconnect,
        checkpoint=_mark(row),
        cap_w=row.cap_w,
        stop_grace_s=stop_grace_s if spec.stop_grace_s is None else spec.stop_grace_s,
    )


def _mark(row: Record) -> CheckpointMark | None:
    """Where the job goes on; the same for every member of a gang: no attempt of before is heard any more."""
    if row.checkpoint_epoch is None:
        return None
    return CheckpointMark(epoch=row.checkpoint_epoch, step=row.checkpoint_step, stored=row.checkpoint_stored)


def _welcome_back(tx: Connection, node: Record, *, now: datetime) -> None:
    node_store.change_node(tx, node.id, state=NodeState.READY.value)
    power.happen(tx, node, Event.HEARD, now=now)
    devices = node_store.list_devices(tx, node.id)
    base_w = node_store.current_base_w(tx)[node.id]
    node_store.open_session(tx, node_id=node.id, num_devices=len(devices), base_w=base_w, now=now)
    notify(tx, "cycle")


def _take_samples(tx: Connection, node: Record, request: SyncRequest, *, now: datetime) -> None:
    """An agent that got no answer sends its samples again: those that were taken then are known by their number."""
    samples = request.samples
    if request.first_sample is not None:
        samples = samples[max(0, node.samples_taken - request.first_sample) :]
        taken = max(node.samples_taken, request.first_sample + len(request.samples))
        node_store.change_node(tx, node.id, samples_taken=taken)
    node_store.add_samples(tx, [_sample_row(node.id, sample, now) for sample in samples])
    _meter(tx, node.id, [_sample_row(node.id, sample, now) for sample in samples if _counted(sample)])


def _counted(sample: PowerSample) -> bool:
    """Whether it is what a device's own counter says."""
    return sample.device is not None and sample.energy_j is not None


def _meter(tx: Connection, node_id: str, counted: Sequence[Mapping[str, Any]]) -> None:
    """What counters of devices say goes to the attempts that ran on them all the time it speaks of."""
    holders = {row.device_id: row for row in attempt_store.computing_on(tx, node_id)} if counted else {}
    of_attempts: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in counted:
        holder = holders.get(row["device_id"])
        if holder is not None and holder.started_at <= row["started_at"]:
            of_attempts[holder.attempt_id].append(row)
    for attempt, rows in of_attempts.items():
        device_s = sum((row["ended_at"] - row["started_at"]).total_seconds() for row in rows)
        attempt_store.add_metered(tx, attempt, node_id, sum(row["energy_j"] for row in rows), device_s)


def _take_chunk(tx: Connection, member: Record, chunk: StreamChunk, *, now: datetime) -> None:
    fresh = log_store.add_chunk(
        tx,
        attempt_id=chunk.attempt,
        rank=chunk.rank,
        stream=chunk.stream,
        offset=chunk.offset,
        data=chunk.data,
        now=now,
    )
    if fresh and chunk.stream == "progress":
        _take_progress(tx, member, chunk.rank, fresh, now=now)
    if fresh:
        notify(tx, f"job:{member.job_id}")


def _take_progress(tx: Connection, member: Record, rank: int, data: bytes, *, now: datetime) -> None:
    """Lines that are no progress are a mistake of the user's script: they are kept as output and otherwise ignored."""
    points: list[dict[str, object]] = []
    lines: list[Line] = []
    latest: dict[str, object] = {}
    for line in data.splitlines():
        try:
            progress = ProgressLine.model_validate_json(line)
        except ValidationError:
            continue
        counts = progress.model_dump(exclude_none=True, exclude={"metrics"})
        lines.append(Line(rank=rank, **counts))
        latest |= counts
        latest["metrics"] = {**_dict(latest.get("metrics")), **progress.metrics}
        for name, value in progress.metrics.items():
            points.append(
                {
                    "job_id": member.job_id,
                    "epoch": member.epoch,
                    "rank": rank,
                    "step": progress.step,
                    "name": name,
                    "value": value,
                    "at": now,
                }
            )
    log_store.add_metrics(tx, points)
    if latest:
        job = job_store.lock_job(tx, member.job_id)
        if job.epoch != member.epoch or job.state in job_store.WAITING:
            return  # an attempt of before: its values are kept, but are not the job's progress any more
        known = _dict(job.progress)
        metrics = {**_dict(known.get("metrics")), **_dict(latest.get("metrics"))}
        pace = run_times.heard(job.pace, member.epoch, lines, now)
        job_store.set_progress(tx, member.job_id, {**known, **latest, "metrics": metrics}, pace)


def _dict(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _sample_row(node_id: str, sample: PowerSample, now: datetime) -> dict[str, Any]:
    ended_at = now - timedelta(seconds=sample.age_s)
    return {
        "node_id": node_id,
        "device_id": sample.device,
        "started_at": ended_at - timedelta(seconds=sample.seconds),
        "ended_at": ended_at,
        "energy_j": sample.energy_j,
        "busy_cores": sample.busy_cores,
        "utilisation": sample.utilisation,
        "source": sample.source,
    }

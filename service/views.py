"""Rows as the API shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from protocol.cycles import CycleView
from protocol.jobs import (
    ArrayPlace,
    AttemptView,
    CheckpointView,
    EventView,
    JobSpec,
    JobView,
    LogView,
    MemberView,
    MetricPoint,
    ProgressView,
    VerdictView,
)
from protocol.nodes import DeviceHolder, DeviceView, NodeView
from protocol.states import DeviceCondition, JobState
from service.db import Record
from service.staging import Kept


def job(
    row: Record,
    attempts: Sequence[Record],
    members: Sequence[Record],
    *,
    array_states: Mapping[JobState, int] | None = None,
) -> JobView:
    """A job; `attempts` and `members` are empty in listings, `array_states` is there where it stands for its array."""
    return JobView(
        id=row.id,
        user=row.user_name,
        spec=JobSpec.model_validate(row.spec),
        state=row.state,
        priority=row.priority,
        array=_array_place(row, array_states or {}) if row.array_id else None,
        resubmitted_from=row.origin_id,
        signature=row.signature,
        not_before=row.not_before,
        reason=row.reason,
        exit_code=row.exit_code,
        epoch=row.epoch,
        cancel_requested=row.cancel_requested,
        submitted_at=row.submitted_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        output_deleted=row.trimmed,
        verdict=VerdictView.model_validate(row.verdict) if row.verdict else None,
        progress=ProgressView.model_validate(row.progress) if row.progress else None,
        checkpoint=_checkpoint(row),
        attempts=[_attempt(attempt, members) for attempt in attempts],
    )


def _checkpoint(row: Record) -> CheckpointView | None:
    if row.checkpoint_epoch is None:
        return None
    return CheckpointView(
        epoch=row.checkpoint_epoch, step=row.checkpoint_step, stored=row.checkpoint_stored, at=row.checkpoint_at
    )


def _array_place(row: Record, states: Mapping[JobState, int]) -> ArrayPlace:
    return ArrayPlace(
        id=row.array_id, index=row.array_index, count=row.array_count, limit=row.array_limit, states=dict(states)
    )


def _attempt(row: Record, members: Sequence[Record]) -> AttemptView:
    return AttemptView(
        id=row.id,
        epoch=row.epoch,
        state=row.state,
        reason=row.reason,
        cap_w=row.cap_w,
        slower=row.slower,
        granted_at=row.granted_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        members=[_member(member) for member in members if member.attempt_id == row.id],
    )


def _member(row: Record) -> MemberView:
    return MemberView(
        node=row.node_id,
        devices=sorted(row.device_ids or ()),
        state=row.state,
        exit_code=row.exit_code,
        reason=row.reason,
        message=row.message,
    )


def event(row: Record) -> EventView:
    return EventView(seq=row.seq, at=row.at, kind=row.kind, data=row.data)


def metric(row: Record) -> MetricPoint:
    return MetricPoint(
        seq=row.seq, at=row.at, epoch=row.epoch, rank=row.rank, step=row.step, name=row.name, value=row.value
    )


def log(row: Record) -> LogView:
    return LogView(
        epoch=row.epoch,
        rank=row.rank,
        stream=row.stream,
        offset=row.offset,
        text=row.data.decode("utf-8", errors="replace"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a device. An attempt that has ended still does until its node says that nothing of it is left."""

    job: str
    has_ended: bool
    thousandths: int


NOT_CLEAN = "an attempt has ended here, and its node has not said that no process of it is left"


def node(
    row: Record, devices: Sequence[Record], holders: Mapping[str, Sequence[Holder]], base_w: float, kept: Kept
) -> NodeView:
    """A node with its devices; `holders` gives who holds each device, `base_w` the power at idle in W, `kept` what is
    known of its cache.
    """
    return NodeView(
        name=row.id,
        state=row.state,
        incarnation=row.incarnation,
        address=row.address,
        cpu_model=row.cpu_model,
        cpu_cores=row.millicores / 1000,
        memory_bytes=row.memory_bytes,
        containment=row.containment or "none",
        limits=row.limits,
        devices=[_device(device, holders.get(device.id, ())) for device in devices],
        container_runtime=row.container_runtime,
        container_fault=row.container_fault,
        base_w=base_w,
        cache_entries=kept.entries,
        cache_bytes=kept.size_bytes,
        links=list(kept.links),
        cordoned=row.cordoned,
        closed_because=row.closed_because,
        drain_at=row.drain_at,
        power=row.power,
        power_since=row.power_since,
        power_kept=row.power_kept,
        power_fault=row.hook_error,
        registered_at=row.registered_at,
        last_seen_at=row.last_seen_at,
    )


def _device(row: Record, holders: Sequence[Holder]) -> DeviceView:
    condition, reason = DeviceCondition.OK, None
    if any(holder.has_ended for holder in holders):
        condition, reason = DeviceCondition.QUARANTINED, NOT_CLEAN
    elif row.unfit_reason is not None:
        condition, reason = DeviceCondition.UNFIT, row.unfit_reason
    return DeviceView(
        id=row.id,
        kind=row.kind,
        index=row.number,
        memory_bytes=row.memory_bytes,
        least_cap_w=row.least_cap_w,
        job=holders[0].job if holders else None,
        holders=[DeviceHolder(job=holder.job, share=holder.thousandths / 1000) for holder in holders],
        condition=condition,
        reason=reason,
    )


def cycle(row: Record) -> CycleView:
    return CycleView.model_validate(row._asdict())


def timestamp(moment: datetime) -> str:
    """UTC, to the second, as reports print it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

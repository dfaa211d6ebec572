"""Answers of the service, with the parts that a test cares about."""

from datetime import UTC, datetime

from protocol.cycles import CycleDetail
from protocol.jobs import (
    AttemptView,
    EventView,
    ExpectedView,
    JobSpec,
    JobView,
    LogView,
    MemberView,
    MetricPoint,
    ProgressView,
    VerdictView,
)
from protocol.nodes import DeviceView, NodeView
from protocol.reports import AllocationReport, NodeUsage, PlanSummary, UserUsage
from protocol.states import AttemptState, JobState, NodeState

NOON = datetime(2031, 5, 1, 12, 0, tzinfo=UTC)


def a_job(
    job_id: str = "j1",
    *,
    state: JobState = JobState.QUEUED,
    spec: JobSpec | None = None,
    verdict: VerdictView | None = None,
    progress: ProgressView | None = None,
    reason: str | None = None,
    node: str | None = None,
    expected: ExpectedView | None = None,
) -> JobView:
    ended = state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
    return JobView(
        id=job_id,
        user="alice",
        spec=spec or JobSpec(name="train", command=["python", "train.py"]),
        state=state,
        reason=reason,
        epoch=1 if node else 0,
        submitted_at=NOON,
        started_at=NOON.replace(minute=1) if ended or node else None,
        ended_at=NOON.replace(minute=3, second=20) if ended else None,
        verdict=verdict,
        progress=progress,
        expected=expected,
        attempts=[an_attempt(node)] if node else [],
    )


def an_attempt(node: str) -> AttemptView:
    member = MemberView(node=node, devices=["cpu-0"], state=AttemptState.RUNNING)
    return AttemptView(id="a1", epoch=1, state=AttemptState.RUNNING, granted_at=NOON, members=[member])


def a_piece(text: str, *, rank: int = 0, offset: int = 0, stream: str = "stdout") -> LogView:
    return LogView.model_validate({"epoch": 1, "rank": rank, "stream": stream, "offset": offset, "text": text})


def an_event(seq: int, kind: str = "submitted") -> EventView:
    return EventView(seq=seq, at=NOON, kind=kind, data={"by": "alice"})


def a_point(seq: int, value: float, *, epoch: int = 1) -> MetricPoint:
    return MetricPoint(seq=seq, at=NOON, epoch=epoch, rank=0, step=seq, name="loss", value=value)


def a_node(name: str = "node-1", *, holder: str | None = None) -> NodeView:
    return NodeView(
        name=name,
        state=NodeState.READY,
        incarnation=1,
        address="127.0.0.1",
        cpu_model="x",
        cpu_cores=2,
        memory_bytes=8 << 30,
        devices=[
            DeviceView(id="cpu-0", kind="cpu", index=0, memory_bytes=0, job=holder),
            DeviceView(id="cpu-1", kind="cpu", index=1, memory_bytes=0),
        ],
        base_w=40.0,
        registered_at=NOON,
        last_seen_at=NOON,
    )


def a_cycle(cycle_id: int = 7) -> CycleDetail:
    return CycleDetail(
        id=cycle_id,
        term=1,
        at=NOON,
        pending=2,
        placed=1,
        committed=1,
        objective_j=200.0,
        bound_j=199.0,
        gap=0.005,
        method="cpsat",
        status="optimal",
        snapshot_s=0.01,
        solve_s=0.2,
        commit_s=0.01,
        problem={},
        plan={
            "verdicts": [
                {"job": "j1", "outcome": "placed", "reasons": []},
                {"job": "j2", "outcome": "waiting", "reasons": [{"code": "busy", "message": "no device is free"}]},
            ]
        },
    )


def a_report(*, admin: bool = True) -> AllocationReport:
    node = NodeUsage(
        node="node-1",
        devices=2,
        available_device_hours=2.0,
        allocated_device_hours=0.5,
        idle_device_hours=1.5,
        energy_kwh=0.04,
        idle_energy_kwh=0.03,
        quality="modelled",
    )
    user = UserUsage(user="alice", jobs=1, allocated_device_hours=0.5, energy_kwh=0.01, quality="modelled")
    plans = PlanSummary(cycles=3, placements=1, gap_median=0.001, gap_max=0.0234, solve_s_median=0.1, solve_s_max=0.2)
    if not admin:
        return AllocationReport(start=NOON, end=NOON.replace(hour=13), pue=1.2, nodes=[], users=[user], plans=plans)
    return AllocationReport(
        start=NOON,
        end=NOON.replace(hour=13),
        pue=1.2,
        nodes=[node],
        users=[user],
        idle_device_hours=1.5,
        idle_energy_kwh=0.03,
        total_energy_kwh=0.04,
        facility_energy_kwh=0.048,
        least_energy_kwh=0.016,
        energy_gap=1.5,
        quality="modelled",
        plans=plans,
    )

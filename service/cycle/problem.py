"""From rows to the planner's words: one consistent read of the database becomes a `Problem`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import Connection

from protocol.jobs import JobSpec, Reason, VerdictView
from protocol.nodes import PowerBudgetView
from protocol.states import JobState, NodeState, PowerState
from scheduler.budgets import Never, drawn_mw
from scheduler.caps import capped_w
from scheduler.feasibility import total_room, why_impossible
from scheduler.plan import Outcome, Verdict
from scheduler.plan import Reason as PlanReason
from scheduler.power import InstalledDevice, Inventory, active_w, boots_in, default_wait_w, node_power
from scheduler.problem import CPU_KIND, WHOLE_DEVICE, Ahead, Device, Job, MayWait, Node, Problem, Shape
from scheduler.reserve import reserve
from scheduler.runtimes import SHORTEST_RUN_S
from service import run_times, staging
from service.cycle.claims import PATIENCE_S, Claim, without
from service.cycle.running import read_running
from service.cycle.shapes import least_caps_w, shapes_of
from service.db import Record
from service.power_budgets import NO_RULES, PowerRules
from service.power_pools import PowerPool, pool_of
from service.run_times import RunTimes, Work
from service.staging import Stagings
from service.store import attempts as attempt_store
from service.store import jobs as job_store
from service.store import nodes as node_store
from service.store import power as power_store
from service.tariffs import Tariff, rates_ahead

UNSAID = "its agent does not say what runs containers there; upgrade it"

_ASLEEP = (PowerState.OFF.value, PowerState.BOOTING.value)

NO_TARIFF = Tariff()
NOTHING_BEFORE: Mapping[str, datetime] = {}

UNSETTLED = (JobState.QUEUED.value, JobState.STARTING.value, JobState.RUNNING.value)

MAX_PENDING = 2_000
"""Jobs weighed in one cycle, in order of precedence; the others wait for the next ones."""


_OUTCOMES: dict[Outcome, Literal["placed", "waiting", "impossible"]] = {
    Outcome.PLACED: "placed",
    Outcome.WAITING: "waiting",
    Outcome.IMPOSSIBLE: "impossible",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the plan was made from. A commit checks that it still holds."""

    versions: dict[str, int]
    epochs: dict[str, int]
    incarnations: dict[str, int]
    arrays: dict[str, str]
    """The array of each job that is part of one."""
    asleep: frozenset[str]
    """Nodes that are off or boot: what is placed there starts when they are on."""


def read_problem(
    tx: Connection,
    *,
    pue: float,
    overtaken_s: float,
    now: datetime,
    quiet: Collection[str] = frozenset(),
    claims: Sequence[Claim] = (),
    power: PowerRules = NO_RULES,
    tariff: Tariff = NO_TARIFF,
    before: Mapping[str, datetime] = NOTHING_BEFORE,
) -> tuple[Problem, Seen]:
    """The planner's input, and the versions it stands for. `tx` must be one snapshot.

    Args:
        overtaken_s: how long others may overtake a job. The first in line that has waited longer gets a reservation.
        quiet: nodes that are ready but were not heard lately; nothing new goes there.
        claims: places that are given already. Their jobs are not part of the problem, but of what was seen.
        power: nodes that can be switched, and what groups of nodes may draw.
        tariff: what energy costs, for jobs that may wait.
        before: when the plan before this one meant to start those of them that were to start later.
    """
    node_rows = node_store.list_nodes(tx)
    job_rows = job_store.list_queued(tx, MAX_PENDING, now=now)
    held_rows = attempt_store.held_work(tx)
    times = run_times.read(tx, [(row.user_id, row.signature) for row in (*job_rows, *held_rows)])
    unstarted = [row for row in held_rows if row.started_at is None]
    stagings = staging.read(tx, [staging.stored_wants(row.spec) for row in (*job_rows, *unstarted)])
    nodes = _nodes(tx, node_rows, held_rows, times, stagings, now, quiet, power.pools)
    caps = least_caps_w(node_store.list_devices(tx))
    claimed = {claim.job for claim in claims}
    jobs = {row.id: _job(row, nodes, times, stagings, caps) for row in job_rows if row.id not in claimed}
    ahead = _ahead([row for row in job_rows if row.id in jobs], tariff, before, now)
    problem = Problem(
        nodes=without(nodes, claims),
        jobs=tuple(jobs.values()),
        pue=pue,
        ahead=ahead,
        budgets=power.of({row.id: row.labels for row in node_rows}),
    )
    overtaken = {row.id for row in job_rows if (now - row.submitted_at).total_seconds() > overtaken_s}
    overtaken -= {wait.job for wait in ahead.waits} if ahead else set()
    if first := next((job for job in problem.jobs if job.id in overtaken), None):
        running = read_running(tx, problem.nodes, now=now)
        problem = replace(problem, reservation=reserve(replace(problem, running=running), first))
    seen_rows = [*job_rows, *(row for row in job_store.find_jobs(tx, claimed) if row.state == JobState.QUEUED.value)]
    seen = Seen(
        versions={row.id: row.version for row in seen_rows},
        epochs={row.id: row.epoch for row in seen_rows},
        incarnations={row.id: row.incarnation for row in node_rows},
        arrays={row.id: row.array_id for row in seen_rows if row.array_id is not None},
        asleep=frozenset(row.id for row in node_rows if row.power in _ASLEEP),
    )
    return problem, seen


def _ahead(rows: Sequence[Record], tariff: Tariff, before: Mapping[str, datetime], now: datetime) -> Ahead | None:
    """What there is to plan by for jobs that have not started yet and may wait; None if there is nothing."""
    rates = rates_ahead(tariff, now)
    waits: list[MayWait] = []
    for row in rows if rates else ():
        until_s = (row.submitted_at - now).total_seconds() + (JobSpec.model_validate(row.spec).may_wait_s or 0.0)
        if row.epoch == 0 and until_s > 0:
            before_s = (before[row.id] - now).total_seconds() if row.id in before else None
            waits.append(MayWait(job=row.id, until_s=until_s, before_s=before_s))
    return Ahead(rates=rates, waits=tuple(waits)) if waits else None


def standing(tx: Connection, claims: Sequence[Claim], clock_s: float) -> list[Claim]:
    """The claims that still hold: those of jobs that are leaving or wait, and have had no other attempt since, on nodes
    that were not closed.
    """
    closed = {row.id for row in node_store.list_nodes(tx) if not _takes_new(row)} if claims else set[str]()
    rows = {row.id: row for row in job_store.find_jobs(tx, [claim.job for claim in claims])}
    return [
        claim
        for claim in claims
        if (row := rows.get(claim.job)) is not None
        and row.epoch == claim.epoch
        and row.state in UNSETTLED
        and (claim.boots or clock_s - claim.since_s < PATIENCE_S)
        and not (claim.boots and claim.nodes & closed)
    ]


def why_never(tx: Connection, specs: Sequence[JobSpec], power: PowerRules) -> list[tuple[Reason, ...]]:
    """For each spec: why the present nodes could not run the job even if they were empty, or why a power budget would
    not let them; nothing if they could.
    """
    rows = node_store.list_nodes(tx)
    nodes = _empty_nodes(tx, rows, power.pools)
    room = total_room(nodes)
    budgets = Never(nodes, power.of({row.id: row.labels for row in rows}))
    known: dict[tuple[Shape, ...], tuple[Reason, ...]] = {}
    answers: list[tuple[Reason, ...]] = []
    for spec in specs:
        shapes = shapes_of(spec, nodes, lambda _kind, _nodes: SHORTEST_RUN_S)  # a job can run however long it takes
        if shapes not in known:
            reasons = why_impossible(shapes, room) or budgets.why(shapes)
            known[shapes] = tuple(_shown(reason) for reason in reasons)
        answers.append(known[shapes])
    return answers


def budget_use(tx: Connection, power: PowerRules, now: datetime) -> list[PowerBudgetView]:
    """Every power budget, and what its nodes draw by the planner's count."""
    if not power.budgets:
        return []
    rows = node_store.list_nodes(tx)
    times, stagings = run_times.read(tx, []), staging.read(tx, [])
    nodes = {node.id: node for node in _nodes(tx, rows, [], times, stagings, now, frozenset(), power.pools)}
    return [
        PowerBudgetView(
            name=budget.name,
            limit_w=budget.watts,
            planned_w=drawn_mw(budget, nodes) / 1000,
            nodes=len(budget.nodes),
        )
        for budget in power.of({row.id: row.labels for row in rows})
    ]


def planned_job(
    spec: JobSpec,
    nodes: Sequence[Node],
    times: RunTimes,
    stagings: Stagings,
    work: Work,
    caps: Mapping[str, float],
    *,
    job_id: str,
    order: int,
) -> Job:
    """A job that is not in the database, as the planner would see it. `caps` as `least_caps_w` says."""

    def whole_s(kind: str, size: int) -> float:
        return times.whole(work, spec, kind, size).median_s

    shapes = shapes_of(spec, nodes, whole_s, times.device_w(work), caps=caps)
    stage_s, apart = stagings.planned(staging.wants_of(spec))
    return Job(
        id=job_id,
        priority=spec.priority,
        order=order,
        shapes=shapes,
        wait_w=default_wait_w(shapes, nodes),
        may_slow=spec.may_slow,
        stage_s=stage_s,
        staging=apart,
    )


def verdict_view(verdict: Verdict, *, cycle: int | None) -> VerdictView:
    """A verdict as the API shows it."""
    reasons = [_shown(reason) for reason in verdict.reasons]
    return VerdictView(outcome=_OUTCOMES[verdict.outcome], reasons=reasons, cycle=cycle)


def _shown(reason: PlanReason) -> Reason:
    return Reason(code=reason.code, message=reason.message)


def inventory_of(row: Record, devices: Sequence[Record]) -> Inventory:
    """What the power model needs of a stored node and its devices."""
    return Inventory(
        cpu_threads=row.cpu_threads,
        memory_bytes=row.memory_bytes,
        devices=tuple(
            InstalledDevice(id=device.id, kind=device.kind, limit_w=device.power_limit_w) for device in devices
        ),
        cpu_model=row.cpu_model,
    )


def _nodes(
    tx: Connection,
    rows: Sequence[Record],
    held_rows: Sequence[Record],
    times: RunTimes,
    stagings: Stagings,
    now: datetime,
    quiet: Collection[str],
    pools: Sequence[PowerPool],
) -> tuple[Node, ...]:
    devices: dict[str, list[Record]] = {}
    for device in node_store.list_devices(tx):
        devices.setdefault(device.node_id, []).append(device)
    taken: dict[str, int] = {}
    caps: dict[str, float | None] = {}
    for held in attempt_store.held_devices(tx):
        taken[held.device_id] = taken.get(held.device_id, 0) + int(held.thousandths)
        caps[held.device_id] = held.cap_w
    work: dict[str, list[Record]] = {}
    for member in held_rows:
        work.setdefault(member.node_id, []).append(member)
    boots = power_store.boots_since(tx, now - timedelta(hours=1)) if pools else {}
    nodes: list[Node] = []
    for row in rows:
        held = work.get(row.id, [])
        left_s = (stagings.left(member, now).seconds + times.left(member, now).median_s for member in held)
        busy_s = max(left_s, default=0.0)
        node = _node(row, devices.get(row.id, []), taken, caps, held, busy_s)
        if (pool := pool_of(pools, row.id)) is not None:
            node = _switchable(node, row, pool, boots.get(row.id, 0), now)
        nodes.append(replace(node, open=False) if node.id in quiet else node)
    return tuple(nodes)


def _switchable(node: Node, row: Record, pool: PowerPool, boots: int, now: datetime) -> Node:
    """The node as one that can be switched. One that boots is as good as on, for the plan that it boots for."""
    may_boot = boots < pool.boots_per_hour and (row.hook_retry_at is None or row.hook_retry_at <= now)
    booting = row.power == PowerState.BOOTING.value
    off = row.power == PowerState.OFF.value
    return replace(
        node,
        power=boots_in(node.power, pool.boot_s),
        can_switch=off or row.power_kept != PowerState.ON.value,
        open=node.open or ((booting or (off and may_boot)) and _takes_new(row)),
    )


def _empty_nodes(tx: Connection, rows: Sequence[Record], pools: Sequence[PowerPool]) -> tuple[Node, ...]:
    devices: dict[str, list[Record]] = {}
    for device in node_store.list_devices(tx):
        devices.setdefault(device.node_id, []).append(device)
    nodes = (_node(row, devices.get(row.id, []), {}, {}, [], 0.0) for row in rows)
    return tuple(replace(node, can_switch=pool_of(pools, node.id) is not None) for node in nodes)


def _node(
    row: Record,
    devices: Sequence[Record],
    taken: Mapping[str, int],
    caps: Mapping[str, float | None],
    work: Sequence[Record],
    busy_s: float,
) -> Node:
    return Node(
        id=row.id,
        devices=tuple(
            Device(id=device.id, kind=device.kind, free=_free(device, taken.get(device.id, 0))) for device in devices
        ),
        cpu_millicores=row.millicores,
        # A node that was registered anew with less than its jobs hold has nothing left.
        free_millicores=max(0, row.millicores - sum(member.millicores for member in work)),
        memory_bytes=row.memory_bytes,
        free_memory_bytes=max(0, row.memory_bytes - sum(member.memory_bytes for member in work)),
        power=node_power(inventory_of(row, devices)),
        on=row.power != PowerState.OFF.value,
        open=row.state == NodeState.READY.value and row.power == PowerState.ON.value and _takes_new(row),
        container_fault="" if row.container_runtime else row.container_fault or UNSAID,
        busy_s=busy_s,
        busy_w=sum(
            capped_w(device.kind, active_w(device.kind), caps.get(device.id))
            for device in devices
            if taken.get(device.id)
        ),
        booting=row.power == PowerState.BOOTING.value,
        can_cap=all(device.least_cap_w is not None for device in devices if device.kind != CPU_KIND),
    )


def _takes_new(row: Record) -> bool:
    """Whether nobody has closed the node to new work."""
    return not row.cordoned and row.power_kept != PowerState.OFF.value


def _free(device: Record, taken: int) -> int:
    """Thousandths of the device that a new job may have; none while it is unfit, though it will be again."""
    return 0 if device.unfit_reason is not None else WHOLE_DEVICE - taken


def _job(row: Record, nodes: Sequence[Node], times: RunTimes, stagings: Stagings, caps: Mapping[str, float]) -> Job:
    spec = JobSpec.model_validate(row.spec)
    device_w = times.device_w((row.user_id, row.signature))

    def run_s(kind: str, size: int) -> float:
        return times.next_try(row, spec, kind, size).median_s

    shapes = shapes_of(spec, nodes, run_s, device_w, caps=caps)
    stage_s, apart = stagings.planned(staging.wants_of(spec))
    return Job(
        id=row.id,
        priority=row.priority,
        order=row.seq,
        shapes=shapes,
        wait_w=default_wait_w(shapes, nodes),
        may_slow=spec.may_slow,
        stage_s=stage_s,
        staging=apart,
    )

"""Jobs that run, as the planner sees them, and what moving one would cost."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import Connection

from protocol.jobs import JobSpec
from protocol.states import AttemptState, Desired, EndReason
from scheduler.caps import capped_w
from scheduler.power import default_wait_w
from scheduler.problem import WHOLE_DEVICE, Hold, Job, Node, Running, Shape
from service import run_times, staging
from service.cycle.shapes import shapes_of
from service.db import Record
from service.run_times import RunTimes
from service.store import attempts as attempt_store
from service.store import nodes as node_store

Left = Callable[[str, int], float]

RESTART_S = 60.0
"""How long a job that moves is assumed to hold devices without training: leaving, starting, loading. A guess."""

MOST_MOVES = 4
"""A job that has been moved or resized so often within `MOVES_WITHIN` is not resized again."""

MOVES_WITHIN = timedelta(hours=1)


def read_running(tx: Connection, nodes: Sequence[Node], *, now: datetime) -> tuple[Running, ...]:
    """Every job that holds its nodes, as far as these are there, by order of arrival."""
    where = {device.id: node.id for node in nodes for device in node.devices}
    fit = {device.id for device in node_store.list_devices(tx) if device.unfit_reason is None}
    held: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in attempt_store.held_devices(tx):
        if row.device_id in where:
            held[row.attempt_id, where[row.device_id]].append(row.device_id)
    members: dict[str, list[Record]] = defaultdict(list)
    held_rows = attempt_store.held_work(tx)
    for row in held_rows:
        members[row.attempt_id].append(row)
    times = run_times.read(tx, [(row.user_id, row.signature) for row in held_rows])
    moved = attempt_store.count_ends(tx, EndReason.MOVED, since=now - MOVES_WITHIN)
    stagings = staging.read(tx, [staging.stored_wants(row.spec) for row in held_rows if row.started_at is None])
    kinds = {device.id: device.kind for node in nodes for device in node.devices}
    prices: dict[frozenset[str], float] = {}
    found: list[Running] = []
    for attempt, rows in members.items():
        rows.sort(key=lambda row: row.member)
        spec = JobSpec.model_validate(rows[0].spec)
        work = (rows[0].user_id, rows[0].signature)
        staged_s = max(stagings.left(row, now).seconds for row in rows)
        left_s = times.left_on(rows[0], now)

        def ends_s(kind: str, size: int, left_s: Left = left_s, staged_s: float = staged_s) -> float:
            return staged_s + left_s(kind, size)

        shapes = shapes_of(spec, nodes, ends_s, times.device_w(work), rows[0].nodes)
        accepted = frozenset(shape.kind for shape in shapes)
        if accepted not in prices:
            prices[accepted] = default_wait_w(shapes, nodes)
        holds = tuple(Hold(node=row.node_id, devices=tuple(held[attempt, row.node_id])) for row in rows)
        kind = kinds[holds[0].devices[0]] if holds[0].devices else ""
        index = next((number for number, shape in enumerate(shapes) if shape.kind == kind), None)
        if index is None or any(len(hold.devices) != shapes[index].devices for hold in holds):
            continue  # its node was registered anew with other devices
        if rows[0].cap_w is not None:
            free = shapes[index]
            capped = replace(
                free,
                cap_w=rows[0].cap_w,
                active_w=capped_w(kind, free.active_w, rows[0].cap_w),
                run_s=free.run_s * rows[0].slower,
                slower=rows[0].slower,
            )
            index, shapes = len(shapes), (*shapes, capped)
        allowed = _may_move(rows[0], spec) and fit.issuperset(device for hold in holds for device in hold.devices)
        found.append(
            Running(
                job=Job(
                    id=rows[0].job_id,
                    priority=rows[0].priority,
                    order=rows[0].seq,
                    shapes=shapes,
                    wait_w=prices[accepted],
                ),
                shape=index,
                members=holds,
                move_j=_move_j(rows[0], shapes[index], prices[accepted], now),
                may_move=allowed and rows[0].nodes == 1,
                resizes=_resizes(rows[0], spec, nodes, times, now)
                if allowed and moved.get(rows[0].job_id, 0) < MOST_MOVES
                else (),
            )
        )
    return tuple(sorted(found, key=lambda one: (one.job.order, one.job.id)))


def _may_move(member: Record, spec: JobSpec) -> bool:
    """A job that allows it, runs, and has saved in this attempt: it cannot be moved to and fro without getting on."""
    return (
        spec.may_move
        and member.attempt_state == AttemptState.RUNNING.value
        and member.desired == Desired.RUN.value
        and member.checkpoint_epoch == member.epoch
    )


def _resizes(member: Record, spec: JobSpec, nodes: Sequence[Node], times: RunTimes, now: datetime) -> tuple[Shape, ...]:
    """The shapes of other numbers of nodes, with devices of the same kind, in which a job may go on. Larger ones only
    if runs have told how fast its work is: a guess is not worth a restart. On fewer nodes a guess takes the longest.
    """
    if not spec.devices_per_node or spec.device_share < 1:
        return ()
    left_s, device_w = times.left_on(member, now), times.device_w((member.user_id, member.signature))
    return tuple(
        shape
        for size in spec.sizes
        if size < member.nodes or (size > member.nodes and times.has_seen(member, size))
        for shape in shapes_of(spec, nodes, left_s, device_w, size)
        if shape.kind == member.kind
    )


def _move_j(member: Record, shape: Shape, wait_w: float, now: datetime) -> float:
    """What a restart costs, and the work since the latest checkpoint, in J: its devices draw and stand for nothing."""
    begun = member.started_at or member.granted_at
    saved = member.checkpoint_at if member.checkpoint_epoch == member.epoch else None
    lost_s = max(0.0, (now - max(begun, saved or begun)).total_seconds())
    devices = shape.members * shape.devices * shape.share / WHOLE_DEVICE
    return (RESTART_S + lost_s) * devices * (shape.active_w + wait_w)

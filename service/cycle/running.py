"""Jobs that run, as the planner sees them, and what moving one would cost."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection

from protocol.jobs import JobSpec
from protocol.states import AttemptState, Desired
from scheduler.caps import capped_w
from scheduler.power import default_wait_w
from scheduler.problem import WHOLE_DEVICE, Hold, Job, Node, Running, Shape
from service import run_times
from service.cycle.shapes import shapes_of
from service.db import Record
from service.store import attempts as attempt_store
from service.store import nodes as node_store

RESTART_S = 60.0
"""How long a job that moves is assumed to hold devices without training: leaving, starting, loading. A guess."""


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
    kinds = {device.id: device.kind for node in nodes for device in node.devices}
    prices: dict[frozenset[str], float] = {}
    found: list[Running] = []
    for attempt, rows in members.items():
        rows.sort(key=lambda row: row.member)
        spec = JobSpec.model_validate(rows[0].spec)
        work = (rows[0].user_id, rows[0].signature)
        shapes = shapes_of(spec, nodes, times.left_on(rows[0], now), times.device_w(work), rows[0].nodes)
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
                may_move=_may_move(rows, spec) and fit.issuperset(holds[0].devices),
            )
        )
    return tuple(sorted(found, key=lambda one: (one.job.order, one.job.id)))


def _may_move(members: Sequence[Record], spec: JobSpec) -> bool:
    """A job of one member that allows it, runs, and has saved in this attempt: it cannot be moved to and fro without
    getting on.
    """
    first = members[0]
    return (
        spec.may_move
        and first.nodes == 1
        and first.attempt_state == AttemptState.RUNNING.value
        and first.desired == Desired.RUN.value
        and first.checkpoint_epoch == first.epoch
    )


def _move_j(member: Record, shape: Shape, wait_w: float, now: datetime) -> float:
    """What a restart costs, and the work since the latest checkpoint, in J: its devices draw and stand for nothing."""
    begun = member.started_at or member.granted_at
    saved = member.checkpoint_at if member.checkpoint_epoch == member.epoch else None
    lost_s = max(0.0, (now - max(begun, saved or begun)).total_seconds())
    devices = shape.members * shape.devices * shape.share / WHOLE_DEVICE
    return (RESTART_S + lost_s) * devices * (shape.active_w + wait_w)

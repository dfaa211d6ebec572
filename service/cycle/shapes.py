"""What a job asks for and how long it takes, in the planner's words."""

import math
from collections.abc import Sequence
from datetime import datetime

from protocol.jobs import JobSpec
from scheduler.power import active_w
from scheduler.problem import WHOLE_DEVICE, Isolation, Node, Shape
from service.db import Record

DEFAULT_RUN_S = 3_600.0
"""Run time assumed for a job that states neither an estimate nor a limit."""

LIMIT_SHARE = 0.5
"""Share of its time limit that a job without an estimate is assumed to run. A guess, until run times are learned."""

SHORTEST_RUN_S = 1.0
"""Shorter estimates are not told apart; the smallest of numbers would even be 0 when halved."""

OVERDUE_S = 60.0
"""A job that has run past its estimate is assumed to need this much longer."""


def run_estimate(spec: JobSpec) -> float:
    """How long the job is expected to run, in s: the user's word, else half its limit, else an hour."""
    limit_s = spec.time_limit_s or math.inf
    if spec.expected_run_s is not None:
        return max(SHORTEST_RUN_S, min(spec.expected_run_s, limit_s))
    return max(SHORTEST_RUN_S, limit_s * LIMIT_SHARE) if spec.time_limit_s else DEFAULT_RUN_S


def remaining_s(member: Record, now: datetime) -> float:
    """How much longer a job that holds a node is expected to, in s. `member` has its `spec` and `started_at`."""
    estimate = run_estimate(JobSpec.model_validate(member.spec))
    if member.started_at is None:
        return estimate
    return max(estimate - (now - member.started_at).total_seconds(), OVERDUE_S)


def shapes_of(spec: JobSpec, nodes: Sequence[Node]) -> tuple[Shape, ...]:
    """One shape for each acceptable kind. A job that accepts any kind gets one for each kind there is; one that wants
    no device gets one without a kind."""
    kinds = spec.device_kinds or sorted({device.kind for node in nodes for device in node.devices}) or ["cpu"]
    if not spec.devices_per_node:
        kinds = [""]
    return tuple(
        Shape(
            members=spec.nodes,
            devices=spec.devices_per_node,
            kind=kind,
            millicores=round(spec.cores * 1000),
            memory_bytes=spec.memory_bytes_per_node,
            run_s=run_estimate(spec),
            active_w=active_w(kind) if kind else 0.0,
            in_container=spec.image is not None,
            share=round(spec.device_share * WHOLE_DEVICE),
            isolation=Isolation[spec.device_isolation.upper()],
        )
        for kind in dict.fromkeys(kinds)
    )

"""What is expected to come, learned from the jobs that came: the planner places today's jobs with it in mind."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from protocol.jobs import JobSpec
from scheduler.demand import PERIOD, Outlook
from scheduler.problem import Job, Problem, Shape
from scheduler.runtimes import SHORTEST_RUN_S
from scheduler.validate import has_several_kinds
from service.cycle.shapes import shapes_of
from service.store import jobs as job_store

PAST = 5_000
"""Jobs that are learned from, the latest."""

LEARN_EVERY_S = 600.0

Learn = Callable[[Problem, Sequence[Sequence[int]]], tuple[Outlook, ...]]
"""`scheduler.learning.outlook_of_past`, or whoever asks it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What came: the problem's jobs, each so often in each period, the oldest first."""

    problem: Problem
    periods: tuple[tuple[int, ...], ...]


def read_past(tx: Connection, problem: Problem) -> Past | None:
    """What there is to learn from: nothing if fewer jobs came than a period has, or all took whole devices. Those are
    planned exactly, without an outlook. None either where the planner could not use it.
    """
    if not foresees(problem):
        return None
    specs = job_store.latest_specs(tx, PAST)
    if len(specs) < PERIOD:
        return None
    wanted = [_wanted(JobSpec.model_validate(spec), problem) for spec in specs]
    if not any(shape.shared or not shape.devices for shapes in wanted for shape in shapes):
        return None
    periods = [Counter(wanted[latest : latest + PERIOD]) for latest in range(0, len(wanted), PERIOD)][::-1]
    kinds = list(dict.fromkeys(wanted))
    jobs = tuple(
        Job(id=f"past-{number}", priority=0, order=number, shapes=shapes, wait_w=0.0)
        for number, shapes in enumerate(kinds)
    )
    return Past(
        problem=replace(problem, jobs=jobs),
        periods=tuple(tuple(period[shapes] for shapes in kinds) for period in periods),
    )


def foresees(problem: Problem) -> bool:
    """Whether the planner knows what to do with an outlook here, and with moves for any other end than that nodes go
    off: not under power budgets.
    """
    return not problem.budgets and not any(node.can_switch or has_several_kinds(node) for node in problem.nodes)


def _wanted(spec: JobSpec, problem: Problem) -> tuple[Shape, ...]:
    return shapes_of(spec, problem.nodes, lambda _kind, _nodes: SHORTEST_RUN_S)

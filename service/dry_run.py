"""What would become of jobs if they were submitted now. Nothing is stored, and no solver runs: the greedy planner says
what would start, and the cycle's plans are never worse. Where jobs share devices or need none, it is the simpler
planner of two, and a cycle may choose otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection

from protocol.batch import DryRunItem, DryRunView
from protocol.jobs import JobSpec, VerdictView
from scheduler.budgets import Ceilings
from scheduler.candidates import find_candidates, pools, to_placements
from scheduler.feasibility import survey, why_impossible, why_not_now
from scheduler.first_fit import first_fit
from scheduler.greedy import complete
from scheduler.plan import Later, Outcome, Placement, Verdict
from scheduler.problem import Ahead, Job, MayWait, Problem
from scheduler.reserve import Kept
from scheduler.turns import look_ahead_simply, of_now
from scheduler.validate import packs, validate
from service import run_times, staging, submission, verdicts
from service.auth import Person
from service.cycle.problem import planned_job, read_problem, verdict_view
from service.cycle.shapes import least_caps_w
from service.dependencies import Waits
from service.power_budgets import PowerRules
from service.store import nodes as node_store
from service.tariffs import Tariff, rates_ahead

LAST = 2**62
"""Order of arrival of a job that comes after all that are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """Everything the answer follows from. `problem` holds the queue and, at its end, the jobs that are asked about;
    those that would have to wait for other jobs are left out of it.
    """

    specs: Sequence[JobSpec]
    waits: Sequence[Waits]
    jobs: Sequence[Job]
    problem: Problem
    tariff: Tariff
    now: datetime


def read(
    tx: Connection,
    person: Person,
    specs: Sequence[JobSpec],
    *,
    queues: Sequence[str],
    pue: float,
    overtaken_s: float,
    power: PowerRules,
    tariff: Tariff,
    now: datetime,
) -> DryRun:
    """Check the specs as at submission, and read what they would meet. `tx` must be one snapshot.

    Raises Invalid.
    """
    prefixes = [f"jobs.{index}." for index in range(len(specs))]
    waits = submission.check(tx, person, specs, prefixes=prefixes, queues=queues, lock=False)
    problem, _ = read_problem(tx, pue=pue, overtaken_s=overtaken_s, now=now, power=power, tariff=tariff)
    works = [(person.id, run_times.signature(spec)) for spec in specs]
    times = run_times.read(tx, works)
    stagings = staging.read(tx, [staging.wants_of(spec) for spec in specs])
    caps = least_caps_w(node_store.list_devices(tx))
    asked = [
        planned_job(spec, problem.nodes, times, stagings, work, caps, job_id=f"asked-{index}", order=LAST + index)
        for index, (spec, work) in enumerate(zip(specs, works, strict=True))
    ]
    free = [(spec, job) for spec, job, wait in zip(specs, asked, waits, strict=True) if not wait.open]
    more = [MayWait(job=job.id, until_s=spec.may_wait_s) for spec, job in free if spec.may_wait_s]
    if more and (rates := rates_ahead(tariff, now)):
        before = problem.ahead.waits if problem.ahead is not None else ()
        problem = replace(problem, ahead=Ahead(rates=rates, waits=(*before, *more)))
    problem = replace(problem, jobs=(*problem.jobs, *(job for _, job in free)))
    return DryRun(specs=specs, waits=waits, jobs=asked, problem=problem, tariff=tariff, now=now)


def weigh(run: DryRun) -> DryRunView:
    """Which of the jobs would start now, and why the others would not. Needs no database."""
    validate(run.problem)
    problem, later = run.problem, dict[str, Later]()
    if problem.ahead is not None:
        timetable = look_ahead_simply(problem)
        problem, later = of_now(problem, timetable), {one.job: one for one in timetable.later}
    placements = {placement.job: placement for placement in _placements(problem)}
    ceilings = Ceilings(problem, tuple(placements.values()))
    rooms, kept = survey(problem.nodes), Kept(problem)
    items: list[DryRunItem] = []
    for spec, wait, job in zip(run.specs, run.waits, run.jobs, strict=True):
        placement = placements.get(job.id)
        if placement is not None:
            items.append(_item(spec, Verdict(job=job.id, outcome=Outcome.PLACED), placement))
        elif reasons := why_impossible(job.shapes, rooms.total):
            items.append(_item(spec, Verdict(job=job.id, outcome=Outcome.IMPOSSIBLE, reasons=reasons)))
        elif wait.open:
            items.append(DryRunItem(spec=spec, verdict=VerdictView(outcome="waiting", reasons=[wait.reason])))
        elif job.id in later:
            reason = verdicts.cheaper_later(later[job.id], run.now, run.tariff)
            view = VerdictView(outcome="waiting", reasons=[reason])
            items.append(DryRunItem(spec=spec, verdict=view))
        else:
            reasons = kept.why(job, rooms.free) or ceilings.why(job) or why_not_now(job, rooms, len(placements))
            items.append(_item(spec, Verdict(job=job.id, outcome=Outcome.WAITING, reasons=reasons)))
    return DryRunView(items=items)


def _placements(problem: Problem) -> Sequence[Placement]:
    if packs(problem):
        return first_fit(problem)
    return [
        placement for pool in pools(find_candidates(problem)) for placement in to_placements(pool, complete(pool, {}))
    ]


def _item(spec: JobSpec, verdict: Verdict, placement: Placement | None = None) -> DryRunItem:
    nodes = [member.node for member in placement.members] if placement else []
    return DryRunItem(spec=spec, verdict=verdict_view(verdict, cycle=None), nodes=nodes)

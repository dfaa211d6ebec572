"""The cycle: expire, snapshot, solve, verify, commit, record."""

import contextlib
import logging
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from protocol.jobs import Reason
from protocol.states import NodeState, PowerState
from scheduler import codec
from scheduler.demand import Outlook
from scheduler.plan import Outcome, Placement, Plan, Verdict
from scheduler.problem import Budget, Problem, Reservation, Shape
from scheduler.validate import consolidates, packs
from scheduler.verify import verify
from service import maintenance, nodes, run_times, verdicts
from service.alarms import Alarm
from service.cycle.claims import MOST_AT_ONCE, Allowance, Claim, not_yet
from service.cycle.commit import Overtaken, TermOver, commit_gang, commit_move
from service.cycle.fill import boot_wait_w, read_fill
from service.cycle.hooks import HookProcesses, Hooks
from service.cycle.leadership import RENEW_S, Leadership
from service.cycle.leases import Leases, Silence
from service.cycle.outlook import LEARN_EVERY_S, Learn, foresees, read_past
from service.cycle.problem import Seen, read_problem, standing, verdict_view
from service.cycle.running import read_running
from service.cycle.solver import SolverProcess
from service.cycle.switching import Spare, Switching, may_go, read_spares, to_warm_up
from service.db import snapshot
from service.ids import NewId
from service.settings import Settings
from service.store import alarms as alarm_store
from service.store import attempts as attempt_store
from service.store import cycles as cycle_store
from service.store import jobs as job_store
from service.store import nodes as node_store
from service.tariff_source import TariffSource

log = logging.getLogger(__name__)

HOUSEKEEPING_S = RENEW_S / 2
"""How often the leader renews its term and looks for silent nodes."""

SWEEP_EVERY_S = 600.0
"""How often the leader looks for what is too old."""

GATHER_EVERY_S = 60.0
"""How often the leader looks whether jobs that run had better be together, or larger, while none waits."""

LOOK_AHEAD_EVERY_S = 60.0
"""How often the leader looks whether jobs that are to start later had better start at another time."""

NAMED = 10
"""Nodes that an alarm names."""

LONGEST_STEP_S = 120.0
"""A leader whose step takes longer, far beyond the solver's own limit, hangs: it is not kept in the lead any more."""


class Cycle:
    """One process that plans, or stands by to.

    Args:
        solve: `Problem` and `Budget` to `Plan`.
        now: the time in UTC, for records.
        clock_s: a clock that never goes back and counts while the machine sleeps, in s.
        learn: the outlook after past jobs.
        hooks: runs the commands that switch nodes.

    Raises SettingsError for a tariff that cannot be used.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        holder: str,
        solve: Callable[[Problem, Budget], Plan],
        now: Callable[[], datetime],
        clock_s: Callable[[], float],
        new_id: NewId,
        learn: Learn,
        hooks: Hooks | None = None,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._leadership = Leadership(engine, holder)
        self._leases = Leases(settings.lease_s)
        self._solve = solve
        self._now = now
        self._clock_s = clock_s
        self._new_id = new_id
        self._budget = Budget()
        self._term: int | None = None
        self._led_at = float("-inf")
        self._planned_at = float("-inf")
        self._stepped_at = float("-inf")
        self._silence = Silence(lost=(), doubted=(), quiet=frozenset())
        self._learn = learn
        self._learned_at = float("-inf")
        self._outlook: tuple[Outlook, ...] = ()
        self._fill = 0.0
        self._gathered_at = float("-inf")
        self._allowance = Allowance(settings.moves_per_job)
        self._claims: list[Claim] = []
        self._tariffs = TariffSource(settings)
        self._tariff_fault: str | None = None
        self._later: dict[str, datetime] = {}
        self._ahead_at = float("-inf")
        self._switching = Switching(
            engine,
            settings.power_pools,
            hooks or HookProcesses(clock_s),
            now=now,
            max_attempts=settings.max_attempts,
        )

    def step(self, *, woken: bool) -> None:
        """One turn: lead, expire, and plan if something has changed or jobs have waited for a tick.

        Who was leading a moment ago plans at once: a term that is over is noticed at the commit.
        """
        self._stepped_at = self._clock_s()
        if self._term is None or self._stepped_at - self._led_at >= HOUSEKEEPING_S:
            woken |= self._lead()
            if self._term is None:
                self._switching.stop()
                return
            self._expire()
        try:
            self._switching.tend(self._term)
            if woken or self._clock_s() - self._planned_at >= self._settings.tick_s:
                self._planned_at = self._clock_s()
                self._plan(self._term)
        except TermOver as over:
            log.warning("the plan is dropped: %s", over)
            self._term = None

    @property
    def leads(self) -> bool:
        """Whether this process planned last, as far as it knows."""
        return self._term is not None

    def keep_leading(self) -> None:
        """Renew the lead, if it is ours, in the middle of a step. For another thread than the one that steps."""
        if self._clock_s() - self._stepped_at < LONGEST_STEP_S:
            self._leadership.keep()

    def resign(self) -> None:
        """Stop leading, if we do."""
        self._switching.stop()
        self._leadership.resign()

    def _lead(self) -> bool:
        """Renew the lead or try to take it. True if a new term of ours begins."""
        self._led_at = self._clock_s()
        before, self._term = self._term, self._leadership.lead(self._led_at)
        if self._term is None or self._term == before:
            return False
        log.info("leading with term %d", self._term)
        self._leases = Leases(self._settings.lease_s)
        self._claims, self._allowance = [], Allowance(self._settings.moves_per_job)
        return True

    def _expire(self) -> None:
        """End what ran on nodes that have gone silent, and on nodes that should be empty by now."""
        with snapshot(self._engine) as tx:
            rows = node_store.list_nodes(tx)
            overdue = node_store.overdue_drains(tx, self._now())
        # A node that is switched off falls silent, and is not lost.
        contacts = {
            row.id: row.last_seen_at
            for row in rows
            if row.state == NodeState.READY.value and row.power == PowerState.ON.value
        }
        before, self._silence = self._silence, self._leases.look(contacts, self._clock_s())
        if self._silence.doubted != before.doubted:
            self._doubt(len(contacts))
        for node_id in self._silence.lost:
            with self._engine.begin() as tx:
                lost = nodes.lose(
                    tx,
                    node_id,
                    last_seen_at=contacts[node_id],
                    max_attempts=self._settings.max_attempts,
                    now=self._now(),
                )
            if lost:
                log.warning("node %s is lost: not heard for more than %g s", node_id, self._settings.lease_s)
        for node_id in overdue:
            with self._engine.begin() as tx:
                stopped = maintenance.stop_drained(tx, node_id, now=self._now())
            if stopped:
                log.info("node %s is past its drain deadline: what runs there is stopped and requeued", node_id)

    def _doubt(self, num_ready: int) -> None:
        """Raise or drop the alarm that most nodes are silent at once."""
        silent = self._silence.doubted
        message = (
            f"{len(silent)} of {num_ready} nodes are silent at once, so no lease ends: look at the network and the "
            f"API; for nodes that are down, `ergon node confirm-down NAME` (silent: {', '.join(silent[:NAMED])}"
            f"{', ...' if len(silent) > NAMED else ''})"
        )
        with self._engine.begin() as tx:
            if silent:
                alarm_store.put(tx, Alarm.NODES_SILENT, "", message, now=self._now())
            else:
                alarm_store.drop(tx, Alarm.NODES_SILENT, "")
        if silent:
            log.error("%s", message)

    def _plan(self, term: int) -> None:
        # 1. One consistent read. The transaction is over before the solver starts.
        at, started_s = self._now(), time.perf_counter()
        learns = self._clock_s() - self._learned_at >= LEARN_EVERY_S
        tariff = self._tariffs.current()
        with snapshot(self._engine) as tx:
            self._claims = standing(tx, self._claims, self._clock_s())
            problem, seen = read_problem(
                tx,
                pue=self._settings.pue,
                overtaken_s=self._settings.overtaken_s,
                quiet=self._silence.quiet,
                now=at,
                claims=self._claims,
                power=self._settings.power,
                tariff=tariff,
                before=self._later,
            )
            spares = read_spares(tx, problem, self._settings.power_pools, now=at)
            self._allowance.note(problem.jobs)
            moves = self._settings.moves_per_job > 0 and not self._claims and attempt_store.any_may_move(tx)
            if learns or self._outlook or moves:
                problem = replace(problem, running=read_running(tx, problem.nodes, now=at))
            past = read_past(tx, problem) if learns else None
            self._fill = read_fill(tx, problem, at) if learns else self._fill
        snapshot_s = time.perf_counter() - started_s
        # 2. What a plan of before has made room for starts first.
        self._take_up(seen, term)
        self._watch_tariff()
        if learns:
            self._learned_at = self._clock_s()
            self._outlook = self._learn(past.problem, past.periods) if past else ()
            with self._engine.begin() as tx:
                run_times.learn_kinds(tx)
        problem = self._foreseeing(problem)
        gathers = (problem.moves > 0 and consolidates(problem)) or problem.resizes > 0
        gathers = gathers and self._clock_s() - self._gathered_at >= GATHER_EVERY_S
        if not self._has_work(problem) and not may_go(spares, at) and not gathers:
            self._switching.boot(to_warm_up(problem, (), spares, self._settings.power_pools), term)
            return
        # 3. Say how full nodes are and what a boot is worth, and solve in the child.
        solve_started_s = time.perf_counter()
        problem = replace(problem, fill=self._fill, boot_wait_w=boot_wait_w(problem))
        plan = self._solve(problem, self._budget)
        self._gathered_at = self._clock_s() if problem.moves or problem.resizes else self._gathered_at
        self._ahead_at = self._clock_s()
        solve_s = time.perf_counter() - solve_started_s
        # 4. Never trust the optimiser.
        if violations := verify(problem, plan):
            log.error("the plan breaks the rules and is dropped: %s", "; ".join(map(str, violations)))
            return
        # 5. Switch nodes on, stop what moves, commit the others gang by gang, and close the nodes that are to go off.
        commit_started_s = time.perf_counter()
        late = dict.fromkeys(not_yet(problem, plan), verdicts.ROOM_IS_MADE)
        late |= dict.fromkeys(self._boot(problem, plan, seen, term), verdicts.NODES_BOOT)
        self._move(problem, plan, seen, late, term)
        overtaken = self._commit(problem, plan, seen, late, term)
        self._switch(problem, plan, spares, at, term)
        later = plan.timetable.later if plan.timetable is not None else ()
        self._later = {one.job: at + timedelta(seconds=one.start_s) for one in later}
        # 6. Record everything the plan was made from, and what came of it.
        if not problem.jobs and not plan.moves and not plan.power_steps:
            return
        self._record(
            problem,
            plan,
            seen,
            overtaken,
            late | {one.job: verdicts.cheaper_later(one, at, tariff) for one in later},
            term=term,
            at=at,
            snapshot_s=snapshot_s,
            solve_s=solve_s,
            commit_s=time.perf_counter() - commit_started_s,
        )

    def _foreseeing(self, problem: Problem) -> Problem:
        """The problem with the outlook, moves and resizes there may be, where the planner knows how to use them."""
        outlook = self._outlook if foresees(problem) else ()
        movable = foresees(problem) or (consolidates(problem) and not problem.budgets)
        movable = movable and not self._claims and any(running.may_move for running in problem.running)
        moves = self._allowance.left if movable else 0
        resizable = not self._claims and not problem.budgets and self._settings.moves_per_job > 0
        resizes = MOST_AT_ONCE if resizable and any(running.resizes for running in problem.running) else 0
        running = problem.running if moves or outlook or resizes else ()
        problem = replace(problem, outlook=outlook, moves=moves, resizes=resizes, running=running)
        if problem.reservation is not None and packs(problem):
            problem = replace(problem, reservation=Reservation(job=problem.reservation.job))
        return problem

    def _has_work(self, problem: Problem) -> bool:
        """Whether a job may have to start: not while all are to start later, but for now and then."""
        if self._clock_s() - self._ahead_at >= LOOK_AHEAD_EVERY_S:
            return bool(problem.jobs)
        waits = {wait.job: wait.before_s for wait in problem.ahead.waits} if problem.ahead is not None else {}
        return any((waits.get(job.id) or 0.0) <= 0 for job in problem.jobs)

    def _take_up(self, seen: Seen, term: int) -> None:
        """Start the jobs whose claims have become free."""
        for claim in [claim for claim in self._claims if claim.job in seen.versions]:
            if claim.nodes & seen.asleep:
                continue
            with contextlib.suppress(Overtaken):  # others have not left yet
                if claim.boots:
                    self._claims.remove(claim)  # its nodes are on: if it cannot start now, it is planned anew
                self._grant(claim.placement, claim.shape, seen, term)
                if not claim.boots:
                    self._claims.remove(claim)
                said = verdict_view(Verdict(job=claim.job, outcome=Outcome.PLACED), cycle=None).model_dump(mode="json")
                with self._engine.begin() as tx:
                    job_store.set_verdicts(
                        tx, [job_store.Verdict(job=claim.job, seen=seen.versions[claim.job], placed=True, said=said)]
                    )

    def _watch_tariff(self) -> None:
        """Raise or drop the alarm that the tariff cannot be read."""
        fault, before = self._tariffs.fault, self._tariff_fault
        if fault == before:
            return
        self._tariff_fault = fault
        with self._engine.begin() as tx:
            if fault is None:
                alarm_store.drop(tx, Alarm.TARIFF_UNREADABLE, "")
            else:
                alarm_store.put(tx, Alarm.TARIFF_UNREADABLE, "", f"ERGON_TARIFF: {fault}", now=self._now())

    def _boot(self, problem: Problem, plan: Plan, seen: Seen, term: int) -> set[str]:
        """Have the nodes switched on that the plan starts jobs on; the jobs that wait for nodes to boot."""
        refused = self._switching.boot([step.node for step in plan.power_steps if step.on], term)
        shapes = {job.id: job.shapes for job in problem.jobs}
        late: set[str] = set()
        for placement in plan.placements:
            claim = Claim(
                placement=placement,
                shape=shapes[placement.job][placement.shape],
                epoch=seen.epochs[placement.job],
                since_s=self._clock_s(),
                boots=True,
            )
            if claim.nodes & seen.asleep and not claim.nodes & refused:
                self._claims.append(claim)
                late.add(placement.job)
        return late

    def _switch(self, problem: Problem, plan: Plan, spares: tuple[Spare, ...], at: datetime, term: int) -> None:
        """Have the nodes switched off that the plan does not need and nobody's reserve is, and reserves filled up."""
        used = {member.node for placement in plan.placements for member in placement.members}
        left = [spare for spare in spares if spare.node not in used]
        # Under power budgets the watts of idle nodes may be what the reservation waits for.
        kept = problem.reservation.nodes if problem.reservation and not problem.budgets else ()
        off = ({step.node for step in plan.power_steps if not step.on} & may_go(left, at)).difference(kept)
        self._switching.switch_off(sorted(off), term)
        short = to_warm_up(problem, plan.placements, left, self._settings.power_pools)
        self._switching.boot(short, term)

    def _move(self, problem: Problem, plan: Plan, seen: Seen, late: Mapping[str, Reason], term: int) -> None:
        """Stop the jobs that move, and note where they and those that they make room for go on."""
        since_s = self._clock_s()
        running = {one.job.id: one for one in problem.running}
        for move in plan.moves:
            resizes = move.shape >= len(running[move.job].job.shapes)
            try:
                with self._engine.begin() as tx:
                    epoch = commit_move(tx, move, resizes=resizes, term=term, now=self._now())
            except Overtaken as race:
                log.info("not moved: %s", race)
                continue
            self._allowance.spend(0 if resizes else 1)
            shape = running[move.job].every_shape.shapes[move.shape]
            self._claims.append(Claim(placement=move, shape=shape, epoch=epoch, since_s=since_s))
        jobs = {job.id: job for job in problem.jobs}
        for placement in plan.placements:
            if late.get(placement.job) is verdicts.ROOM_IS_MADE:
                shape, epoch = jobs[placement.job].shapes[placement.shape], seen.epochs[placement.job]
                self._claims.append(Claim(placement=placement, shape=shape, epoch=epoch, since_s=since_s))

    def _commit(self, problem: Problem, plan: Plan, seen: Seen, late: Mapping[str, Reason], term: int) -> set[str]:
        """Commit each gang in a transaction of its own; the jobs whose placement did not hold any more."""
        shapes = {job.id: job.shapes for job in problem.jobs}
        overtaken: set[str] = set()
        for placement in plan.placements:
            if placement.job in late:
                continue
            try:
                self._grant(placement, shapes[placement.job][placement.shape], seen, term)
            except Overtaken as race:
                log.info("not committed: %s", race)
                overtaken.add(placement.job)
        return overtaken

    def _grant(self, placement: Placement, shape: Shape, seen: Seen, term: int) -> None:
        with self._engine.begin() as tx:
            commit_gang(tx, placement, shape, seen, term=term, now=self._now(), new_id=self._new_id)

    def _record(
        self,
        problem: Problem,
        plan: Plan,
        seen: Seen,
        overtaken: set[str],
        reasons: Mapping[str, Reason],
        *,
        term: int,
        at: datetime,
        snapshot_s: float,
        solve_s: float,
        commit_s: float,
    ) -> None:
        placed = {verdict.job for verdict in plan.verdicts if verdict.outcome == Outcome.PLACED}
        with self._engine.begin() as tx:
            number = cycle_store.add_cycle(
                tx,
                term=term,
                at=at,
                pending=len(problem.jobs),
                placed=len(placed),
                committed=len(placed) - len(overtaken | (reasons.keys() & placed)),
                objective_j=plan.objective_j,
                bound_j=plan.bound_j,
                gap=plan.gap,
                method=plan.method,
                status=plan.status,
                snapshot_s=snapshot_s,
                solve_s=solve_s,
                commit_s=commit_s,
                problem=zlib.compress(codec.encode_problem(problem)),
                plan=zlib.compress(codec.encode_plan(plan)),
            )
            said = [
                job_store.Verdict(
                    job=verdict.job,
                    seen=seen.versions[verdict.job],
                    placed=verdict.outcome == Outcome.PLACED and verdict.job not in reasons,
                    said=verdicts.waiting(reasons[verdict.job], cycle=number)
                    if verdict.job in reasons
                    else verdict_view(verdict, cycle=number).model_dump(mode="json"),
                )
                for verdict in plan.verdicts
                if verdict.job not in overtaken
            ]
            job_store.set_verdicts(tx, said)


def run(
    cycle: Cycle,
    solver: SolverProcess,
    wake: threading.Event,
    stopped: threading.Event,
    *,
    sweep: Callable[[], bool],
) -> None:
    """Step whenever woken, and at least often enough to renew the lead, until stopped.

    Args:
        sweep: deletes some of what is too old; True if more is left. Called now and then by whoever leads.
    """
    sweep_s = time.monotonic()
    solver.start()
    keeper = threading.Thread(target=_keep_leading, args=(cycle, stopped), name="lead", daemon=True)
    keeper.start()
    try:
        while not stopped.is_set():
            woken = wake.wait(HOUSEKEEPING_S)
            wake.clear()
            try:
                cycle.step(woken=woken)
                if cycle.leads and time.monotonic() >= sweep_s:
                    sweep_s = time.monotonic() + (HOUSEKEEPING_S if sweep() else SWEEP_EVERY_S)
            except (OperationalError, PoolTimeout) as error:
                log.warning("the database does not answer, trying again: %s", error)
                stopped.wait(0.5)
                wake.set()
        cycle.resign()
    finally:
        solver.stop()


def _keep_leading(cycle: Cycle, stopped: threading.Event) -> None:
    while not stopped.wait(RENEW_S):
        with contextlib.suppress(OperationalError, PoolTimeout):  # `run` sees it too, and says so
            cycle.keep_leading()

"""Any order of everything that can happen, against the real use cases and a real PostgreSQL, with a clock of its own.

Model agents hold attempts, tell of them early, late, twice or never, and are replaced and restarted; leaders change
plans that are still on their way. After each step the invariants are checked. `make state-machine` runs it for long.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, text

from protocol.jobs import JobSpec
from protocol.states import AttemptState, Desired, EndReason, Role
from protocol.sync import Assignment, MemberReport, SyncRequest
from protocol.version import PROTOCOL_VERSION
from scheduler.plan import Placement, Plan
from scheduler.problem import Budget, Problem
from scheduler.solve import solve, solve_greedily
from service import maintenance, submission, sync
from service.auth import Person
from service.cycle.commit import Overtaken, TermOver
from service.cycle.leadership import PATIENCE_S
from service.cycle.loop import Cycle
from service.cycle.problem import Seen
from service.models import metadata
from service.refusals import Refusal, StaleIncarnation
from service.settings import Settings
from tests import invariants
from tests.invariants import Acknowledged, Watch
from tests.service.cluster import Cluster

EXAMPLES = int(os.environ.get("STATE_MACHINE_EXAMPLES", "10"))
STEPS = 40
NODES = ("n1", "n2", "n3")
SMALL = Budget(deterministic_s=0.01)

nodes = st.sampled_from(NODES)
numbers = st.integers(0, 1_000)


@dataclass
class Local:
    """What a machine holds of one attempt. `alive` says that ranks of it run there."""

    epoch: int
    job: str
    state: AttemptState
    waits: bool = False
    reason: EndReason | None = None
    alive: bool = True
    step: int | None = None


@dataclass
class ModelAgent:
    """A machine and the agent on it. What was sent once can arrive again at any time."""

    boot: int = 1
    assignments: list[Assignment] = field(default_factory=list)
    runs: dict[str, Local] = field(default_factory=dict)
    sent: list[SyncRequest] = field(default_factory=list)

    def kill(self, attempt: str, reason: EndReason) -> None:
        run = self.runs[attempt]
        if run.state != AttemptState.ENDED:
            run.state, run.reason, run.alive = AttemptState.ENDED, reason, False


@dataclass(frozen=True)
class LatePlan:
    """A plan that was made and not committed yet."""

    problem: Problem
    seen: Seen
    placement: Placement
    term: int


class Service(RuleBasedStateMachine):
    """One service, three machines and whoever calls."""

    def __init__(self, engine: Engine, config: Settings) -> None:
        super().__init__()
        with engine.begin() as tx:
            tx.execute(text(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY CASCADE"))
        self.cluster = Cluster(engine=engine, settings=config)
        self.agents = {name: ModelAgent() for name in NODES}
        self.acknowledged: list[Acknowledged] = []
        self.late: list[LatePlan] = []
        self.told: dict[str, tuple[int, int]] = {}
        self.watch = Watch()

    @initialize()
    def start(self) -> None:
        self.cluster.person("alice")
        for name in NODES:
            self.cluster.join(name)
        self.restart_service()

    # -- people

    @rule(key=st.integers(0, 8))
    def submit(self, key: int) -> None:
        """The same key always comes with the same job."""
        spec = {"nodes": 1 + key % 3, "devices_per_node": 1 + key % 2, "priority": key % 2, "max_retries": key % 3}
        spec |= {"on_disconnect": "wait"} if key % 4 == 3 else {}
        with self.cluster.engine.begin() as tx:
            view, _ = submission.submit(
                tx,
                self.cluster.person("alice"),
                JobSpec.model_validate({"name": f"request-{key}", "command": ["true"], **spec}),
                key=f"request-{key}",
                queues=("default",),
                now=self.cluster.now,
                new_id=self.cluster.new_id,
            )
        self.acknowledged.append(Acknowledged(verb="submit", job=view.id, key=f"request-{key}"))

    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        if (job := self._job(number)) is not None:
            try:
                self.cluster.cancel(job)
            except Refusal:
                return
            self.acknowledged.append(Acknowledged(verb="cancel", job=job))

    @rule(number=numbers, verb=st.sampled_from(["hold", "release"]))
    def hold_or_release(self, number: int, verb: str) -> None:
        if (job := self._job(number)) is not None:
            try:
                self.cluster.control(job, verb)
            except Refusal:
                return

    @rule(name=nodes, deadline_s=st.sampled_from([0.0, 30.0]))
    def drain(self, name: str, deadline_s: float) -> None:
        with self.cluster.engine.begin() as tx:
            maintenance.drain(tx, self._root, name, deadline_s=deadline_s, now=self.cluster.now)

    @rule(name=nodes)
    def undrain(self, name: str) -> None:
        with self.cluster.engine.begin() as tx:
            maintenance.uncordon(tx, self._root, name)

    # -- the cycle

    @rule()
    def tick(self) -> None:
        self.leader.step(woken=True)

    @rule()
    def tick_with_the_real_planner(self) -> None:
        cycle, self.leader = self.leader, self._cycle("real", solve_in_earnest)
        self.cluster.advance(PATIENCE_S + 1)
        self.leader.step(woken=True)  # it looks, and after a while takes over
        self.cluster.advance(PATIENCE_S + 1)
        self.leader.step(woken=True)
        self.leader.resign()
        self.leader = cycle

    @rule()
    def leader_change(self) -> None:
        """Another process waits until the leader's patience is over, and takes over."""
        self.leader = self._cycle(f"cycle-{self.cluster.new_id('n')}", greedily)
        for _look in range(2):
            self.leader.step(woken=False)
            self.cluster.advance(PATIENCE_S + 1)
        self.leader.step(woken=False)

    @rule()
    def restart_service(self) -> None:
        """Nothing but the database is left."""
        self.cluster.engine.dispose()
        self.leader_change()

    @rule(number=numbers)
    def make_a_plan(self, number: int) -> None:
        """It is kept, and may be committed at any later time."""
        problem, seen = self.cluster.problem()
        placements = solve_greedily(problem).placements
        if placements:
            placement = placements[number % len(placements)]
            self.late.append(LatePlan(problem, seen, placement, self.cluster.lead()))

    @precondition(lambda self: self.late)
    @rule(number=numbers)
    def commit_a_plan_late(self, number: int) -> None:
        plan = self.late.pop(number % len(self.late))
        is_over = plan.term != self.cluster.lead()
        try:
            self.cluster.commit(plan.placement, plan.problem, plan.seen, term=plan.term)
        except TermOver:
            assert is_over
        except Overtaken:
            assert not is_over
        else:
            assert not is_over, "a plan of a term that is over was committed"

    @rule(seconds=st.sampled_from([1.0, 10.0, 100.0]))
    def advance(self, seconds: float) -> None:
        self.cluster.advance(seconds)

    # -- agents

    @rule(name=nodes)
    def poll(self, name: str) -> None:
        """The agent tells nothing and hears everything."""
        self._exchange(name, [], heard=True)

    @rule(name=nodes, number=numbers)
    def start_ranks(self, name: str, number: int) -> None:
        agent = self.agents[name]
        ready = [
            each
            for each in agent.assignments
            if each.attempt not in agent.runs and each.desired == Desired.RUN and each.observed == AttemptState.GRANTED
        ]
        if ready:
            chosen = ready[number % len(ready)]
            agent.runs[chosen.attempt] = Local(
                chosen.epoch, chosen.job, AttemptState.STARTING, waits=chosen.on_disconnect == "wait"
            )

    @rule(name=nodes, number=numbers, end=st.sampled_from([None, EndReason.COMPLETED, EndReason.FAILED]))
    def ranks_go_on(self, name: str, number: int, end: EndReason | None) -> None:
        agent = self.agents[name]
        if agent.runs:
            attempt = sorted(agent.runs)[number % len(agent.runs)]
            if end is not None:
                agent.kill(attempt, end)
            elif agent.runs[attempt].state == AttemptState.STARTING:
                agent.runs[attempt].state = AttemptState.RUNNING

    @rule(name=nodes)
    def obey(self, name: str) -> None:
        """What is to be stopped, or is not listed, is stopped; what is over for the service is forgotten."""
        agent = self.agents[name]
        listed = {each.attempt: each.desired for each in agent.assignments}
        for attempt, run in list(agent.runs.items()):
            if run.state == AttemptState.ENDED and attempt not in listed:
                del agent.runs[attempt]
            elif listed.get(attempt) != Desired.RUN:
                agent.kill(attempt, EndReason.CANCELLED)

    @rule(name=nodes, steps=st.integers(1, 3))
    def save(self, name: str, steps: int) -> None:
        """What runs on the machine completes a checkpoint and tells of it, each machine at a pace of its own."""
        for run in self.agents[name].runs.values():
            if run.alive:
                run.step = (run.step or 0) + steps
        self._exchange(name, self._reports(name), heard=True)

    @rule(name=nodes, heard=st.booleans())
    def report(self, name: str, heard: bool) -> None:
        """Everything the machine holds; the answer may be lost."""
        self._exchange(name, self._reports(name), heard=heard)

    @rule(name=nodes)
    def report_what_is_unknown(self, name: str) -> None:
        """An assignment that may have been started and of which there is no record is made sure to be over."""
        agent = self.agents[name]
        unknown = [
            MemberReport(
                attempt=each.attempt,
                epoch=each.epoch,
                state=AttemptState.ENDED,
                reason=EndReason.UNKNOWN_START,
                clean=True,
            )
            for each in agent.assignments
            if each.attempt not in agent.runs and each.observed != AttemptState.GRANTED
        ]
        self._exchange(name, [*self._reports(name), *unknown], heard=True)

    @rule(name=nodes, number=numbers)
    def an_old_request_arrives(self, name: str, number: int) -> None:
        """Twice, or late, or after newer ones, or from an agent that was replaced."""
        sent = self.agents[name].sent
        if sent:
            request = sent[number % len(sent)]
            is_stale = request.incarnation != self.cluster.incarnations[name]
            before = self._rows()
            try:
                self._take(name, request)
            except StaleIncarnation:
                assert is_stale
                assert self._rows() == before
            else:
                assert not is_stale, "an agent that was replaced was heard"

    @rule(name=nodes, number=numbers)
    def a_report_of_an_older_epoch_arrives(self, name: str, number: int) -> None:
        """It names the newest attempt by an older number, as a mixed-up agent might. It must change nothing."""
        held = self.agents[name].assignments
        if held:
            each = held[number % len(held)]
            wrong = MemberReport(
                attempt=each.attempt,
                epoch=each.epoch + 1,
                state=AttemptState.ENDED,
                reason=EndReason.COMPLETED,
                clean=True,
            )
            before = self._rows()
            self._take(name, self._request(name, [wrong]))
            assert self._rows() == before

    @rule(name=nodes)
    def restart_agent(self, name: str) -> None:
        """It registers anew and adopts what runs."""
        self.cluster.join(name, boot_id=f"boot-{self.agents[name].boot}")
        self.agents[name].assignments = []

    @rule(name=nodes)
    def reboot(self, name: str) -> None:
        agent = self.agents[name]
        agent.boot += 1
        agent.runs = {}
        self.restart_agent(name)

    @rule(name=nodes)
    def expire(self, name: str) -> None:
        """The agent has fenced its ranks, as it must before the lease is over; then the service ends the lease."""
        agent = self.agents[name]
        for attempt, run in agent.runs.items():
            if not run.waits:
                agent.kill(attempt, EndReason.FENCED)
        self.cluster.lose(name)

    @rule(name=nodes)
    def confirm_down(self, name: str) -> None:
        """An administrator has seen that the machine is down, after the service had lost it."""
        self.expire(name)
        self.agents[name].runs = {}
        try:
            with self.cluster.engine.begin() as tx:
                maintenance.confirm_down(
                    tx, self._root, name, max_attempts=self.cluster.settings.max_attempts, now=self.cluster.now
                )
        except Refusal:
            return

    @rule(name=nodes)
    def leave(self, name: str) -> None:
        """An agent that holds nothing says goodbye."""
        if not self.agents[name].runs:
            self._take(name, self._request(name, [], leaving=True))

    # -- what must hold

    @invariant()
    def nothing_is_broken(self) -> None:
        with self.cluster.engine.connect() as tx:
            found = self.watch.look(tx)
            found += invariants.i1_nothing_acknowledged_is_missing(tx, self.acknowledged)
            found += invariants.i2_one_job_for_one_key(tx, self.acknowledged)
        assert found == []

    @invariant()
    def what_runs_holds_its_devices(self) -> None:
        """Devices are never given to others while ranks run on them, whatever the service believes."""
        held = text("SELECT attempt_id, node_id FROM members WHERE released_at IS NULL")
        with self.cluster.engine.connect() as tx:
            holds = {tuple(row) for row in tx.execute(held)}
        alive = {(attempt, name) for name, run, attempt in self._alive()}
        assert alive <= holds

    @invariant()
    def one_epoch_of_a_job_runs(self) -> None:
        epochs: dict[str, set[int]] = {}
        for _name, run, _attempt in self._alive():
            epochs.setdefault(run.job, set()).add(run.epoch)
        assert {job: found for job, found in epochs.items() if len(found) > 1} == {}

    # --

    @property
    def _root(self) -> Person:
        return self.cluster.person("root", Role.ADMIN)

    def _alive(self) -> list[tuple[str, Local, str]]:
        return [
            (name, run, attempt)
            for name, agent in self.agents.items()
            for attempt, run in agent.runs.items()
            if run.alive
        ]

    def _cycle(self, holder: str, solver: Callable[[Problem, Budget], Plan]) -> Cycle:
        return Cycle(
            self.cluster.engine,
            self.cluster.settings,
            holder=holder,
            solve=solver,
            now=lambda: self.cluster.now,
            clock_s=self.cluster.clock_s,
            new_id=self.cluster.new_id,
        )

    def _job(self, number: int) -> str | None:
        jobs = sorted({said.job for said in self.acknowledged})
        return jobs[number % len(jobs)] if jobs else None

    def _reports(self, name: str) -> list[MemberReport]:
        return [
            MemberReport(
                attempt=attempt,
                epoch=run.epoch,
                state=run.state,
                reason=run.reason,
                clean=run.state == AttemptState.ENDED,
                checkpoint=run.step,
            )
            for attempt, run in self.agents[name].runs.items()
        ]

    def _request(self, name: str, reports: list[MemberReport], **more: object) -> SyncRequest:
        incarnation = self.cluster.incarnations[name]
        fields = {"protocol": PROTOCOL_VERSION, "incarnation": incarnation, "members": reports, **more}
        return SyncRequest.model_validate(fields)

    def _exchange(self, name: str, reports: list[MemberReport], *, heard: bool) -> None:
        request = self._request(name, reports)
        self.agents[name].sent.append(request)
        self._take(name, request)
        if heard:
            with self.cluster.engine.begin() as tx:
                answer = sync.answer(tx, name, stop_grace_s=10.0, lease_s=self.cluster.settings.lease_s)
            self.agents[name].assignments = answer.assignments
            marks = {
                each.job: (each.checkpoint.epoch, each.checkpoint.step) if each.checkpoint else (0, 0)
                for each in answer.assignments
            }
            assert list(invariants.i12_what_was_told_is_gone_on_from(marks, self.told)) == []

    def _take(self, name: str, request: SyncRequest) -> None:
        """The service hears it. A checkpoint counts that the job's present attempt tells of, where it is still held."""
        present = text(
            "SELECT t.job_id FROM members m JOIN attempts t ON t.id = m.attempt_id JOIN jobs j ON j.id = t.job_id "
            "WHERE m.node_id = :node AND m.attempt_id = :attempt AND m.released_at IS NULL AND t.epoch = j.epoch"
        )
        with self.cluster.engine.begin() as tx:
            jobs = [tx.execute(present, {"node": name, "attempt": each.attempt}).scalar() for each in request.members]
            sync.take(tx, name, request, max_attempts=self.cluster.settings.max_attempts, now=self.cluster.now)
        for each, job in zip(request.members, jobs, strict=True):
            if job is not None and each.checkpoint is not None:
                self.told[job] = max(self.told.get(job, (0, 0)), (each.epoch, each.checkpoint))

    def _rows(self) -> list[tuple[object, ...]]:
        """Where every job, attempt and member stands."""
        with self.cluster.engine.connect() as tx:
            return [
                tuple(row)
                for query in (
                    "SELECT id, state, version FROM jobs ORDER BY id",
                    "SELECT id, state, desired, reason FROM attempts ORDER BY id",
                    "SELECT attempt_id, member, state, released_at FROM members ORDER BY 1, 2",
                )
                for row in tx.execute(text(query))
            ]


def greedily(problem: Problem, _budget: Budget) -> Plan:
    return solve_greedily(problem)


def solve_in_earnest(problem: Problem, _budget: Budget) -> Plan:
    return solve(problem, SMALL)


@pytest.mark.timeout(0 if EXAMPLES > 10 else 180)
def test_no_order_of_events_breaks_an_invariant(engine: Engine, tmp_path) -> None:
    config = Settings(data_dir=tmp_path, lease_s=60.0, max_attempts=3)
    run_state_machine_as_test(
        lambda: Service(engine, config),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=EXAMPLES == 10,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )

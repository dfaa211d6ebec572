"""Any order of everything that can happen, against the real use cases and a real PostgreSQL, with a clock of its own.

Model agents hold attempts, tell of them early, late, twice or never, and are replaced and restarted; leaders change
plans that are still on their way. After each step the invariants are checked. `make state-machine` runs it for long.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, text

from protocol.jobs import JobSpec
from protocol.states import AttemptState, Desired, EndReason, Role
from protocol.sync import Assignment, MemberReport, SyncRequest
from protocol.version import PROTOCOL_VERSION
from scheduler.learning import outlook_of_past
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
STEPS = 60
NODES = ("n1", "n2", "n3")
SMALL = Budget(deterministic_s=0.01)
SIGHTS = (
    "a checkpoint",
    "a job in its second attempt",
    "a plan committed late",
    "a plan of a term that is over",
    "a plan that was overtaken",
    *(f"an attempt that ended: {reason}" for reason in ("completed", "failed", "cancelled", "node_lost", "drained")),
)
"""What a run must have come to at least once, or it has shown nothing."""

EVENTS = (
    *("submit", "control", "drain_or_open"),
    *("tick", "tick_with_the_real_planner", "another_leads", "make_a_plan", "commit_a_plan_late", "time_passes"),
    *("all_that_waits_starts", "all_that_waits_starts", "all_that_waits_starts", "poll", "start_ranks"),
    *("ranks_go_on", "ranks_go_on", "obey", "report", "report", "save", "a_report_is_overtaken"),
    *("report_what_is_unknown", "an_old_request_arrives", "a_report_of_an_older_epoch_arrives"),
    *("restart_agent", "the_machine_fails"),
)
"""Methods of the machine, as often as they are to come."""
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

    def ready(self) -> list[Assignment]:
        """What the agent may start."""
        return [
            each
            for each in self.assignments
            if each.attempt not in self.runs and each.desired == Desired.RUN and each.observed == AttemptState.GRANTED
        ]

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

    def __init__(self, engine: Engine, config: Settings, reached: Counter[str]) -> None:
        super().__init__()
        with engine.begin() as tx:
            tx.execute(text(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY CASCADE"))
        self.cluster = Cluster(engine=engine, settings=config)
        self.agents = {name: ModelAgent() for name in NODES}
        self.acknowledged: list[Acknowledged] = []
        self.late: list[LatePlan] = []
        self.told: dict[str, tuple[int, int]] = {}
        self.watch = Watch()
        self.reached = reached

    @initialize(keys=st.lists(st.integers(0, 8), min_size=2, max_size=4, unique=True))
    def start(self, keys: list[int]) -> None:
        self.cluster.person("alice")
        for name in NODES:
            self.cluster.join(name)
        self.another_leads("", 0)
        for key in keys:
            self.submit("", key)

    @rule(what=st.sampled_from(EVENTS), name=nodes, number=numbers)
    def happens(self, what: str, name: str, number: int) -> None:
        """One rule with everything that can happen in it: of many rules Hypothesis leaves most out of each example, and
        next to nothing ever ran."""
        getattr(self, what)(name, number)

    # -- people

    def submit(self, _name: str, number: int) -> None:
        """The same key always comes with the same job."""
        key = number % 9
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

    def control(self, _name: str, number: int) -> None:
        verb = ("cancel", "hold", "release", "release")[number % 4]
        jobs = sorted({said.job for said in self.acknowledged})
        job = jobs[number // 4 % len(jobs)]
        try:
            if verb == "cancel":
                self.cluster.cancel(job)
                self.acknowledged.append(Acknowledged(verb="cancel", job=job))
            else:
                self.cluster.control(job, verb)
        except Refusal:
            return

    def drain_or_open(self, name: str, number: int) -> None:
        deadline_s = (0.0, 30.0, None, None)[number % 4]
        with self.cluster.engine.begin() as tx:
            if deadline_s is None:
                maintenance.uncordon(tx, self._root, name)
            else:
                maintenance.drain(tx, self._root, name, deadline_s=deadline_s, now=self.cluster.now)

    # -- the cycle

    def tick(self, _name: str, _number: int) -> None:
        self.leader.step(woken=True)

    def tick_with_the_real_planner(self, _name: str, _number: int) -> None:
        cycle, self.leader = self.leader, self._cycle("real", solve_in_earnest)
        self.cluster.advance(PATIENCE_S + 1)
        self.leader.step(woken=True)  # it looks, and after a while takes over
        self.cluster.advance(PATIENCE_S + 1)
        self.leader.step(woken=True)
        self.leader.resign()
        self.leader = cycle

    def another_leads(self, _name: str, number: int) -> None:
        """Another process waits until the leader's patience is over, and takes over; or nothing but the database is
        left."""
        if number % 2:
            self.cluster.engine.dispose()
        self.leader = self._cycle(f"cycle-{self.cluster.new_id('n')}", greedily)
        for _look in range(2):
            self.leader.step(woken=False)
            self.cluster.advance(PATIENCE_S + 1)
        self.leader.step(woken=False)

    def make_a_plan(self, _name: str, number: int) -> None:
        """It is kept, and may be committed at any later time."""
        problem, seen = self.cluster.problem()
        placements = solve_greedily(problem).placements
        if placements:
            placement = placements[number % len(placements)]
            self.late.append(LatePlan(problem, seen, placement, self.cluster.lead()))

    def commit_a_plan_late(self, _name: str, number: int) -> None:
        if not self.late:
            return
        plan = self.late.pop(number % len(self.late))
        is_over = plan.term != self.cluster.lead()
        try:
            self.cluster.commit(plan.placement, plan.problem, plan.seen, term=plan.term)
        except TermOver:
            assert is_over
            self.reached["a plan of a term that is over"] += 1
        except Overtaken:
            assert not is_over
            self.reached["a plan that was overtaken"] += 1
        else:
            assert not is_over, "a plan of a term that is over was committed"
            self.reached["a plan committed late"] += 1

    def time_passes(self, _name: str, number: int) -> None:
        self.cluster.advance((1.0, 10.0, 100.0)[number % 3])

    # -- agents

    def poll(self, name: str, _number: int) -> None:
        """The agent tells nothing and hears everything."""
        self._exchange(name, [], heard=True)

    def start_ranks(self, name: str, number: int) -> None:
        agent = self.agents[name]
        if ready := agent.ready():
            chosen = ready[number % len(ready)]
            agent.runs[chosen.attempt] = Local(
                chosen.epoch, chosen.job, AttemptState.STARTING, waits=chosen.on_disconnect == "wait"
            )

    def all_that_waits_starts(self, _name: str, _number: int) -> None:
        """A plan, and everybody who follows it: steps that single rules seldom take in this order."""
        self.leader.step(woken=True)
        for name, agent in self.agents.items():
            self.poll(name, 0)
            self.obey(name, 0)
            for _each in agent.assignments:
                self.start_ranks(name, 0)
            for run in agent.runs.values():
                run.state = AttemptState.RUNNING if run.state == AttemptState.STARTING else run.state
            self._exchange(name, self._reports(name), heard=True)

    def ranks_go_on(self, name: str, number: int) -> None:
        agent, end = self.agents[name], (None, EndReason.COMPLETED, EndReason.FAILED)[number % 3]
        if agent.runs:
            attempt = sorted(agent.runs)[number // 3 % len(agent.runs)]
            if end is not None:
                agent.kill(attempt, end)
            elif agent.runs[attempt].state == AttemptState.STARTING:
                agent.runs[attempt].state = AttemptState.RUNNING

    def obey(self, name: str, _number: int) -> None:
        """What is to be stopped, or is not listed, is stopped; what is over for the service is forgotten."""
        agent = self.agents[name]
        listed = {each.attempt: each.desired for each in agent.assignments}
        for attempt, run in list(agent.runs.items()):
            if run.state == AttemptState.ENDED and attempt not in listed:
                del agent.runs[attempt]
            elif listed.get(attempt) != Desired.RUN:
                agent.kill(attempt, EndReason.CANCELLED)

    def save(self, name: str, number: int) -> None:
        """What runs on the machine completes a checkpoint and tells of it, each machine at a pace of its own."""
        for run in self.agents[name].runs.values():
            if run.alive:
                run.step = (run.step or 0) + 1 + number % 3
        self._exchange(name, self._reports(name), heard=True)

    def a_report_is_overtaken(self, name: str, _number: int) -> None:
        """What the machine tells of a checkpoint arrives after what it tells of the next one."""
        late = self._request(name, self._reports(name))
        self.save(name, 0)
        self._take(name, late)

    def report(self, name: str, number: int) -> None:
        """Everything the machine holds; the answer may be lost."""
        self._exchange(name, self._reports(name), heard=number % 2 == 0)

    def report_what_is_unknown(self, name: str, _number: int) -> None:
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

    def the_machine_fails(self, name: str, number: int) -> None:
        (self.reboot, self.expire, self.confirm_down, self.leave)[number % 4](name, number)

    def restart_agent(self, name: str, _number: int) -> None:
        """It registers anew and adopts what runs."""
        self.cluster.join(name, boot_id=f"boot-{self.agents[name].boot}")
        self.agents[name].assignments = []

    def reboot(self, name: str, _number: int) -> None:
        agent = self.agents[name]
        agent.boot += 1
        agent.runs = {}
        self.restart_agent(name, 0)

    def expire(self, name: str, _number: int) -> None:
        """The agent has fenced its ranks, as it must before the lease is over; then the service ends the lease."""
        agent = self.agents[name]
        for attempt, run in agent.runs.items():
            if not run.waits:
                agent.kill(attempt, EndReason.FENCED)
        self.cluster.lose(name)

    def confirm_down(self, name: str, _number: int) -> None:
        """An administrator has seen that the machine is down, after the service had lost it."""
        self.expire(name, 0)
        self.agents[name].runs = {}
        try:
            with self.cluster.engine.begin() as tx:
                maintenance.confirm_down(
                    tx, self._root, name, max_attempts=self.cluster.settings.max_attempts, now=self.cluster.now
                )
        except Refusal:
            return

    def leave(self, name: str, _number: int) -> None:
        """An agent that holds nothing says goodbye."""
        if not self.agents[name].runs:
            self._take(name, self._request(name, [], leaving=True))

    def teardown(self) -> None:
        """Count what this order of events came to."""
        ends = text("SELECT 'an attempt that ended: ' || reason FROM attempts WHERE state = 'ended'")
        again = text("SELECT 'a job in its second attempt' FROM jobs WHERE epoch > 1")
        with self.cluster.engine.connect() as tx:
            self.reached.update(tx.execute(ends).scalars())
            self.reached.update(tx.execute(again).scalars())
        self.reached["a checkpoint"] += len(self.told)

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
            learn=outlook_of_past,
        )

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


@pytest.mark.timeout(0 if EXAMPLES > 10 else 600)
def test_no_order_of_events_breaks_an_invariant(engine: Engine, tmp_path) -> None:
    config = Settings(data_dir=tmp_path, lease_s=60.0, max_attempts=3)
    reached: Counter[str] = Counter()
    run_state_machine_as_test(
        lambda: Service(engine, config, reached),
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
    print("\n".join(f"{count:6} {what}" for what, count in sorted(reached.items())))
    expected = SIGHTS if EXAMPLES >= 100 else SIGHTS[:2]
    assert set(expected) <= set(reached), "the machine did not come to where something can break"

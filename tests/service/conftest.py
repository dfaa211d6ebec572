"""A service without processes: use cases called directly, with a clock and ids of the test's own."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from scheduler.solve import solve
from sqlalchemy import Engine

from protocol.jobs import JobSpec, JobView
from protocol.nodes import DeviceReport, NodeReport
from protocol.states import AttemptState, EndReason, Role
from protocol.sync import MemberReport, RegisterRequest, SyncRequest, SyncResponse
from protocol.version import PROTOCOL_VERSION
from scheduler.plan import Plan
from scheduler.problem import Budget, Problem
from service import auth, jobs, nodes, sync
from service.api.app import create_app
from service.api.deps import Parts
from service.api.hub import Hub
from service.auth import Person
from service.cycle.loop import Cycle
from service.settings import Settings


@dataclass
class Cluster:
    """The service's use cases over a real database, in virtual time."""

    engine: Engine
    settings: Settings
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    plans: list[Plan] = field(default_factory=list)
    people: dict[str, Person] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    incarnations: dict[str, int] = field(default_factory=dict)
    _ids: Iterator[int] = field(default_factory=itertools.count)

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-{next(self._ids):04d}"

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def clock_s(self) -> float:
        return self.now.timestamp()

    def solve(self, problem: Problem, budget: Budget) -> Plan:
        plan = solve(problem, budget)
        self.plans.append(plan)
        return plan

    def person(self, name: str, role: Role = Role.USER) -> Person:
        """The person of this name, created with a token if new."""
        if name not in self.people:
            with self.engine.begin() as tx:
                self.tokens[name] = auth.make_user_token(tx, name=name, role=role, now=self.now, new_id=self.new_id)
                self.people[name] = auth.identify_person(tx, f"Bearer {self.tokens[name]}")
        return self.people[name]

    def node_token(self, name: str) -> str:
        with self.engine.begin() as tx:
            return auth.make_node_token(tx, name=name, now=self.now)

    def join(self, name: str, *, slots: int = 2, boot_id: str = "boot-1", kind: str = "cpu") -> None:
        """Register a node with this many devices."""
        with self.engine.begin() as tx:
            answer = nodes.register(
                tx,
                name,
                RegisterRequest(protocol=PROTOCOL_VERSION, report=node_report(name, slots, boot_id, kind)),
                lease_s=self.settings.lease_s,
                max_attempts=self.settings.max_attempts,
                now=self.now,
            )
        self.incarnations[name] = answer.incarnation

    def submit(self, user: str = "alice", **spec: object) -> str:
        """Submit a job that runs `true` unless the spec says otherwise; its id."""
        person = self.person(user)
        with self.engine.begin() as tx:
            view, _ = jobs.submit(
                tx,
                person,
                JobSpec.model_validate({"command": ["true"], **spec}),
                key=None,
                queues=self.settings.queues,
                now=self.now,
                new_id=self.new_id,
            )
        return view.id

    def job(self, job_id: str) -> JobView:
        with self.engine.begin() as tx:
            return jobs.get(tx, self.person("root", Role.ADMIN), job_id)

    def cancel(self, job_id: str, user: str = "alice") -> JobView:
        with self.engine.begin() as tx:
            return jobs.cancel(tx, self.person(user), job_id, now=self.now)

    def cycle(self, holder: str = "cycle-1") -> Cycle:
        return Cycle(
            self.engine,
            self.settings,
            holder=holder,
            solve=self.solve,
            now=lambda: self.now,
            clock_s=self.clock_s,
            new_id=self.new_id,
        )

    def sync(self, node: str, *members: MemberReport, **more: object) -> SyncResponse:
        """One exchange of the node's agent."""
        request = SyncRequest(
            protocol=PROTOCOL_VERSION, incarnation=self.incarnations[node], members=list(members), **more
        )
        with self.engine.begin() as tx:
            sync.take(tx, node, request, max_attempts=self.settings.max_attempts, now=self.now)
            return sync.answer(tx, node, stop_grace_s=self.settings.stop_grace_s, lease_s=self.settings.lease_s)

    def report(
        self,
        node: str,
        state: AttemptState,
        *,
        reason: EndReason | None = None,
        exit_code: int | None = None,
        clean: bool = False,
    ) -> SyncResponse:
        """Report the same state for everything the node should hold."""
        held = self.sync(node).assignments
        reports = [
            MemberReport(
                attempt=item.attempt, epoch=item.epoch, state=state, reason=reason, exit_code=exit_code, clean=clean
            )
            for item in held
        ]
        return self.sync(node, *reports)

    def finish(self, node: str, reason: EndReason = EndReason.COMPLETED, exit_code: int = 0) -> None:
        """Everything on the node ends, and nothing of it is left."""
        self.report(node, AttemptState.ENDED, reason=reason, exit_code=exit_code, clean=True)


def node_report(name: str, slots: int, boot_id: str = "boot-1", kind: str = "cpu") -> NodeReport:
    return NodeReport(
        address="127.0.0.1",
        boot_id=boot_id,
        cpu_model="Test CPU",
        cpu_cores=slots,
        cpu_threads=slots,
        memory_bytes=slots << 30,
        devices=[DeviceReport(id=f"{kind}:{name}:{slot}", kind=kind, index=slot) for slot in range(slots)],
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, lease_s=60.0)


@pytest.fixture
def cluster(engine: Engine, settings: Settings) -> Cluster:
    return Cluster(engine=engine, settings=settings)


@pytest.fixture
def client(cluster: Cluster) -> Iterator[TestClient]:
    """The API in process, with alice's token."""
    parts = Parts(
        engine=cluster.engine,
        settings=cluster.settings,
        hub=Hub(),
        now=lambda: cluster.now,
        new_id=cluster.new_id,
    )
    cluster.person("alice")
    with TestClient(create_app(parts), headers={"Authorization": f"Bearer {cluster.tokens['alice']}"}) as client:
        yield client

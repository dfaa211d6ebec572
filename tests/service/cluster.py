"""A service without processes: use cases called directly over a real database, with the test's own clock and ids."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, func, select

from protocol.jobs import ArrayView, AttemptView, JobSpec, JobView, Reason, VerdictView
from protocol.nodes import DeviceReport, NodeReport, NodeView
from protocol.states import AttemptState, EndReason, Role
from protocol.sync import MemberReport, RegisterRequest, SyncRequest, SyncResponse
from protocol.version import PROTOCOL_VERSION
from scheduler.plan import MemberPlacement, Placement
from scheduler.problem import WHOLE_DEVICE, Problem
from service import alarms, attempts, auth, control, jobs, maintenance, nodes, submission, sync
from service.auth import Person
from service.cycle.commit import commit_gang
from service.cycle.leadership import Leadership
from service.cycle.problem import Seen, read_problem
from service.db import snapshot
from service.models import metadata
from service.settings import Settings
from service.store import cycles as cycle_store
from service.store import jobs as job_store


@dataclass
class Cluster:
    """The service's use cases in virtual time. Every method is one transaction, as in a route."""

    engine: Engine
    settings: Settings
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
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

    def join(self, name: str, *, slots: int = 2, boot_id: str = "boot-1", kind: str = "cpu", **report: object) -> None:
        """Register a node with this many devices; `report` are further fields of its inventory."""
        inventory = node_report(name, slots, boot_id, kind).model_copy(update=report)
        with self.engine.begin() as tx:
            answer = nodes.register(
                tx,
                name,
                RegisterRequest(protocol=PROTOCOL_VERSION, report=inventory),
                lease_s=self.settings.lease_s,
                max_attempts=self.settings.max_attempts,
                now=self.now,
            )
        self.incarnations[name] = answer.incarnation

    def lose(self, name: str) -> bool:
        """The node's lease is over."""
        with self.engine.begin() as tx:
            last_seen_at = nodes.get(tx, self.person("root", Role.ADMIN), name).last_seen_at
            return nodes.lose(
                tx, name, last_seen_at=last_seen_at, max_attempts=self.settings.max_attempts, now=self.now
            )

    def submit(self, user: str = "alice", **spec: object) -> str:
        """Submit a job that runs `true` unless the spec says otherwise; its id."""
        person = self.person(user)
        with self.engine.begin() as tx:
            view, _ = submission.submit(
                tx,
                person,
                JobSpec.model_validate({"command": ["true"], **spec}),
                key=None,
                queues=self.settings.queues,
                power=self.settings.power,
                now=self.now,
                new_id=self.new_id,
            )
        return view.id

    def job(self, job_id: str) -> JobView:
        root = self.person("root", Role.ADMIN)
        with self.engine.begin() as tx:
            return jobs.get(tx, root, job_id)

    def events(self, job_id: str) -> list[str]:
        """What happened to the job, in words."""
        root = self.person("root", Role.ADMIN)
        with self.engine.begin() as tx:
            return [event.kind for event in jobs.list_events(tx, root, job_id, after=0, limit=100).items]

    def cancel(self, job_id: str, user: str = "alice") -> JobView:
        with self.engine.begin() as tx:
            return jobs.cancel(tx, self.person(user), job_id, now=self.now)

    def control(self, job_id: str, verb: str, user: str = "alice") -> JobView:
        """`hold` or `release`."""
        with self.engine.begin() as tx:
            return {"hold": control.hold, "release": control.release}[verb](tx, self.person(user), job_id, now=self.now)

    def resubmit(self, job_id: str, user: str = "alice") -> str:
        """Run a job that has ended once more; the id of the new one."""
        with self.engine.begin() as tx:
            view, _ = submission.resubmit(
                tx,
                self.person(user),
                job_id,
                key=None,
                queues=self.settings.queues,
                power=self.settings.power,
                now=self.now,
                new_id=self.new_id,
            )
        return view.id

    def cancel_array(self, array_id: str, user: str = "alice") -> ArrayView:
        with self.engine.begin() as tx:
            return control.cancel_array(tx, self.person(user), array_id, now=self.now)

    def array_jobs(self, array_id: str) -> list[JobView]:
        """The jobs of an array by number."""
        root = self.person("root", Role.ADMIN)
        with self.engine.begin() as tx:
            page = jobs.list_page(
                tx, root, user=None, states=(), queue=None, name=None, array_id=array_id, before=None, limit=10_000
            )
        return page.items[::-1]

    def say_waiting(self, job_id: str, seen: Seen, message: str) -> None:
        """Store a cycle's word on a job that it did not place."""
        reason = Reason(code="nodes_busy", message=message)
        said = VerdictView(outcome="waiting", reasons=[reason], cycle=1).model_dump(mode="json")
        verdict = job_store.Verdict(job=job_id, seen=seen.versions[job_id], placed=False, said=said)
        with self.engine.begin() as tx:
            job_store.set_verdicts(tx, [verdict])

    def problem(self) -> tuple[Problem, Seen]:
        with snapshot(self.engine) as tx:
            return read_problem(tx, pue=self.settings.pue, overtaken_s=self.settings.overtaken_s, now=self.now)

    def lead(self) -> int:
        """The term that leads now. The first one is nobody's, so that a cycle takes over at once."""
        with self.engine.begin() as tx:
            row = cycle_store.read_leadership(tx)
        if row is not None:
            return row.term
        first = Leadership(self.engine, "test")
        term = first.lead(0.0)
        assert term is not None
        first.resign()
        return term

    def place(self, job_id: str, *names: str) -> AttemptView:
        """Grant a queued job devices on these nodes, one member each, as a plan would; the attempt.

        A job that backs off is waited for.
        """
        self.now = max(self.now, self.job(job_id).not_before or self.now)
        problem, seen = self.problem()
        self.commit(placement_on(problem, job_id, names), problem, seen)
        return self.job(job_id).attempts[-1]

    def commit_on(self, job_id: str, problem: Problem, seen: Seen, *names: str, shape: int = 0) -> None:
        """Commit a plan made from `problem` that puts the job on these nodes."""
        self.commit(replace(placement_on(problem, job_id, names), shape=shape), problem, seen)

    def commit(self, placement: Placement, problem: Problem, seen: Seen, *, term: int | None = None) -> None:
        """Commit one gang of a plan that was made from `problem`."""
        shape = next(job for job in problem.jobs if job.id == placement.job).shapes[placement.shape]
        term = self.lead() if term is None else term
        with self.engine.begin() as tx:
            commit_gang(tx, placement, shape, seen, term=term, now=self.now, new_id=self.new_id)

    def confirm_down(self, name: str) -> NodeView:
        """An administrator says that the node is off."""
        with self.engine.begin() as tx:
            return maintenance.confirm_down(
                tx, self.person("root", Role.ADMIN), name, max_attempts=self.settings.max_attempts, now=self.now
            )

    def node(self, name: str) -> NodeView:
        with self.engine.begin() as tx:
            return nodes.get(tx, self.person("root", Role.ADMIN), name)

    def uncordon(self, name: str) -> NodeView:
        with self.engine.begin() as tx:
            return maintenance.uncordon(tx, self.person("root", Role.ADMIN), name)

    def alarms(self) -> dict[str, str]:
        """Subject of each alarm by its kind."""
        with self.engine.begin() as tx:
            return {alarm.kind: alarm.subject for alarm in alarms.list_page(tx, after="", limit=100).items}

    def sync(self, node: str, *members: MemberReport, **more: object) -> SyncResponse:
        """One exchange of the node's agent."""
        fields = {"protocol": PROTOCOL_VERSION, "incarnation": self.incarnations[node], "members": list(members)}
        request = SyncRequest.model_validate({**fields, **more})
        with self.engine.begin() as tx:
            sync.take(tx, node, request, max_attempts=self.settings.max_attempts, now=self.now)
            return sync.answer(tx, node, stop_grace_s=self.settings.stop_grace_s, lease_s=self.settings.lease_s)

    def tell(self, node: str, attempt: AttemptView, state: AttemptState, **more: object) -> SyncResponse:
        """The node's agent reports the state of its member."""
        return self.sync(node, member_report(attempt, state, **more))

    def end(
        self, node: str, attempt: AttemptView, reason: EndReason = EndReason.COMPLETED, exit_code: int | None = 0
    ) -> SyncResponse:
        """The node's member has ended, and nothing of it is left."""
        return self.tell(node, attempt, AttemptState.ENDED, reason=reason, exit_code=exit_code, clean=True)

    def end_directly(self, attempt: AttemptView) -> None:
        """All members of the attempt have ended well: each tells in a transaction of its own."""
        for member in attempt.members:
            report = member_report(attempt, AttemptState.ENDED, reason=EndReason.COMPLETED, exit_code=0, clean=True)
            with self.engine.begin() as tx:
                attempts.take_report(tx, member.node, report, max_attempts=self.settings.max_attempts, now=self.now)

    def held_devices(self) -> set[str]:
        """Devices that no new job may have."""
        return {device.id for node in self.problem()[0].nodes for device in node.devices if device.free < WHOLE_DEVICE}

    def row_counts(self) -> dict[str, int]:
        """How many rows each table has."""
        with self.engine.begin() as tx:
            return {
                table.name: tx.execute(select(func.count()).select_from(table)).scalar_one()
                for table in metadata.sorted_tables
            }


def node_report(name: str, slots: int, boot_id: str = "boot-1", kind: str = "cpu") -> NodeReport:
    return NodeReport(
        address="127.0.0.1",
        boot_id=boot_id,
        cpu_model="Test CPU",
        cpu_cores=slots,
        cpu_threads=slots,
        memory_bytes=slots << 30,
        devices=[DeviceReport(id=f"{kind}:{name}:{slot}", kind=kind, index=slot) for slot in range(slots)],
        containment="cgroup-v2",
    )


def member_report(attempt: AttemptView, state: AttemptState, **more: object) -> MemberReport:
    fields = {"attempt": attempt.id, "epoch": attempt.epoch, "state": state}
    return MemberReport.model_validate({**fields, **more})


def placement_on(problem: Problem, job_id: str, names: tuple[str, ...]) -> Placement:
    """The job's first shape of as many members on these nodes, on the first devices of which enough is free there."""
    shapes = next(job for job in problem.jobs if job.id == job_id).shapes
    index = next((number for number, shape in enumerate(shapes) if shape.members == len(names)), 0)
    shape = shapes[index]
    members: list[MemberPlacement] = []
    for name in names:
        node = next(node for node in problem.nodes if node.id == name)
        free = [device.id for device in node.devices if device.free >= shape.share and device.kind == shape.kind]
        members.append(MemberPlacement(node=name, devices=tuple(free[: shape.devices])))
    return Placement(job=job_id, shape=index, members=tuple(members))

"""The service in virtual time: its real use cases and its real planning cycle over a real PostgreSQL.

The database may be away, refuse a commit, or commit and lose the answer. Notifications are those that the code sends.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError

from protocol.sync import RegisterRequest, SyncRequest
from scheduler.learning import outlook_of_past
from scheduler.plan import Plan
from scheduler.problem import Budget, Problem
from scheduler.solve import solve_greedily
from service import nodes, sync
from service.cycle.hooks import Hooks
from service.cycle.leadership import RENEW_S
from service.cycle.loop import HOUSEKEEPING_S, Cycle
from service.refusals import Refusal
from service.settings import Settings
from tests.simulation.machine import CLOCK_DRIFT
from tests.simulation.world import Flag, Process, World
from workers.exchange import Unavailable

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
Reply = Callable[[Any], None]


class Database:
    """An engine that fails now and then, and the notifications that its commits send."""

    def __init__(self, world: World, engine: Engine) -> None:
        self.away = False
        self.flaky = 0.0
        self.listeners: list[Callable[[str], None]] = []
        self.on_grant: Callable[[], None] = lambda: None
        self._granted = False
        self._world = world
        self._engine = engine
        self._pending: list[str] = []
        event.listen(engine, "after_cursor_execute", self._note)

    @contextlib.contextmanager
    def begin(self) -> Iterator[Connection]:
        self._check()
        self._pending = []
        self._granted = False
        fails = ""
        if self._world.chance.random() < self.flaky:
            fails = self._world.chance.choice(["commit refused", "commit unheard"])
        with self._engine.begin() as tx:
            yield tx
            if fails == "commit refused":
                self._world.fault(fails, "database")
                self._lost()
        if self._granted:
            self.on_grant()
        for payload in self._pending:
            for listener in self.listeners:
                self._world.at(0.001, lambda listener=listener, payload=payload: listener(payload))
        if fails:
            self._world.fault(fails, "database")
            self._lost()

    def connect(self) -> Connection:
        self._check()
        return self._engine.connect()

    def _note(self, *arguments: Any) -> None:
        statement, parameters = arguments[2], arguments[3]
        if "pg_notify" in statement:
            self._pending.append(parameters["payload"])
        self._granted |= statement.startswith("INSERT INTO attempts")

    def _check(self) -> None:
        if self.away:
            self._lost()

    @staticmethod
    def _lost() -> None:
        raise OperationalError("", {}, Exception("the connection is lost"))


@dataclass(frozen=True)
class Refusing:
    """An answer that says no."""

    status: int
    detail: str


@dataclass
class Parked:
    """A long poll that nothing has changed for yet."""

    node: str
    incarnation: int
    reply: Reply
    over: bool = False


class Api:
    """The routes of agents and people, without HTTP."""

    def __init__(self, world: World, database: Database, settings: Settings) -> None:
        self.up = True
        self._world = world
        self._database = database
        self._settings = settings
        self._parked: list[Parked] = []
        database.listeners.append(self._heard)

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self._world.now)

    def serve(self, call: Callable[[Connection], object], reply: Reply) -> None:
        """One request in one transaction."""
        if not self.up:
            reply(Unavailable(message="connection refused"))
            return
        try:
            with self._database.begin() as tx:
                answer = call(tx)
        except Refusal as refusal:
            reply(Refusing(refusal.status, refusal.detail))
        except OperationalError:
            reply(Unavailable(message="503"))
        else:
            reply(answer)

    def register(self, node: str, body: str, reply: Reply) -> None:
        request = RegisterRequest.model_validate_json(body)
        lease_s, most = self._settings.lease_s, self._settings.max_attempts
        self.serve(
            lambda tx: nodes.register(tx, node, request, lease_s=lease_s, max_attempts=most, now=self.now()), reply
        )

    def sync(self, node: str, body: str, reply: Reply) -> None:
        request = SyncRequest.model_validate_json(body)

        def take(tx: Connection) -> object:
            sync.take(tx, node, request, max_attempts=self._settings.max_attempts, now=self.now())
            return self._answer(tx, node)

        def park_or_reply(answer: Any) -> None:
            if request.wait_s > 0 and getattr(answer, "version", None) == request.version:
                parked = Parked(node, request.incarnation, reply)
                self._parked.append(parked)
                self._world.at(request.wait_s, lambda: self._look(parked))
            else:
                reply(answer)

        self.serve(take, park_or_reply)

    def restart(self, down_s: float) -> None:
        """Every request that waits is cut off."""
        self.up = False
        for parked in self._parked:
            parked.over = True
            parked.reply(Unavailable(message="connection closed"))
        self._parked = []
        self._world.at(down_s, lambda: setattr(self, "up", True))

    def _answer(self, tx: Connection, node: str) -> object:
        return sync.answer(tx, node, stop_grace_s=self._settings.stop_grace_s, lease_s=self._settings.lease_s)

    def _heard(self, payload: str) -> None:
        for parked in [each for each in self._parked if payload == f"node:{each.node}"]:
            self._look(parked)

    def _look(self, parked: Parked) -> None:
        if not parked.over:
            parked.over = True
            self._parked = [each for each in self._parked if each is not parked]

            def look(tx: Connection) -> object:
                sync.check_latest(tx, parked.node, parked.incarnation)
                return self._answer(tx, parked.node)

            self.serve(look, parked.reply)


class Planner:
    """One cycle process: a thread that steps and one that keeps the lead, as `service.cycle.loop.run` has them."""

    def __init__(
        self,
        world: World,
        database: Database,
        settings: Settings,
        new_id: Callable[[str], str],
        number: int,
        switches: Callable[[], Hooks],
    ):
        self.name = f"cycle-{number}"
        self.freeze_next_solve_s = 0.0
        self._world = world
        self._database = database
        self._settings = settings
        self._new_id = new_id
        self._switches = switches
        self._rate = 1.0 + world.chance.uniform(-CLOCK_DRIFT, CLOCK_DRIFT)
        self._wake = Flag(world)
        self.processes: list[Process] = []
        database.listeners.append(lambda payload: self._wake.set() if payload == "cycle" else None)
        self.start()

    def start(self) -> None:
        self._cycle = Cycle(
            self._database,  # pyright: ignore[reportArgumentType]
            self._settings,
            holder=self.name,
            solve=self._solve,
            now=lambda: EPOCH + timedelta(seconds=self._world.now),
            clock_s=lambda: self._world.now * self._rate,
            new_id=self._new_id,
            learn=outlook_of_past,
            hooks=self._switches(),
        )
        self.processes = [self._world.spawn(self.name, self._step), self._world.spawn(self.name, self._keep)]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()

    def freeze(self, seconds: float) -> None:
        for process in self.processes:
            process.freeze(seconds)

    def _step(self) -> None:
        while True:
            woken = self._wake.wait(HOUSEKEEPING_S)
            self._wake.clear()
            try:
                self._cycle.step(woken=woken)
            except OperationalError:
                self._world.pause(0.5)
                self._wake.set()

    def _keep(self) -> None:
        while True:
            self._world.pause(RENEW_S)
            with contextlib.suppress(OperationalError):
                self._cycle.keep_leading()

    def _solve(self, problem: Problem, _budget: Budget) -> Plan:
        """The greedy plan, after a while in which the world goes on. A freeze hits the whole process."""
        plan = solve_greedily(problem)
        seconds = self._world.chance.uniform(0.01, 1.0)
        if self.freeze_next_solve_s:
            self._world.fault("leader frozen while it solves", self.name, f"{self.freeze_next_solve_s:.0f} s")
            self.freeze(self.freeze_next_solve_s)
            self.freeze_next_solve_s = 0.0
        self._world.pause(seconds)
        return plan

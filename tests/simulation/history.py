"""One seed, one history: a cluster with people and faults, then peace, then judgement."""

import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text

from protocol.jobs import JobSpec, JobView
from protocol.states import Role
from service import auth, control, jobs, maintenance, submission
from service.auth import Person
from service.settings import Settings
from service.store import cycles as cycle_store
from tests import invariants
from tests.invariants import Acknowledged, Execution, Watch
from tests.simulation.databases import fresh
from tests.simulation.faults import Nemesis
from tests.simulation.node import Node
from tests.simulation.service import Api, Database, Planner
from tests.simulation.switches import POOL, Commands, Switchboard
from tests.simulation.world import World
from workers.exchange import Unavailable

STORM_S = 40.0
"""How long things break."""
PEACE_S = 400.0
"""In which everything has to come to its end afterwards: a back-off, an unkillable process, and the work itself."""
LOOK_EVERY_S = 4.0
SLOTS = (2, 2, 3, 2)
SWITCHED_EVERY, SWITCHED = 10, 8
"""Of so many seeds in a row the one of this number has machines that are switched off and on."""


@dataclass(frozen=True)
class Outcome:
    """What came of one seed."""

    seed: int
    trace: list[str]
    trace_hash: str
    faults: Counter[str]
    violations: list[str]
    counts: Counter[str]


class People:
    """A user who submits, holds and cancels, and an administrator who empties nodes. Both try again until answered."""

    def __init__(
        self, world: World, api: Api, user: Person, admin: Person, nodes: list[Node], new_id: Callable[[str], str]
    ):
        self.acknowledged: list[Acknowledged] = []
        self._world = world
        self._api = api
        self._user = user
        self._admin = admin
        self._nodes = nodes
        self._new_id = new_id
        self._asked = 0
        self.over = False

    def live(self) -> None:
        chance = self._world.chance
        verbs = [self.submit] * 5 + [self.cancel, self.cancel, self.hold, self.drain]
        while not self.over:
            chance.choice(verbs)()
            self._world.pause(chance.expovariate(1 / 2.5))
        while True:  # nodes that were closed because nothing would start there are mended
            for node in self._nodes:
                self._ask(lambda tx, name=node.name: maintenance.uncordon(tx, self._admin, name))
            self._world.pause(15.0)

    def submit(self) -> None:
        chance = self._world.chance
        self._asked += 1
        key = f"request-{self._asked}"
        code = chance.choice([0, 0, 0, 1])
        spec = JobSpec(
            name=key,
            command=["train"],
            env={
                "SIM_RUN_S": str(round(chance.choice([0.3, 3.0, 15.0]) * chance.uniform(0.5, 1.5), 2)),
                "SIM_EXIT": str(code),
            },
            nodes=chance.choice([1, 1, 2, 3]),
            devices_per_node=chance.choice([1, 1, 2]),
            priority=chance.choice([0, 0, 1]),
            max_retries=chance.choice([0, 1, 2]),
            on_disconnect=chance.choice(["fence", "fence", "fence", "wait"]),
        )
        for _copy in range(chance.choice([1, 1, 2])):  # who is in doubt sends it again
            view = self._ask(
                lambda tx: submission.submit(
                    tx, self._user, spec, key=key, queues=("default",), now=self._api.now(), new_id=self._new_id
                )[0]
            )
            self._note("submit", view, key)

    def cancel(self) -> None:
        if (job := self._some_job()) is not None:
            self._note("cancel", self._ask(lambda tx: jobs.cancel(tx, self._user, job, now=self._api.now())))

    def hold(self) -> None:
        if (job := self._some_job()) is not None:
            self._ask(lambda tx: control.hold(tx, self._user, job, now=self._api.now()))
            self._world.pause(self._world.chance.uniform(0.0, 5.0))
            self._ask(lambda tx: control.release(tx, self._user, job, now=self._api.now()))

    def drain(self) -> None:
        chance = self._world.chance
        name, deadline_s = chance.choice(self._nodes).name, chance.choice([0.0, 5.0])
        self._ask(lambda tx: maintenance.drain(tx, self._admin, name, deadline_s=deadline_s, now=self._api.now()))
        self._world.pause(chance.uniform(1.0, 10.0))
        self._ask(lambda tx: maintenance.uncordon(tx, self._admin, name))

    def _some_job(self) -> str | None:
        known = [said.job for said in self.acknowledged if said.verb == "submit"][-8:]
        return self._world.chance.choice(known) if known else None

    def _ask(self, call: Callable[[Connection], Any]) -> Any:
        """Until there is an answer. Half of the answers in bad times are lost, and the request is sent again."""
        while True:
            heard: list[Any] = []
            self._api.serve(call, heard.append)
            if isinstance(heard[0], Unavailable):
                self._world.pause(self._world.chance.uniform(0.2, 1.0))
            else:
                return heard[0]

    def _note(self, verb: str, answer: object, key: str | None = None) -> None:
        if isinstance(answer, JobView):
            self._world.say("people", f"{verb} {answer.id} is acknowledged: {answer.state}")
            self.acknowledged.append(Acknowledged(verb=verb, job=answer.id, key=key))


def live(work: tuple[str, int]) -> Outcome:
    """One seed on the PostgreSQL at an address, in a database of its own."""
    url, seed = work
    with fresh(url) as engine:
        return simulate(seed, engine)


def simulate(seed: int, engine: Engine) -> Outcome:
    """Live through one history in an empty database."""
    root = Path(tempfile.mkdtemp(prefix="ergon-sim-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    world = World(seed)
    violations: list[str] = []
    counts: Counter[str] = Counter()
    try:
        counts = _live_through(world, engine, root, violations, switched=seed % SWITCHED_EVERY == SWITCHED)
    except Exception:  # whatever is raised in there, the seed is to be told
        violations.append(traceback.format_exc())
    finally:
        shutil.rmtree(root)
    for found in violations:
        world.say("VIOLATION", found)
    return Outcome(
        seed=seed,
        trace=world.trace,
        trace_hash=world.trace_hash,
        faults=world.faults,
        violations=violations,
        counts=counts,
    )


def _live_through(world: World, engine: Engine, root: Path, violations: list[str], *, switched: bool) -> Counter[str]:
    chance = world.chance
    number = iter(range(10**9))
    settings = Settings(
        data_dir=root,
        lease_s=chance.choice([8.0, 12.0, 20.0]),
        max_attempts=20,
        stop_grace_s=3.0,
        tick_s=2.0,
        power_pools=(POOL,) if switched else (),
    )

    def new_id(prefix: str) -> str:
        return f"{prefix}-{next(number):04d}"

    watch = Watch()

    def look() -> None:
        with engine.connect() as tx:
            violations.extend(f"{world.now:.3f} {found}" for found in watch.look(tx))

    database = Database(world, engine)
    database.on_grant = look
    api = Api(world, database, settings)
    with engine.begin() as tx:
        tokens = [
            auth.make_user_token(tx, name=name, role=role, now=api.now(), new_id=new_id)
            for name, role in (("ann", Role.USER), ("root", Role.ADMIN))
        ]
        user, admin = (auth.identify_person(tx, f"Bearer {token}") for token in tokens)
    switchboard = Switchboard(world, api)
    planners = [Planner(world, database, settings, new_id, number, lambda: Commands(switchboard)) for number in (1, 2)]
    nodes = [Node(world, f"n{index}", slots, root, api) for index, slots in enumerate(SLOTS[: chance.randint(3, 4)], 1)]
    switchboard.nodes = {node.name: node for node in nodes}
    people = People(world, api, user, admin, nodes, new_id)
    for _person in range(2):
        world.spawn("people", people.live)
    nemesis = Nemesis(world, nodes, api, database, planners, settings.lease_s)
    world.at(3.0, nemesis.start)

    while world.now < STORM_S:
        world.run(world.now + LOOK_EVERY_S)
        look()
    nemesis.stop()
    switchboard.bad_times = False
    people.over = True
    while world.now < STORM_S + PEACE_S and not violations:
        world.run(world.now + LOOK_EVERY_S)
        look()
        if world.now > STORM_S + 10.0 and not _unfinished(engine):
            break
    executions = [execution for node in nodes for execution in node.machine.executions]
    violations += [found for node in nodes for found in node.machine.violations]
    violations += _judge(engine, world, people.acknowledged, executions)
    return _count(engine, executions, people.acknowledged)


def _unfinished(engine: Engine) -> list[str]:
    with engine.connect() as tx:
        return [found for check in invariants.LIVENESS for found in check(tx)]


def _judge(engine: Engine, world: World, acknowledged: list[Acknowledged], executions: list[Execution]) -> list[str]:
    """Everything that is not judged while it happens."""
    found = _unfinished(engine)
    with engine.connect() as tx:
        found += invariants.i1_nothing_acknowledged_is_missing(tx, acknowledged)
        found += invariants.i2_one_job_for_one_key(tx, acknowledged)
        before = cycle_store.read_leadership(tx)
    world.run(world.now + 20.0)
    with engine.connect() as tx:
        after = cycle_store.read_leadership(tx)
    found += invariants.v3_somebody_leads(before._asdict() if before else {}, after._asdict() if after else {})
    found += invariants.i5_epochs_do_not_overlap(executions)
    found += invariants.i6_a_rank_starts_once_in_an_epoch(executions)
    return found


def _count(engine: Engine, executions: list[Execution], acknowledged: list[Acknowledged]) -> Counter[str]:
    """What happened, for the summary of many seeds."""
    counts: Counter[str] = Counter(ranks=len(executions), acknowledged=len(acknowledged))
    with engine.connect() as tx:
        for name, query in (
            ("jobs", "SELECT count(*) FROM jobs"),
            ("attempts", "SELECT count(*) FROM attempts"),
            ("boots", "SELECT count(*) FROM power_spells WHERE state = 'booting'"),
            ("terms", "SELECT coalesce(max(term), 0) FROM leadership"),
        ):
            counts[name] = tx.execute(text(query)).scalar_one()
        for reason, number in tx.execute(text("SELECT reason, count(*) FROM attempts GROUP BY reason ORDER BY reason")):
            counts[f"attempts {reason}"] = number
    return counts

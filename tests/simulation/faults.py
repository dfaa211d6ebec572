"""What goes wrong, and when: drawn from the seed. Everything that is broken is mended at the end."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.simulation.node import Node
from tests.simulation.service import Api, Database, Planner
from tests.simulation.world import World

MOST_DOWN_S = 4.0
"""How long an agent stays away after a crash."""


@dataclass
class Nemesis:
    """Breaks one thing after another."""

    world: World
    nodes: list[Node]
    api: Api
    database: Database
    planners: list[Planner]
    lease_s: float
    stopped: bool = False
    _kinds: list[Callable[[], None]] = field(default_factory=list)

    def start(self) -> None:
        """Each history has some kinds of faults, more and less often."""
        chance = self.world.chance
        kinds = [
            self.partition,
            self.one_way,
            self.bad_network,
            self.crash_agent,
            self.freeze_agent,
            self.reboot,
            self.second_agent,
            self.kill_supervisor,
            self.fill_disk,
            self.restart_api,
            self.database_away,
            self.flaky_database,
            self.freeze_leader,
            self.kill_planner,
        ]
        self._kinds = chance.sample(kinds, k=chance.randint(3, 8))
        self._pause_s = chance.choice([1.5, 4.0, 8.0])
        self._next()

    def stop(self) -> None:
        """Nothing breaks any more; what is broken is mended."""
        self.stopped = True
        for node in self.nodes:
            node.end_second()
            node.network.heal()
            node.machine.disk_full = False
        self.database.away = False
        self.database.flaky = 0.0
        self.world.say("nemesis", "all is mended")

    def _next(self) -> None:
        if not self.stopped:
            self.world.chance.choice(self._kinds)()
            self.world.at(self.world.chance.expovariate(1 / self._pause_s), self._next)

    def _node(self) -> Node:
        return self.world.chance.choice(self.nodes)

    def _later(self, delay_s: float, mend: Callable[[], None]) -> None:
        self.world.at(delay_s, mend)

    def partition(self) -> None:
        """Sometimes of several nodes, one after another."""
        chance = self.world.chance
        for node in chance.sample(self.nodes, k=chance.randint(1, len(self.nodes))):
            seconds = chance.uniform(0.5, 3.0) * self.lease_s * chance.choice([0.3, 1.0])
            self.world.fault("partition", node.name, f"{seconds:.1f} s")
            node.network.there = node.network.back = False
            self._later(seconds, node.network.heal)

    def one_way(self) -> None:
        """Requests arrive and answers do not: the service hears a node that does not hear it."""
        node, seconds = self._node(), self.world.chance.uniform(0.5, 2.0) * self.lease_s
        self.world.fault("answers blocked", node.name, f"{seconds:.1f} s")
        node.network.back = False
        self._later(seconds, node.network.heal)

    def bad_network(self) -> None:
        chance, node = self.world.chance, self._node()
        self.world.fault("bad network", node.name)
        node.network.loss, node.network.doubles = chance.uniform(0.0, 0.4), chance.uniform(0.0, 0.3)
        node.network.slowest_s = chance.choice([0.1, 2.0, 12.0])
        self._later(chance.uniform(5.0, 20.0), node.network.heal)

    def crash_agent(self) -> None:
        node = self._node()
        self.world.fault("agent killed", node.name)
        node.crash_agents()
        node.restart_later(self.world.chance.uniform(0.1, MOST_DOWN_S), node.folder)

    def freeze_agent(self) -> None:
        """Not where a supervisor was just killed: nobody would watch over its ranks then."""
        node, seconds = self._node(), self.world.chance.uniform(0.2, 2.0) * self.lease_s
        if any(not group.supervised for group in node.machine.groups.values()):
            return
        self.world.fault("agent frozen", node.name, f"{seconds:.1f} s")
        node.freeze_agents(seconds)

    def reboot(self) -> None:
        node = self._node()
        self.world.fault("reboot", node.name)
        node.reboot()
        node.restart_later(self.world.chance.uniform(1.0, 8.0), node.folder)

    def second_agent(self) -> None:
        node = self._node()
        if node.second is None and self.world.now > node.healthy_since:
            self.world.fault("second agent", node.name)
            node.start_second()
            self._later(self.world.chance.uniform(3.0, 15.0), node.end_second)

    def kill_supervisor(self) -> None:
        """Only where an agent is well: whoever kills both kills what watches over the ranks."""
        node = self._node()
        if self.world.now - node.healthy_since > 1.0 and node.machine.groups and not node.machine.disk_full:
            attempt = self.world.chance.choice(list(node.machine.groups))
            self.world.fault("supervisor killed", node.name, attempt)
            node.machine.kill_supervisor(attempt)

    def fill_disk(self) -> None:
        node = self._node()
        self.world.fault("disk full", node.name)
        node.machine.disk_full = True
        self._later(self.world.chance.uniform(2.0, 15.0), lambda: setattr(node.machine, "disk_full", False))

    def restart_api(self) -> None:
        self.world.fault("API restarted", "api")
        self.api.restart(self.world.chance.uniform(0.2, 10.0))

    def database_away(self) -> None:
        self.world.fault("database away", "database")
        self.database.away = True
        self._later(self.world.chance.uniform(0.2, 12.0), lambda: setattr(self.database, "away", False))

    def flaky_database(self) -> None:
        self.database.flaky = self.world.chance.uniform(0.01, 0.2)
        self._later(self.world.chance.uniform(3.0, 10.0), lambda: setattr(self.database, "flaky", 0.0))

    def freeze_leader(self) -> None:
        """At its next solve, for longer than the others are patient."""
        self.world.chance.choice(self.planners).freeze_next_solve_s = self.world.chance.uniform(5.0, 25.0)

    def kill_planner(self) -> None:
        planner = self.world.chance.choice(self.planners)
        self.world.fault("cycle killed", planner.name)
        planner.kill()
        self._later(self.world.chance.uniform(0.5, 5.0), planner.start)

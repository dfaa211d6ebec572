"""One node: a simulated machine, the network between it and the service, and the real agent on it."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from protocol.nodes import NodeReport
from protocol.sync import RegisterRequest, RegisterResponse, SyncRequest, SyncResponse
from protocol.version import PROTOCOL_VERSION
from tests.simulation.machine import Folder, Machine
from tests.simulation.service import Api, Refusing
from tests.simulation.world import Flag, Process, Queue, World
from workers.agent import Agent, Settings
from workers.cache import Shelf
from workers.exchange import (
    CALL_TIMEOUT_S,
    EXIT_REPLACED,
    FORGOTTEN,
    REFUSALS,
    Doorbell,
    Forgotten,
    Refused,
    Unavailable,
)
from workers.outputs import Outputs
from workers.transfer import Transfer

Answer = TypeVar("Answer", RegisterResponse, SyncResponse)
RESTART_S = 2.0
"""How soon whatever watches over an agent starts it again, as the systemd unit does."""


@dataclass
class Network:
    """Both ways between one node and the service. A refused connection is heard at once, a lost packet by its time
    limit."""

    there: bool = True
    back: bool = True
    loss: float = 0.0
    doubles: float = 0.0
    slowest_s: float = 0.02

    def heal(self) -> None:
        self.there = self.back = True
        self.loss = self.doubles = 0.0
        self.slowest_s = 0.02


class Exchange:
    """As `workers.exchange.Exchange`, over a simulated network. A request may arrive twice, late, or not at all."""

    def __init__(self, world: World, machine: Machine, network: Network, api: Api) -> None:
        self._world = world
        self._machine = machine
        self._network = network
        self._api = api

    def register(self, report: NodeReport) -> RegisterResponse | Unavailable:
        body = RegisterRequest(protocol=PROTOCOL_VERSION, report=report).model_dump_json()
        return self._call(self._api.register, body, RegisterResponse, CALL_TIMEOUT_S)

    def sync(self, request: SyncRequest) -> SyncResponse | Unavailable:
        return self._call(
            self._api.sync,
            request.model_dump_json(exclude_defaults=True),
            SyncResponse,
            CALL_TIMEOUT_S + request.wait_s,
        )

    def _call(
        self, route: Callable[..., None], body: str, answer: type[Answer], timeout_s: float
    ) -> Answer | Unavailable:
        said = self._world.park(
            timeout_s / self._machine.rate,
            lambda wake: self._send(route, body, lambda value: self._send_back(wake, value)),
        )
        if said is None:
            return Unavailable(message="timed out")
        if isinstance(said, Refusing) and said.status == FORGOTTEN:
            raise Forgotten(EXIT_REPLACED, said.detail)
        if isinstance(said, Refusing) and said.status not in REFUSALS:
            return Unavailable(message=said.detail)
        if isinstance(said, Refusing):
            exit_code, meaning = REFUSALS[said.status]
            raise Refused(exit_code, f"{meaning}: {said.detail}")
        return said if isinstance(said, Unavailable) else answer.model_validate_json(said.model_dump_json())

    def _send(self, route: Callable[..., None], body: str, reply: Callable[[Any], None]) -> None:
        chance, network = self._world.chance, self._network
        copies = 2 if chance.random() < network.doubles else 1
        if copies == 2:
            self._world.fault("request doubled", self._machine.name)
        for _copy in range(copies):
            if not network.there:
                continue
            if chance.random() < network.loss:
                self._world.fault("request lost", self._machine.name)
                continue
            self._world.at(chance.uniform(0.001, network.slowest_s), lambda: route(self._machine.name, body, reply))

    def _send_back(self, wake: Callable[[Any], None], value: object) -> None:
        chance, network = self._world.chance, self._network
        if not network.back:
            return
        if chance.random() < network.loss:
            self._world.fault("answer lost", self._machine.name)
            return
        self._world.at(chance.uniform(0.001, network.slowest_s), lambda: wake(value))


class VirtualDoorbell(Doorbell):
    """The real one, whose thread is a process of the simulation."""

    def __init__(self, world: World, exchange: Exchange, ring: Callable[[], None], name: str) -> None:
        super().__init__(exchange, ring, world.chance)  # pyright: ignore[reportArgumentType]
        self._versions = Queue(world)  # pyright: ignore[reportAttributeAccessIssue]
        self._closed = Flag(world)  # pyright: ignore[reportAttributeAccessIssue]
        self._world = world
        self._name_of_node = name
        self.process: Process | None = None

    def is_alive(self) -> bool:
        return self.process is not None and not self.process.dead

    def start(self) -> None:
        self.process = self._world.spawn(f"doorbell {self._name_of_node}", self.run)


class NothingToStore(Outputs):
    """No simulated rank leaves outputs: the thread that stores them need not run."""

    def start(self) -> None:
        pass


class Node:
    """A machine and whatever agents run on it. The second agent is a mistake of its administrator's."""

    def __init__(self, world: World, name: str, slots: int, root: Path, api: Api) -> None:
        self.world = world
        self.name = name
        self.machine = Machine(world, name, slots, root)
        self.network = Network()
        self.folder = Folder(self.machine, root / name)
        self.second: Folder | None = None
        self.on = True
        self.healthy_since = 0.0
        self._generation = 0
        self._api = api
        self._processes: list[Process] = []
        self._doorbells: list[VirtualDoorbell] = []
        self.start_agent(self.folder)

    def start_agent(self, folder: Folder) -> None:
        """Unless the machine is switched off."""
        if not self.on:
            return
        exchange = Exchange(self.world, self.machine, self.network, self._api)
        doorbell = VirtualDoorbell(self.world, exchange, folder.bell.ring, self.name)
        self._doorbells.append(doorbell)
        self.healthy_since = self.world.now

        def life() -> None:
            agent = Agent(
                settings=Settings(name=self.name, sample_s=3600.0, stop_attempts_on_exit=False),
                report=self.machine.inventory(),
                exchange=exchange,  # pyright: ignore[reportArgumentType]
                doorbell=doorbell,
                bell=folder.bell,  # pyright: ignore[reportArgumentType]
                journal=folder,  # pyright: ignore[reportArgumentType]
                runs=folder,  # pyright: ignore[reportArgumentType]
                shelf=Shelf(folder.path / "cache"),
                outputs=NothingToStore(
                    Transfer({"server": "http://127.0.0.1", "token": "", "ca": None}),
                    folder.bell.ring,
                    random.Random(0),
                ),
                credentials={},
                now_s=self.machine.clock_s,
                chance=self.world.chance,
            )
            try:
                agent.run(on_ready=lambda _node: self.world.say(self.name, "agent is ready"))
            except Refused as refused:  # such an end is left to people
                self.world.say(self.name, f"agent ends with code {refused.exit_code}: {refused}")
            except OSError as error:
                self.world.say(self.name, f"agent ends: {error.strerror}")
                self.restart_later(RESTART_S, folder)
            if doorbell.process is not None:
                self.world.at(0.0, doorbell.process.kill)

        self._processes.append(self.world.spawn(f"agent {self.name}", life))

    def restart_later(self, delay_s: float, folder: Folder) -> None:
        """Unless something else happens to the agents of this node before."""
        self._generation += 1
        generation = self._generation
        self.world.at(delay_s, lambda: self.start_agent(folder) if generation == self._generation else None)

    def crash_agents(self) -> None:
        """SIGKILL. Supervisors and ranks go on."""
        self.second = None
        self.healthy_since = float("inf")
        self._generation += 1
        for process in self._processes + [doorbell.process for doorbell in self._doorbells if doorbell.process]:
            process.kill()
        self._processes, self._doorbells = [], []

    def freeze_agents(self, seconds: float) -> None:
        self.healthy_since = self.world.now + seconds
        for process in self._processes + [doorbell.process for doorbell in self._doorbells if doorbell.process]:
            process.freeze(seconds)

    def reboot(self) -> None:
        self.crash_agents()
        self.machine.reboot()
        self.folder.lose_what_is_not_durable()

    def switch_off(self) -> None:
        """Somebody presses the button: what runs ends at once."""
        if self.machine.groups:
            self.machine.violations.append(
                f"I10: {self.name} was switched off with {', '.join(self.machine.groups)} on it"
            )
        self.reboot()
        self.on = False

    def switch_on(self, boot_s: float) -> None:
        """Its agent starts when it has booted."""
        if not self.on:
            self.on = True
            self.restart_later(boot_s, self.folder)

    def start_second(self) -> None:
        """Somebody starts another agent of the same name here, with a state folder of its own."""
        self.second = Folder(self.machine, self.folder.path.with_name(f"{self.name}-second"))
        self.start_agent(self.second)

    def end_second(self) -> None:
        """The mistake is noticed: the second agent is killed, and the first started again."""
        if self.second is not None:
            self.crash_agents()
            self.start_agent(self.folder)

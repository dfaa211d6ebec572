"""The commands that switch simulated machines. They take their time, and in bad times they fail, lie or hang."""

from collections.abc import Sequence

from sqlalchemy import Connection

from protocol.sync import SyncRequest
from protocol.version import PROTOCOL_VERSION
from service import sync
from service.cycle.hooks import Ended, Hooks
from service.power_pools import PowerPool
from service.store import nodes as node_store
from tests.simulation.node import Node
from tests.simulation.service import Api
from tests.simulation.world import World

POOL = PowerPool(
    name="all",
    nodes=("n*",),
    on=("on", "{name}"),
    off=("off", "{name}"),
    hook_limit_s=5.0,
    boot_s=3.0,
    boot_limit_s=20.0,
    idle_s=2.0,
    min_on_s=2.0,
    boots_per_hour=1_000,
)


class Switchboard:
    """What all commands have in common: the machines, and whether times are bad."""

    def __init__(self, world: World, api: Api) -> None:
        self.world = world
        self.nodes: dict[str, Node] = {}
        self.bad_times = True
        self._api = api

    def press(self, name: str, word: str) -> None:
        """The machine goes on or off. One that goes off says so if it can be heard."""
        node = self.nodes[name]
        self.world.say(name, f"is switched {word}")
        if word == "on":
            node.switch_on(self.world.chance.uniform(0.5, 3.0))
            return
        if node.network.there and node.on:
            self._api.serve(lambda tx: self._leave(tx, name), lambda _answer: None)
        node.switch_off()

    def _leave(self, tx: Connection, name: str) -> None:
        known = node_store.find_node(tx, name)
        assert known is not None
        request = SyncRequest(protocol=PROTOCOL_VERSION, incarnation=known.incarnation, leaving=True)
        sync.take(tx, name, request, max_attempts=20, now=self._api.now())


class Commands(Hooks):
    """The commands that one cycle process has started. Killed together with it, they may still do their work."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        self._runs: dict[str, object] = {}
        self._over: list[Ended] = []

    def start(self, node: str, command: Sequence[str], limit_s: float) -> None:
        assert node not in self._runs
        run = self._runs[node] = object()
        board, world = self._switchboard, self._switchboard.world
        kind = world.chance.choice(["works"] * 4 + ["fails", "lies", "hangs"]) if board.bad_times else "works"
        word, lasts_s = command[0], limit_s if kind == "hangs" else world.chance.uniform(0.1, 3.0)
        if kind == "lies" and word == "off":
            kind = "works"  # the service would find out after minutes only
        if kind != "works":
            world.fault(f"power command {kind}", node, word)
        if kind == "works" or (kind == "hangs" and world.chance.random() < 0.5):
            world.at(lasts_s - 0.05, lambda: board.press(node, word))
        fault = {"fails": "no answer", "hangs": "too slow"}.get(kind)
        world.at(lasts_s, lambda: self._end(node, run, fault))

    def runs(self, node: str) -> bool:
        return node in self._runs

    def ended(self) -> list[Ended]:
        over, self._over = self._over, []
        return over

    def stop(self) -> None:
        self._runs, self._over = {}, []

    def _end(self, node: str, run: object, fault: str | None) -> None:
        if self._runs.get(node) is run:
            del self._runs[node]
            self._over.append(Ended(node=node, fault=fault))

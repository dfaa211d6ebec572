"""A slice of the simulation, and that it is what it says: the same seed is the same history."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from protocol.sync import RegisterRequest, RegisterResponse, SyncResponse
from protocol.version import PROTOCOL_VERSION
from service.cycle.leases import MARGIN_S
from service.settings import Settings
from service.store.nodes import find_node
from tests.simulation.history import live
from tests.simulation.machine import CLOCK_DRIFT, SLOWEST_DEATH_S
from tests.simulation.node import Node
from tests.simulation.service import Api, Database
from tests.simulation.world import World
from workers.reconcile import lease_from

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_seed_breaks_no_rule(postgres, seed: int) -> None:
    outcome = live((postgres.url, seed))
    assert outcome.violations == [], f"make sim SEED={seed}"
    assert outcome.counts["ranks"] > 0


def test_a_seed_is_replayed_exactly(postgres) -> None:
    """By processes in which sets and dicts of text have another order."""
    hashes: set[str] = set()
    script = f"from tests.simulation.history import live; print('trace', live(({postgres.url!r}, 11)).trace_hash)"
    for order in ("1", "2"):
        told = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": order},
            capture_output=True,
            text=True,
            check=True,
        )
        hashes |= set(re.findall(r"^trace (\w+)$", told.stdout, re.MULTILINE))
    assert len(hashes) == 1


@pytest.mark.parametrize("lease_s", [1.0, 8.0, 60.0, 300.0, 86_400.0])
def test_a_lease_leaves_time_to_die(lease_s: float) -> None:
    """Ranks that were killed at the latest moment, on the slowest clock, are gone before the fastest clock of a service
    has waited long enough."""
    lease = lease_from(0.0, lease_s)
    gone_s = (lease.fence_at_s + lease.grace_s) / (1 - CLOCK_DRIFT) + SLOWEST_DEATH_S
    assert gone_s < (lease_s + MARGIN_S) / (1 + CLOCK_DRIFT)


class SlowService:
    """Grants a lease, and is slow to say so."""

    def register(self, node: str, _body: str, reply: Callable[[object], None]) -> None:
        reply(RegisterResponse(node=node, incarnation=1, lease_s=100.0))

    def sync(self, _node: str, body: str, reply: Callable[[object], None]) -> None:
        if '"wait_s"' not in body:
            self.world.at(5.0, lambda: reply(SyncResponse(assignments=[], version="1", lease_s=100.0)))

    def __init__(self, world: World) -> None:
        self.world = world


def test_a_lease_counts_from_when_its_renewal_was_sent(tmp_path: Path) -> None:
    world = World(1)
    node = Node(world, "n1", 1, tmp_path, SlowService(world))  # pyright: ignore[reportArgumentType]
    asked_s = node.machine.clock_s()
    world.run(6.0)
    assert asked_s < node.folder.lease.fence_at_s < asked_s + 65.0 + 1.0


def test_an_agent_is_not_turned_away_by_late_copies_of_its_own_registration(engine: Engine, tmp_path: Path) -> None:
    world = World(1)
    api = Api(world, Database(world, engine), Settings(data_dir=tmp_path, lease_s=20.0))
    node = Node(world, "n1", 1, tmp_path, api)
    world.run(3.0)
    late = RegisterRequest(protocol=PROTOCOL_VERSION, report=node.machine.inventory())
    answers: list[RegisterResponse] = []
    for until_s in (15.0, 30.0):
        api.register("n1", late.model_dump_json(), answers.append)
        world.run(until_s)
    with engine.connect() as tx:
        row = find_node(tx, "n1")
    assert row is not None
    assert row.state == "ready"
    assert row.incarnation > answers[-1].incarnation, "the agent has registered once more"
    assert (api.now() - row.last_seen_at).total_seconds() < 20.0
    assert not any("ends" in line for line in world.trace)


def test_of_two_agents_that_live_the_first_yields(engine: Engine, tmp_path: Path) -> None:
    world = World(1)
    api = Api(world, Database(world, engine), Settings(data_dir=tmp_path, lease_s=20.0))
    node = Node(world, "n1", 1, tmp_path, api)
    world.run(3.0)
    node.start_second()
    world.run(60.0)
    [end] = [line for line in world.trace if "ends" in line]
    assert "code 3" in end
    with engine.connect() as tx:
        row = find_node(tx, "n1")
    assert row is not None
    assert (api.now() - row.last_seen_at).total_seconds() < 20.0

"""How full the nodes that can be switched have been: what the planner charges for being on falls to who is there."""

from datetime import datetime, timedelta

from sqlalchemy import Connection

from scheduler.power import default_boot_wait_w
from scheduler.problem import Problem
from scheduler.simulate import MEMORY_S
from service.store import usage as usage_store


def read_fill(tx: Connection, problem: Problem, now: datetime) -> float:
    """Device-seconds held over device-seconds on, over the past `MEMORY_S`, of the nodes that can be switched.

    As in the simulation it is 0 before anything was on, and where nothing can be switched.
    """
    names = [node.id for node in problem.nodes if node.can_switch]
    if not names:
        return 0.0
    held_s, on_s = usage_store.device_seconds(tx, names, now - timedelta(seconds=MEMORY_S), now)
    # A device that is held while its node is not heard of counts as held only.
    return min(1.0, held_s / on_s) if on_s > 0 else 0.0


def boot_wait_w(problem: Problem) -> float:
    """The price of waiting for a boot, in W: 0 where nothing can be switched."""
    can_switch = any(node.can_switch for node in problem.nodes)
    return default_boot_wait_w(problem.nodes) if can_switch else 0.0

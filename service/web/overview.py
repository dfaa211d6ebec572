"""What the first page shows: one look at the cluster, as far as the visitor may see it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from protocol.alarms import AlarmView
from protocol.jobs import JobView
from protocol.nodes import NodePage, PowerBudgetView
from protocol.states import JobState, NodeState, PowerState
from service import alarms, jobs, nodes, views
from service.auth import Person
from service.cycle.problem import budget_use
from service.power_budgets import PowerRules
from service.store import jobs as job_store
from service.store import nodes as node_store

ALARMS = 20
NODES = 50
RUNNING = 20
WAITING = 20
SWITCHED = (PowerState.SUSPENDING, PowerState.OFF, PowerState.BOOTING)


@dataclass(frozen=True, slots=True, kw_only=True)
class KindUse:
    """Devices of one kind. `lost` are on nodes that are not heard of: nobody can use them. `off` are on nodes that are
    switched off, or just being switched.
    """

    kind: str
    allocated: int
    idle: int
    lost: int
    off: int

    @property
    def total(self) -> int:
        return self.allocated + self.idle + self.lost + self.off


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Counts over the whole cluster, and the first jobs and one page of nodes. `base_w` in W, of the nodes here."""

    kinds: tuple[KindUse, ...]
    nodes_by_state: Mapping[str, int]
    jobs_by_state: Mapping[str, int]
    base_w: float
    running: Sequence[JobView]
    waiting: Sequence[JobView]
    nodes: NodePage
    alarms: Sequence[AlarmView]
    budgets: Sequence[PowerBudgetView]

    @property
    def count_running(self) -> int:
        return sum(self.jobs_by_state.get(state, 0) for state in (JobState.RUNNING, JobState.STARTING))

    @property
    def count_waiting(self) -> int:
        return sum(self.jobs_by_state.get(state, 0) for state in (JobState.QUEUED, JobState.HELD))


def overview(tx: Connection, person: Person, *, after: str, power: PowerRules, now: datetime) -> Overview:
    """Read everything the page shows. `tx` must be one snapshot.

    Args:
        after: the last node of the page before.
        power: what groups of nodes may draw.
    """
    own = person.only_jobs_of
    running = jobs.list_page(
        tx,
        person,
        user=None,
        states=[JobState.RUNNING, JobState.STARTING],
        queue=None,
        name=None,
        before=None,
        limit=RUNNING,
    )
    waiting = job_store.list_waiting(tx, user_id=own, limit=WAITING)
    states = {row.id: row.state for row in node_store.list_nodes(tx)}
    base_w = node_store.current_base_w(tx)
    return Overview(
        kinds=_uses(tx),
        nodes_by_state=node_store.count_by_condition(tx),
        jobs_by_state=job_store.count_by_state(tx, user_id=own),
        base_w=sum(watts for node, watts in base_w.items() if states[node] == NodeState.READY),
        running=running.items,
        waiting=[views.job(row, (), ()) for row in waiting],
        nodes=nodes.list_page(tx, person, after=after, limit=NODES),
        budgets=budget_use(tx, power, now),
        alarms=alarms.list_page(tx, after="", limit=ALARMS).items,
    )


def _uses(tx: Connection) -> tuple[KindUse, ...]:
    rows = node_store.count_devices(tx)

    def count(kind: str, conditions: Collection[str], held: bool | None) -> int:
        return sum(
            row.devices for row in rows if row.kind == kind and row.condition in conditions and held in (None, row.held)
        )

    return tuple(
        KindUse(
            kind=kind,
            allocated=count(kind, (NodeState.READY,), held=True),
            idle=count(kind, (NodeState.READY,), held=False),
            lost=count(kind, (NodeState.LOST,), held=None),
            off=count(kind, SWITCHED, held=None),
        )
        for kind in dict.fromkeys(row.kind for row in rows)
    )

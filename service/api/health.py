"""Routes for machines that watch: liveness, readiness, metrics. And what is listening here."""

from collections.abc import Mapping
from importlib.metadata import version

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from sqlalchemy import text

from protocol.accounts import IdentityView, ServiceView
from protocol.states import PowerState
from protocol.version import PROTOCOL_VERSION
from service.alarms import Alarm
from service.api.deps import PartsDep, PersonDep
from service.api.errors import ANYWHERE, PUBLIC_RESPONSES, RESPONSES, refused
from service.cycle.problem import budget_use
from service.db import snapshot
from service.refusals import Unavailable
from service.store import alarms as alarm_store
from service.store import attempts as attempt_store
from service.store import cycles as cycle_store
from service.store import jobs as job_store
from service.store import nodes as node_store

router = APIRouter(tags=["service"])

SWITCHED = (PowerState.SUSPENDING, PowerState.OFF, PowerState.BOOTING)


@router.get("/livez", responses=PUBLIC_RESPONSES)
async def livez() -> dict[str, str]:
    """The process answers. Asks nothing of the database and takes no thread, which all may be waiting for it."""
    return {"status": "ok"}


@router.get("/readyz", responses=refused(Unavailable, besides=ANYWHERE))
def readyz(parts: PartsDep) -> dict[str, str]:
    """The process can do its work: the database answers."""
    with parts.engine.connect() as tx:
        tx.execute(text("SELECT 1"))
    return {"status": "ok"}


@router.get("/v1/version", responses=PUBLIC_RESPONSES)
async def service_version() -> ServiceView:
    """What is listening."""
    return ServiceView(name="ergon", version=version("ergon"), protocol=PROTOCOL_VERSION)


@router.get("/v1/me", responses=RESPONSES)
def me(person: PersonDep) -> IdentityView:
    """Whom the token belongs to."""
    return IdentityView(user=person.name, role=person.role)


@router.get("/metrics", responses=RESPONSES, response_class=PlainTextResponse)
def metrics(parts: PartsDep, person: PersonDep) -> Response:
    """State of the cluster for Prometheus. No names of users, jobs or nodes."""
    with snapshot(parts.engine) as tx:
        jobs = job_store.count_by_state(tx)
        nodes = node_store.count_by_condition(tx)
        devices = node_store.list_devices(tx)
        counts = node_store.count_devices(tx)
        held = {row.device_id for row in attempt_store.held_devices(tx)}
        cycles = cycle_store.list_cycles(tx, before=None, limit=1)
        alarms = alarm_store.count_by_kind(tx)
        leader = cycle_store.read_leadership(tx)
        budgets = budget_use(tx, parts.settings.power, parts.now())
    registry = CollectorRegistry()
    _gauge(registry, "ergon_jobs", "Jobs by state.", "state", jobs)
    _gauge(registry, "ergon_nodes", "Nodes by state, or by power state while they are not on.", "state", nodes)
    unfit = sum(row.unfit_reason is not None and row.id not in held for row in devices)
    off = sum(row.devices for row in counts if row.condition in SWITCHED and not row.held)
    uses = {"allocated": len(held), "unfit": unfit, "off": off, "idle": max(0, len(devices) - len(held) - unfit - off)}
    _gauge(registry, "ergon_devices", "Devices by use.", "use", uses)
    _gauge(
        registry,
        "ergon_alarms",
        "What an administrator should look at, by kind.",
        "kind",
        dict.fromkeys(Alarm, 0) | alarms,
    )
    limits_w = {budget.name: budget.limit_w for budget in budgets}
    _gauge(registry, "ergon_power_budget_watts", "What a group of nodes may draw, by budget.", "budget", limits_w)
    draws_w = {budget.name: budget.planned_w for budget in budgets}
    _gauge(registry, "ergon_power_draw_watts", "What it draws by the planner's count, by budget.", "budget", draws_w)
    renewals = Gauge("ergon_cycle_renewals", "How often a leader has said that it leads.", registry=registry)
    renewals.set(leader.renewals if leader else 0)
    if cycles:
        last = cycles[0]
        Gauge("ergon_cycle_gap_ratio", "Solver gap of the last plan.", registry=registry).set(last.gap)
        Gauge("ergon_cycle_solve_seconds", "Time to solve the last plan.", registry=registry).set(last.solve_s)
        Gauge("ergon_cycle_term", "Term of the leader that made the last plan.", registry=registry).set(last.term)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _gauge(registry: CollectorRegistry, name: str, text: str, label: str, values: Mapping[str, float]) -> None:
    gauge = Gauge(name, text, [label], registry=registry)
    for value, count in values.items():
        gauge.labels(value).set(count)

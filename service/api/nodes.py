"""Routes under /v1/nodes."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from protocol.nodes import DrainRequest, NodePage, NodeView, SwitchOnRequest
from service import maintenance, nodes
from service.api.deps import AdminDep, PartsDep, PersonDep
from service.api.errors import RESPONSES, refused
from service.cycle.problem import budget_use
from service.refusals import NodeHeard, NotSwitchable, UnknownNode

router = APIRouter(prefix="/v1/nodes", tags=["nodes"], responses=RESPONSES)

Name = Annotated[str, Path(max_length=63, pattern=r"^[A-Za-z0-9._-]+$", description="The node's name.")]
Cursor = Annotated[str, Query(max_length=63, pattern=r"^[A-Za-z0-9._-]*$", description="`next` of the page before.")]


@router.get("")
def list_nodes(
    parts: PartsDep,
    person: PersonDep,
    limit: Annotated[int, Query(ge=1, le=500, description="Items on a page.")] = 100,
    cursor: Cursor = "",
) -> NodePage:
    """Nodes by name, with their devices and the jobs that hold them, and the power budgets. A user sees the ids of own
    jobs only.
    """
    with parts.engine.begin() as tx:
        page = nodes.list_page(tx, person, after=cursor, limit=limit)
        return page.model_copy(update={"power_budgets": budget_use(tx, parts.settings.power, parts.now())})


@router.get("/{name}", responses=refused(UnknownNode))
def get_node(name: Name, parts: PartsDep, person: PersonDep) -> NodeView:
    """One node."""
    with parts.engine.begin() as tx:
        return nodes.get(tx, person, name)


@router.post("/{name}/cordon", responses=refused(UnknownNode))
def cordon_node(name: Name, parts: PartsDep, person: AdminDep) -> NodeView:
    """Keep new work away from the node; what runs there goes on. Administrators only."""
    with parts.engine.begin() as tx:
        return maintenance.cordon(tx, person, name)


@router.post("/{name}/uncordon", responses=refused(UnknownNode))
def uncordon_node(name: Name, parts: PartsDep, person: AdminDep) -> NodeView:
    """Let the node take work again. Administrators only."""
    with parts.engine.begin() as tx:
        return maintenance.uncordon(tx, person, name)


@router.post("/{name}/confirm-down", responses=refused(UnknownNode, NodeHeard))
def confirm_node_down(name: Name, parts: PartsDep, person: AdminDep) -> NodeView:
    """Say that a node which is not heard of is off: its devices are free and its jobs run again at once.

    Administrators only. A node that was heard lately is refused.
    """
    with parts.engine.begin() as tx:
        return maintenance.confirm_down(tx, person, name, max_attempts=parts.settings.max_attempts, now=parts.now())


@router.post("/{name}/drain", responses=refused(UnknownNode))
def drain_node(name: Name, request: DrainRequest, parts: PartsDep, person: AdminDep) -> NodeView:
    """Keep new work away from the node, and stop and requeue what still runs there after the deadline.

    Administrators only.
    """
    with parts.engine.begin() as tx:
        return maintenance.drain(tx, person, name, deadline_s=request.deadline_s, now=parts.now())


@router.post("/{name}/on", responses=refused(UnknownNode, NotSwitchable))
def switch_node_on(name: Name, request: SwitchOnRequest, parts: PartsDep, person: AdminDep) -> NodeView:
    """Switch the node on if it is off or lost; plans may switch it off again unless it is kept on.

    Administrators only. The node must be in a pool of `ERGON_POWER_POOLS`.
    """
    with parts.engine.begin() as tx:
        pools = parts.settings.power_pools
        return maintenance.switch_on(tx, person, name, pools=pools, keep=request.keep, now=parts.now())


@router.post("/{name}/off", responses=refused(UnknownNode, NotSwitchable))
def switch_node_off(name: Name, parts: PartsDep, person: AdminDep) -> NodeView:
    """Keep new work away from the node, switch it off when nothing runs there any more, and leave it off.

    Administrators only. The node must be in a pool of `ERGON_POWER_POOLS`.
    """
    with parts.engine.begin() as tx:
        return maintenance.switch_off(tx, person, name, pools=parts.settings.power_pools)

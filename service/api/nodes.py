"""Routes under /v1/nodes."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from protocol.nodes import NodePage, NodeView
from service import nodes
from service.api.deps import PartsDep, PersonDep
from service.api.errors import RESPONSES, refused
from service.refusals import UnknownNode

router = APIRouter(prefix="/v1/nodes", tags=["nodes"], responses=RESPONSES)

Cursor = Annotated[str, Query(max_length=63, pattern=r"^[A-Za-z0-9._-]*$", description="`next` of the page before.")]


@router.get("")
def list_nodes(
    parts: PartsDep,
    person: PersonDep,
    limit: Annotated[int, Query(ge=1, le=500, description="Items on a page.")] = 100,
    cursor: Cursor = "",
) -> NodePage:
    """Nodes by name, with their devices and the jobs that hold them. A user sees the ids of own jobs only."""
    with parts.engine.begin() as tx:
        return nodes.list_page(tx, person, after=cursor, limit=limit)


@router.get("/{name}", responses=refused(UnknownNode))
def get_node(
    name: Annotated[str, Path(max_length=63, pattern=r"^[A-Za-z0-9._-]+$")], parts: PartsDep, person: PersonDep
) -> NodeView:
    """One node."""
    with parts.engine.begin() as tx:
        return nodes.get(tx, person, name)

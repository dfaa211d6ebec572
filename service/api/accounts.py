"""Routes for people, their tokens, and join tokens."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from protocol.accounts import (
    JoinTokenView,
    NewJoinToken,
    NewTokenView,
    NewUser,
    TokenList,
    UserChange,
    UserPage,
    UserView,
)
from service import accounts, joining
from service.api.deps import AdminDep, PartsDep, PersonDep
from service.api.errors import RESPONSES, refused
from service.refusals import LastAdmin, NodeTaken, UnknownToken, UnknownUser, UserExists

router = APIRouter(prefix="/v1", tags=["accounts"], responses=RESPONSES)

Name = Annotated[str, Path(max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="The user's name.")]


@router.post("/users", status_code=201, responses=refused(UserExists) | {200: {"model": UserView}})
def add_user(request: NewUser, parts: PartsDep, person: AdminDep, response: Response) -> UserView:
    """Make a person known; administrators only. A person who is known with this role already: 200."""
    with parts.engine.begin() as tx:
        view, new = accounts.add_user(tx, request, now=parts.now(), new_id=parts.new_id)
    response.status_code = 201 if new else 200
    return view


@router.get("/users")
def list_users(
    parts: PartsDep,
    person: AdminDep,
    limit: Annotated[int, Query(ge=1, le=500, description="Items on a page.")] = 100,
    cursor: Annotated[str, Query(max_length=63, pattern=r"^[A-Za-z0-9._-]*$", description="`next` of before.")] = "",
) -> UserPage:
    """People by name; administrators only."""
    with parts.engine.begin() as tx:
        return accounts.list_users(tx, after=cursor, limit=limit)


@router.patch("/users/{name}", responses=refused(UnknownUser, LastAdmin))
def change_user(name: Name, request: UserChange, parts: PartsDep, person: AdminDep) -> UserView:
    """Give a person another role; administrators only. All tokens of the person have it at once."""
    with parts.engine.begin() as tx:
        return accounts.change_role(tx, name, request.role)


@router.post("/users/{name}/tokens", status_code=201, responses=refused(UnknownUser))
def new_token(name: Name, parts: PartsDep, person: PersonDep) -> NewTokenView:
    """One more token, shown this once; one's own, or anybody's for an administrator."""
    with parts.engine.begin() as tx:
        return accounts.new_token(tx, person, name, now=parts.now())


@router.get("/users/{name}/tokens", responses=refused(UnknownUser))
def list_tokens(name: Name, parts: PartsDep, person: PersonDep) -> TokenList:
    """Tokens that are not revoked, without the tokens themselves; one's own, or anybody's for an administrator."""
    with parts.engine.begin() as tx:
        return accounts.list_tokens(tx, person, name)


@router.get("/nodes/{name}/tokens")
def list_node_tokens(name: Name, parts: PartsDep, person: AdminDep) -> TokenList:
    """Credentials of a node that are not revoked; administrators only."""
    with parts.engine.begin() as tx:
        return accounts.list_node_tokens(tx, name)


@router.delete("/tokens/{token_id}", status_code=204, responses=refused(UnknownToken, LastAdmin))
def revoke_token(
    token_id: Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9-]+$", description="The token's id.")],
    parts: PartsDep,
    person: PersonDep,
) -> None:
    """Make a token worth nothing, at once; one's own, or anybody's and any node's for an administrator."""
    with parts.engine.begin() as tx:
        accounts.revoke(tx, person, token_id, now=parts.now())


@router.post("/join-tokens", status_code=201, responses=refused(NodeTaken))
def new_join_token(request: NewJoinToken, parts: PartsDep, person: AdminDep) -> JoinTokenView:
    """Leave for one agent to become a node, shown this once; administrators only."""
    with parts.engine.begin() as tx:
        return joining.new_join_token(tx, person, request, now=parts.now())

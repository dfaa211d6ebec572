"""What can be done with people and tokens: add, look, change roles, make tokens, revoke them."""

from datetime import datetime

from sqlalchemy import Connection

from protocol.accounts import NewTokenView, NewUser, TokenList, TokenView, UserPage, UserView
from protocol.states import Role
from service import auth
from service.auth import Person
from service.db import Record
from service.ids import NewId
from service.refusals import Forbidden, LastAdmin, UnknownToken, UnknownUser, UserExists
from service.store import accounts as store


def add_user(tx: Connection, request: NewUser, *, now: datetime, new_id: NewId) -> tuple[UserView, bool]:
    """Make a person known. The same request sent again finds the same person.

    Returns:
        The person, and whether it is new.

    Raises:
        UserExists: with another role.
    """
    store.lock_name(tx, "user", request.name)
    known = store.find_user(tx, request.name)
    if known is None:
        store.add_user(tx, user_id=new_id("user"), name=request.name, role=request.role, now=now)
    elif known.role != request.role.value:
        raise UserExists(
            f"user {request.name!r} exists with role {known.role!r}; change it with "
            f"`ergon user role {request.name} {request.role.value}`"
        )
    return _user(tx, _find(tx, request.name)), known is None


def list_users(tx: Connection, *, after: str, limit: int) -> UserPage:
    """One page of people by name."""
    rows = store.list_users(tx, after=after, limit=limit + 1)
    items = [UserView.model_validate(row._asdict()) for row in rows[:limit]]
    return UserPage(items=items, next=items[-1].name if len(rows) > limit else None)


def change_role(tx: Connection, name: str, role: Role) -> UserView:
    """Give a person another role, which all tokens of the person have at once.

    Raises:
        UnknownUser: there is nobody of this name.
        LastAdmin: no administrator with a token would be left.
    """
    store.lock_admins(tx)
    user = _find(tx, name)
    store.change_role(tx, user.id, role)
    if user.role == Role.ADMIN.value:
        _check_admin_left(tx)
    return _user(tx, _find(tx, name))


def new_token(tx: Connection, person: Person, name: str, *, now: datetime) -> NewTokenView:
    """One more token for the person of this name. It can do what the person's role allows, and no more.

    Raises:
        Forbidden: somebody else's, and the caller is no administrator.
        UnknownUser: there is nobody of this name.
    """
    user = _own_or_any(tx, person, name)
    token = auth.issue_user_token(tx, user.id, now=now)
    return NewTokenView(
        id=auth.token_id(auth.hash_token(token)), owner=name, created_at=now, ending=token[-auth.ENDING :], token=token
    )


def list_tokens(tx: Connection, person: Person, name: str) -> TokenList:
    """Tokens of the person of this name that are not revoked. Raises as `new_token` does."""
    user = _own_or_any(tx, person, name)
    return TokenList(items=[_token(row, name) for row in store.list_tokens(tx, user_id=user.id)])


def list_node_tokens(tx: Connection, name: str) -> TokenList:
    """Credentials of the node of this name that are not revoked. A node that never was has none."""
    return TokenList(items=[_token(row, name) for row in store.list_tokens(tx, node_name=name)])


def revoke(tx: Connection, person: Person, token_id: str, *, now: datetime) -> None:
    """Make a token worth nothing, at once. Revoking it again changes nothing.

    Raises:
        UnknownToken: there is none of this id, or it is somebody else's and the caller is no administrator.
        LastAdmin: it is the last token of the last administrator.
    """
    store.lock_admins(tx)
    token = store.find_token_by_id(tx, token_id)
    if token is None or (person.role != Role.ADMIN and token.user_id != person.id):
        raise UnknownToken(f"there is no token {token_id!r} that you may see; `ergon token list` lists them")
    store.revoke_token(tx, token_id, now=now)
    if token.role == Role.ADMIN.value:
        _check_admin_left(tx)


def _check_admin_left(tx: Connection) -> None:
    if not store.an_admin_can_call(tx):
        raise LastAdmin(
            "after this no administrator with a token would be left; make another one first "
            "(`ergon user add NAME --role admin`, `ergon token new --user NAME`)"
        )


def _own_or_any(tx: Connection, person: Person, name: str) -> Record:
    if person.role != Role.ADMIN and name != person.name:
        raise Forbidden("only an administrator may see or make tokens of somebody else")
    return _find(tx, name)


def _find(tx: Connection, name: str) -> Record:
    user = store.find_user(tx, name)
    if user is None:
        raise UnknownUser(f"there is no user {name!r}; `ergon users` lists them")
    return user


def _user(tx: Connection, row: Record) -> UserView:
    return UserView(name=row.name, role=row.role, created_at=row.created_at, tokens=store.count_tokens(tx, row.id))


def _token(row: Record, owner: str) -> TokenView:
    return TokenView(id=row.id, owner=owner, created_at=row.created_at, ending=row.ending)

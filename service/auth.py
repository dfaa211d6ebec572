"""Tokens: who may call. A token is shown once, when it is made; only its hash is kept."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from protocol.states import Role
from service.ids import NewId
from service.refusals import Forbidden, Unauthorised
from service.store import accounts

USER_PREFIX = "ergon_user_"
NODE_PREFIX = "ergon_node_"
"""Prefixes let secret scanners find a token that leaked into a repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody who calls the API."""

    id: str
    name: str
    role: Role

    @property
    def only_jobs_of(self) -> str | None:
        """The user whose jobs this person sees; None for an administrator, who sees all."""
        return None if self.role == Role.ADMIN else self.id


def make_user_token(tx: Connection, *, name: str, role: Role, now: datetime, new_id: NewId) -> str:
    """A fresh token for a person, who is created if new.

    Raises:
        Forbidden: the person exists with another role.
    """
    user = accounts.find_user(tx, name)
    if user is None:
        user_id = new_id("user")
        accounts.add_user(tx, user_id=user_id, name=name, role=role, now=now)
    elif user.role != role.value:
        raise Forbidden(f"user {name!r} exists with role {user.role!r}; ask for a token with that role")
    else:
        user_id = user.id
    token = USER_PREFIX + secrets.token_urlsafe(32)
    accounts.add_token(tx, token_hash=hash_token(token), user_id=user_id, now=now)
    return token


def make_node_token(tx: Connection, *, name: str, now: datetime) -> str:
    """A fresh token that lets an agent be the node of this name, and nothing else."""
    token = NODE_PREFIX + secrets.token_urlsafe(32)
    accounts.add_token(tx, token_hash=hash_token(token), node_name=name, now=now)
    return token


def identify_person(tx: Connection, authorization: str | None) -> Person:
    """Who sent this `Authorization` header.

    Raises:
        Unauthorised: no token, or none that is valid.
        Forbidden: a node's token.
    """
    row = accounts.find_token(tx, hash_token(_bearer(authorization)))
    if row is None:
        raise Unauthorised("the token is not valid; get a new one with `python -P -m service token user NAME`")
    if row.user_id is None:
        raise Forbidden("this is the token of a node; people need a token of their own")
    return Person(id=row.user_id, name=row.user_name, role=Role(row.role))


def identify_node(tx: Connection, authorization: str | None) -> str:
    """The name of the node that sent this `Authorization` header.

    Raises:
        Unauthorised: no token, or none that is valid.
        Forbidden: a person's token.
    """
    row = accounts.find_token(tx, hash_token(_bearer(authorization)))
    if row is None:
        raise Unauthorised("the token is not valid; get a new one with `python -P -m service token node NAME`")
    if row.node_name is None:
        raise Forbidden("this is the token of a person; an agent needs the token of its node")
    return row.node_name


def require_admin(person: Person) -> None:
    """Raises Forbidden unless the person is an administrator."""
    if person.role != Role.ADMIN:
        raise Forbidden("only an administrator may do this")


def hash_token(token: str) -> bytes:
    """A token is 256 random bits, so a plain hash is as good as a slow one."""
    return hashlib.sha256(token.encode()).digest()


def _bearer(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorised("send the header `Authorization: Bearer TOKEN`; for the command set ERGON_TOKEN")
    return token.strip()

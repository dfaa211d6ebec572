"""Tokens: who may call. A token is shown once, when it is made; only its hash is kept."""

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection

from protocol.states import Role
from service.ids import NewId
from service.refusals import Forbidden, Unauthorised
from service.store import accounts

USER_PREFIX = "ergon_user_"
NODE_PREFIX = "ergon_node_"
JOIN_PREFIX = "ergon_join_"
"""Prefixes let secret scanners find a token that leaked into a repository."""

ENDING = 4
"""Characters of a token that are kept, of 43: nobody guesses the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody who calls the API."""

    id: str
    name: str
    role: Role
    token_hash: bytes = field(compare=False, repr=False)

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
    return issue_user_token(tx, user_id, now=now)


def issue_user_token(tx: Connection, user_id: str, *, now: datetime) -> str:
    """One more token for a person who exists."""
    token = fresh_token(USER_PREFIX)
    hashed = hash_token(token)
    accounts.add_token(
        tx, token_id=token_id(hashed), token_hash=hashed, ending=token[-ENDING:], user_id=user_id, now=now
    )
    return token


def make_node_token(tx: Connection, *, name: str, now: datetime) -> str:
    """A fresh token that lets an agent be the node of this name, and nothing else."""
    token = fresh_token(NODE_PREFIX)
    hashed = hash_token(token)
    accounts.add_token(
        tx, token_id=token_id(hashed), token_hash=hashed, ending=token[-ENDING:], node_name=name, now=now
    )
    return token


def identify_person(tx: Connection, authorization: str | None) -> Person:
    """Who sent this `Authorization` header.

    Raises:
        Unauthorised: no token, or none that is valid.
        Forbidden: a node's token.
    """
    return _person(tx, hash_token(bearer(authorization)))


def identify_again(tx: Connection, person: Person) -> Person:
    """The same person as of now: for answers that go on for long.

    Raises:
        Unauthorised: the token was revoked meanwhile.
    """
    return _person(tx, person.token_hash)


def _person(tx: Connection, token_hash: bytes) -> Person:
    row = accounts.find_token(tx, token_hash)
    if row is None:
        raise Unauthorised(
            "the token is not valid; get a new one with `ergon token new`, from an administrator, or where the "
            "service runs with `python -P -m service token user NAME`"
        )
    if row.user_id is None:
        raise Forbidden("this is the token of a node; people need a token of their own")
    return Person(id=row.user_id, name=row.user_name, role=Role(row.role), token_hash=token_hash)


def identify_node(tx: Connection, authorization: str | None) -> str:
    """The name of the node that sent this `Authorization` header.

    Raises:
        Unauthorised: no token, or none that is valid.
        Forbidden: a person's token.
    """
    row = accounts.find_token(tx, hash_token(bearer(authorization)))
    if row is None:
        raise Unauthorised(
            "the token is not valid; join anew with a join token (`ergon join-token new --node NAME --replace`)"
        )
    if row.node_name is None:
        raise Forbidden("this is the token of a person; an agent needs the token of its node")
    return row.node_name


def require_admin(person: Person) -> None:
    """Raises Forbidden unless the person is an administrator."""
    if person.role != Role.ADMIN:
        raise Forbidden("only an administrator may do this")


def fresh_token(prefix: str) -> str:
    """256 random bits after the prefix."""
    return prefix + secrets.token_urlsafe(32)


def token_id(token_hash: bytes) -> str:
    """By this a token is listed and revoked. Whoever holds the token can compute it, nobody the other way round."""
    return f"token-{token_hash[:8].hex()}"


def hash_token(token: str) -> bytes:
    """A token is 256 random bits, so a plain hash is as good as a slow one."""
    return hashlib.sha256(token.encode()).digest()


def bearer(authorization: str | None) -> str:
    """The token in an `Authorization` header. Raises Unauthorised if there is none."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorised("send the header `Authorization: Bearer TOKEN`; for the command set ERGON_TOKEN")
    return token.strip()

"""What every route gets: the application's parts, the time, and who is calling."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Header, Request, Security
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from sqlalchemy import Engine

from protocol.base import Name
from service import auth
from service.api.hub import Hub
from service.auth import Person
from service.blobs import Blobs
from service.ids import NewId
from service.settings import Settings
from service.tariff_source import TariffSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts an API process is made of. Use cases get the time and new ids from here."""

    engine: Engine
    settings: Settings
    hub: Hub
    now: Callable[[], datetime]
    new_id: NewId
    tariffs: TariffSource


def parts(request: Request) -> Parts:
    return request.app.state.parts


PartsDep = Annotated[Parts, Depends(parts)]


class TokenKind(SecurityBase):
    """The `Authorization` header of a request, and for the API's documentation the kind of token it must carry."""

    def __init__(self, scheme_name: str, description: str) -> None:
        self.scheme_name = scheme_name
        self.model = HTTPBearer(description=description)

    def __call__(self, authorization: Annotated[str | None, Header(include_in_schema=False)] = None) -> str | None:
        return authorization


PERSONS_TOKEN = TokenKind("person", "The token of a user or an administrator: `Authorization: Bearer ergon_user_...`.")
NODES_TOKEN = TokenKind("node", "The credential of a node, for its agent only: `Authorization: Bearer ergon_node_...`.")
JOIN_TOKEN = TokenKind("join", "A join token, good for one agent: `Authorization: Bearer ergon_join_...`.")
ADMIN = "admin"
"""The role a person must have, where the documentation of a route names one."""

PersonsToken = Annotated[str | None, Security(PERSONS_TOKEN)]
NodesToken = Annotated[str | None, Security(NODES_TOKEN)]
JoinToken = Annotated[str | None, Security(JOIN_TOKEN)]


def person(parts: PartsDep, authorization: PersonsToken) -> Person:
    with parts.engine.begin() as tx:
        return auth.identify_person(tx, authorization)


def admin(person: Annotated[Person, Depends(person)]) -> Person:
    auth.require_admin(person)
    return person


def node(parts: PartsDep, authorization: NodesToken) -> Name:
    with parts.engine.begin() as tx:
        return auth.identify_node(tx, authorization)


def join_token(authorization: JoinToken) -> bytes:
    """The hash of a token that is yet to be looked up."""
    return auth.hash_token(auth.bearer(authorization))


def blobs(request: Request) -> Blobs:
    return request.app.state.blobs


BlobsDep = Annotated[Blobs, Depends(blobs)]
PersonDep = Annotated[Person, Depends(person)]
AdminDep = Annotated[Person, Security(admin, scopes=[ADMIN])]
NodeDep = Annotated[Name, Depends(node)]
JoinTokenDep = Annotated[bytes, Depends(join_token)]

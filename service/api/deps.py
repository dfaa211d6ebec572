"""What every route gets: the application's parts, the time, and who is calling."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Header, Request
from sqlalchemy import Engine

from protocol.base import Name
from service import auth
from service.api.hub import Hub
from service.auth import Person
from service.blobs import Blobs
from service.ids import NewId
from service.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts an API process is made of. Use cases get the time and new ids from here."""

    engine: Engine
    settings: Settings
    hub: Hub
    now: Callable[[], datetime]
    new_id: NewId


def parts(request: Request) -> Parts:
    return request.app.state.parts


PartsDep = Annotated[Parts, Depends(parts)]
Authorization = Annotated[str | None, Header(description="`Bearer TOKEN`", include_in_schema=False)]


def person(parts: PartsDep, authorization: Authorization = None) -> Person:
    with parts.engine.begin() as tx:
        return auth.identify_person(tx, authorization)


def admin(person: Annotated[Person, Depends(person)]) -> Person:
    auth.require_admin(person)
    return person


def node(parts: PartsDep, authorization: Authorization = None) -> Name:
    with parts.engine.begin() as tx:
        return auth.identify_node(tx, authorization)


def join_token(authorization: Authorization = None) -> bytes:
    """The hash of a token that is yet to be looked up."""
    return auth.hash_token(auth.bearer(authorization))


def blobs(request: Request) -> Blobs:
    return request.app.state.blobs


BlobsDep = Annotated[Blobs, Depends(blobs)]
PersonDep = Annotated[Person, Depends(person)]
AdminDep = Annotated[Person, Depends(admin)]
NodeDep = Annotated[Name, Depends(node)]
JoinTokenDep = Annotated[bytes, Depends(join_token)]

"""Who looks at the pages: the token in a cookie, and the check that a form was sent by one of our own pages.

The cookie is for pages only. The API takes the `Authorization` header and nothing else, so that no foreign page can
make a browser call it.
"""

import re
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from fastapi import Cookie, Depends, Request, Response

from service import auth
from service.api.deps import PartsDep
from service.auth import Person
from service.refusals import Forbidden

COOKIE = "ergon_session"

_OWN_PATH = re.compile(r"/(?!/)[\x21-\x5b\x5d-\x7e]*")
"""A path on this service. Browsers read a backslash as a slash and drop tabs: `/\\evil` and `/<tab>/evil` lead away."""


def visitor(parts: PartsDep, ergon_session: Annotated[str | None, Cookie()] = None) -> Person:
    """The person whose token the cookie holds.

    Raises:
        Unauthorised: no cookie, or a token that is not valid any more.
        Forbidden: a node's token.
    """
    with parts.engine.begin() as tx:
        return auth.identify_person(tx, f"Bearer {ergon_session}" if ergon_session else None)


def visiting_admin(person: Annotated[Person, Depends(visitor)]) -> Person:
    """Raises Forbidden unless the visitor is an administrator."""
    auth.require_admin(person)
    return person


def same_origin(request: Request) -> None:
    """Refuse a form that a page of another site has sent.

    Browsers send `Sec-Fetch-Site` to this machine and over HTTPS, `Origin` everywhere, and let no page forge either.

    Raises:
        Forbidden: the form comes from elsewhere, or does not say where it comes from.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        own = site == "same-origin"
    else:
        own = origin is not None and urlsplit(origin).netloc == request.headers.get("host")
    if not own:
        raise Forbidden("this form was not sent by a page of this service; open the page here and try again")


VisitorDep = Annotated[Person, Depends(visitor)]
VisitingAdminDep = Annotated[Person, Depends(visiting_admin)]


def begin(response: Response, token: str, *, secure: bool) -> None:
    """Keep the token in the browser until it is closed; no script can read it, no other site can make it be sent."""
    response.set_cookie(COOKIE, token, path="/", httponly=True, samesite="strict", secure=secure)


def end(response: Response) -> None:
    """Make the browser forget the token."""
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")


def own_path(address: str) -> str:
    """The address if it is a path on this service, otherwise the first page: nobody is sent away after signing in."""
    return address if _OWN_PATH.fullmatch(address) else "/"


async def form(request: Request) -> dict[str, str]:
    """The fields of a posted form; the last value of each."""
    fields = parse_qs((await request.body()).decode("utf-8", errors="replace"), keep_blank_values=True)
    return {name: values[-1] for name, values in fields.items()}


FormDep = Annotated[dict[str, str], Depends(form)]

"""What every page has, whatever becomes of the request: strict headers, and a no that is a page as well."""

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from protocol.faults import in_words
from service.refusals import Refusal, Unauthorised, Unavailable
from service.web import session
from service.web.render import page

HEADERS = {
    # Only our own files: no inline script or style, nothing from elsewhere, no frame around us.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: browsers would then send forms with `Origin: null`.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PageRoute(APIRoute):
    """Answers refusals as pages, asks strangers to sign in, and sets the headers that every page has."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                response = await handle(request)
            except Unauthorised:
                response = _ask_to_sign_in(request)
            except Refusal as refusal:
                response = _refused(refusal.status, refusal.title, refusal.detail)
            except RequestValidationError as error:
                faults = (f"{fault['loc'][-1]}: {in_words(fault)}" for fault in error.errors()[:5])
                response = _refused(422, "This address cannot be read", "; ".join(faults))
            except (OperationalError, PoolTimeout):
                response = _refused(503, Unavailable.title, "the database does not answer; try again in a moment")
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return answer


def _ask_to_sign_in(request: Request) -> Response:
    """To the form, and back to this page afterwards.

    A browser does not send the cookie when a link on another site is followed. The page then opens itself once more,
    from here, with the cookie.
    """
    path, query = request.scope["raw_path"].decode("latin-1"), request.url.query
    wanted = session.own_path(f"{path}?{query}" if query else path) if request.method == "GET" else "/"
    if request.headers.get("sec-fetch-site") == "cross-site" and request.headers.get("sec-fetch-mode") == "navigate":
        return page("arrive.html", address=wanted)
    return RedirectResponse(f"/sign-in?next={quote(wanted, safe='/')}", 303)


def _refused(status: int, title: str, detail: str) -> Response:
    return page("error.html", status=status, code=status, title=title, detail=detail)

"""What a request may not exceed before anything looks at it."""

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from archives.limits import CODE, OUTPUT
from protocol.version import PROTOCOL_HEADER, why_mismatched
from service.api.errors import TITLES, UNKNOWN_HOST, problem
from service.refusals import ProtocolMismatch

MAX_BODY_BYTES = 10 * 1024 * 1024
UPLOADS = (
    (re.compile(r"/v1/archives/[^/]+"), CODE.packed_bytes),
    (re.compile(r"/v1/agent/attempts/[^/]+/outputs/[^/]+"), OUTPUT.packed_bytes),
    (re.compile(r"/v1/agent/attempts/[^/]+/checkpoint-files/[^/]+"), 1 << 50),
)
"""Paths whose PUT takes a longer body, which is streamed."""


class KnownHosts:
    """Refuse a request that reached us under a name that is not ours: a page of a foreign site must not reach a local
    service under a name of its own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _host(scope) in self._hosts:
            await self._app(scope, receive, send)
            return
        known = ", ".join(sorted(self._hosts))
        detail = f"this service answers to {known} only; set ERGON_HOST for it to listen on another address"
        await problem(400, "unknown-host", UNKNOWN_HOST, detail)(scope, receive, send)


class KnownProtocol:
    """Refuse a client of ours that would misunderstand the answers. Whoever does not say what it speaks is let in, and
    what is listening here may always be asked.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        said = Headers(scope=scope).get(PROTOCOL_HEADER) if scope["type"] == "http" else None
        if said is None or scope["path"] == "/v1/version":
            await self._app(scope, receive, send)
        elif not re.fullmatch(r"[0-9]{1,9}", said):
            detail = f"the header {PROTOCOL_HEADER} takes a whole number; leave it out unless you are a client of Ergon"
            await problem(400, "http-400", TITLES[400], detail)(scope, receive, send)
        elif why := why_mismatched("client", int(said)):
            refusal = problem(ProtocolMismatch.status, ProtocolMismatch.kind, ProtocolMismatch.title, why)
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class BodyLimit:
    """Refuse a body that is too long, whether it says so itself or only turns out to be."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = _most_bytes(scope)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > most:
            await _too_long(most)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise HTTPException(413, _words(most))  # the one kind of exception that passes whoever reads the body
            return message

        await self._app(scope, counted, send)


def takes_upload(scope: Scope) -> bool:
    """Whether the request has one of the longer bodies."""
    return _most_bytes(scope) > MAX_BODY_BYTES


def _most_bytes(scope: Scope) -> int:
    if scope["method"] == "PUT":
        for path, most in UPLOADS:
            if path.fullmatch(scope["path"]):
                return most
    return MAX_BODY_BYTES


def _too_long(most: int) -> Response:
    return problem(413, "http-413", TITLES[413], _words(most))


def _words(most: int) -> str:
    return f"the body may be {most} bytes long at most"


def _host(scope: Scope) -> str | None:
    try:
        return urlsplit(f"//{Headers(scope=scope).get('host', '')}").hostname
    except ValueError:
        return None

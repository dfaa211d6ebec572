"""What a request may not exceed before anything looks at it."""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import problem

MAX_BODY_BYTES = 10 * 1024 * 1024
TOO_LONG = f"the body may be {MAX_BODY_BYTES} bytes long at most"


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
        await problem(400, "unknown-host", "The request is meant for another host", detail)(scope, receive, send)


class BodyLimit:
    """Refuse a body that is too long, whether it says so itself or only turns out to be."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > MAX_BODY_BYTES:
            await _too_long(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, TOO_LONG)  # the one kind of exception that passes whoever reads the body
            return message

        await self._app(scope, counted, send)


async def _too_long(scope: Scope, receive: Receive, send: Send) -> None:
    await problem(413, "http-413", "The request is too long", TOO_LONG)(scope, receive, send)


def _host(scope: Scope) -> str | None:
    try:
        return urlsplit(f"//{Headers(scope=scope).get('host', '')}").hostname
    except ValueError:
        return None

"""What a request may not exceed before anything looks at it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import problem

MAX_BODY_BYTES = 10 * 1024 * 1024


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
        answered = False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise _TooLong
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except _TooLong:
            if not answered:
                await _too_long(scope, receive, send)


class _TooLong(Exception):
    pass


async def _too_long(scope: Scope, receive: Receive, send: Send) -> None:
    detail = f"the body may be {MAX_BODY_BYTES} bytes long at most"
    await problem(413, "too-long", "The request is too long", detail)(scope, receive, send)

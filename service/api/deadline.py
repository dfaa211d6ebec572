"""Every request is answered within a bounded time, also while the database hangs and everything waits for it."""

import asyncio
import contextlib

from anyio import CancelScope
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.agent import MAX_WAIT_S
from service.api.errors import database_is_silent
from service.api.limits import takes_upload

ANSWER_S = 20.0
"""From the request to the first byte of its answer. Longer than a statement may take (`service.db`), so that whoever
comes too late is not the database's slowest statement but one that nobody answers at all."""

READY_S = 2.0
"""For who asks whether we can work at all."""


class Deadline:
    """Answers 503 for an application that has not begun to answer in time, and lets it go: a statement that is under
    way ends whenever the database comes back, and what still waits for a thread is never begun.
    """

    def __init__(self, app: ASGIApp, *, answer_s: float = ANSWER_S) -> None:
        self._app = app
        self._answer_s = answer_s
        self._let_go: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or takes_upload(scope):
            await self._app(scope, receive, send)
            return
        begun, late, cancel = asyncio.Event(), False, CancelScope()

        async def send_in_time(message: Message) -> None:
            if not late:
                begun.set()
                await send(message)

        async def answer() -> None:
            with cancel:
                await self._app(scope, receive, send_in_time)

        answering = asyncio.create_task(answer())
        answering.add_done_callback(lambda _: begun.set())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limit_s(scope)):
                    await begun.wait()
        finally:
            if late := not begun.is_set():
                self._drop(answering, cancel)
        if late:
            await database_is_silent()(scope, receive, send)
        else:  # perhaps it began at the very last moment
            await answering

    def _limit_s(self, scope: Scope) -> float:
        if scope["path"] == "/readyz":
            return min(READY_S, self._answer_s)
        return self._answer_s + (MAX_WAIT_S if scope["path"] == "/v1/agent/sync" else 0.0)

    def _drop(self, answering: asyncio.Task[None], cancel: CancelScope) -> None:
        """A thread cannot be stopped: the scope is shielded while one works, so that it still counts as taken."""
        cancel.cancel()
        self._let_go.add(answering)
        answering.add_done_callback(self._forget)

    def _forget(self, answering: asyncio.Task[None]) -> None:
        self._let_go.discard(answering)
        with contextlib.suppress(asyncio.CancelledError):
            answering.exception()  # it concerns nobody any more

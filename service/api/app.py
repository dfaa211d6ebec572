"""The application: its parts put together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version

from fastapi import FastAPI

from service.api import (
    accounts,
    agent,
    alarms,
    archives,
    checkpoints,
    control,
    cycles,
    errors,
    health,
    jobs,
    nodes,
    reports,
    submission,
)
from service.api.deadline import Deadline
from service.api.deps import Parts
from service.api.limits import BodyLimit, KnownHosts, KnownProtocol
from service.blobs import open_blobs
from service.db import Listener
from service.web import routes as web

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def create_app(parts: Parts, listener: Listener | None = None) -> FastAPI:
    """The API as an ASGI application.

    Args:
        listener: wakes whoever waits for the database; started and stopped with the application.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        parts.hub.attach(asyncio.get_running_loop())
        if listener:
            listener.start()
        yield
        if listener:
            await asyncio.to_thread(listener.stop)
        parts.engine.dispose()

    app = FastAPI(
        title="Ergon",
        version=version("ergon"),
        description="Schedules AI training at the least energy and idle time. Every answer with status 4xx or 5xx is "
        "`application/problem+json`.",
        lifespan=lifespan,
        redirect_slashes=False,  # an address has one spelling; a redirect is no answer that an operation declares
    )
    app.state.parts = parts
    app.state.blobs = open_blobs(parts.settings)
    errors.install(app)
    for module in (
        accounts,
        submission,
        control,
        jobs,
        nodes,
        reports,
        cycles,
        alarms,
        agent,
        archives,
        checkpoints,
        health,
        web,
    ):
        app.include_router(module.router)
    app.add_middleware(Deadline)
    app.add_middleware(BodyLimit)
    app.add_middleware(KnownProtocol)
    if parts.settings.host in LOOPBACK:
        app.add_middleware(KnownHosts, hosts=LOOPBACK)
    return app

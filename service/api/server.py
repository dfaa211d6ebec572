"""The API as a process: uvicorn around the application."""

import signal
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from types import FrameType

import uvicorn

from service.api.app import create_app
from service.api.deps import Parts
from service.api.hub import Hub
from service.db import Listener, connect
from service.ids import new_id
from service.settings import Settings

GRACE_S = 5
"""How long requests that are being answered may take to finish when the process stops."""


class _Server(uvicorn.Server):
    """Tells its address once it listens, and lets parked requests go before it stops."""

    def __init__(self, config: uvicorn.Config, hub: Hub, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._hub = hub
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._hub.close_soon()
        super().handle_exit(sig, frame)


def serve(settings: Settings, url: str, listening: socket.socket, *, ready: Callable[[str], None]) -> None:
    """Serve until a signal comes.

    Args:
        listening: a bound socket.
        ready: called with the address once requests are taken.
    """
    hub = Hub()
    parts = Parts(
        engine=connect(url, pool_size=20),
        settings=settings,
        hub=hub,
        now=lambda: datetime.now(UTC),
        new_id=new_id,
    )
    host, port = listening.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    config = uvicorn.Config(
        create_app(parts, Listener(url, hub.heard)),
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )
    # uvicorn raises the signal again once it has stopped; for us that was the orderly end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    _Server(config, hub, lambda: ready(address)).run(sockets=[listening])

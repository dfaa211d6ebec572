"""The API as a process: uvicorn around the application."""

import signal
import socket
import ssl
from collections.abc import Callable
from ipaddress import ip_address
from types import FrameType

import uvicorn

from service.api.app import create_app
from service.api.deps import Parts
from service.api.hub import Hub
from service.db import Clock, Listener, connect
from service.ids import new_id
from service.settings import Settings, SettingsError
from service.tariff_source import TariffSource

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


def check_exposure(settings: Settings) -> None:
    """Nothing that a network can read leaves this machine by mistake: tokens are in every request.

    Raises:
        SettingsError: the API would be reached from other machines without TLS, or its certificate cannot be used.
    """
    if settings.tls_cert is not None and settings.tls_key is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                settings.tls_cert, settings.tls_key, password=_no_passphrase
            )
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"ERGON_TLS_CERT {settings.tls_cert} and ERGON_TLS_KEY {settings.tls_key} cannot be used together: "
                f"{error}"
            ) from error
    elif not _is_loopback(settings.host) and not settings.insecure:
        raise SettingsError(
            f"ERGON_HOST {settings.host} is reached by other machines, and tokens would cross the network readable: "
            "set ERGON_TLS_CERT and ERGON_TLS_KEY, or listen on 127.0.0.1, or set ERGON_INSECURE=1 in a network where "
            "nobody can listen in"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase; give one without")


def serve(settings: Settings, url: str, listening: socket.socket, *, ready: Callable[[str], None]) -> None:
    """Serve until a signal comes.

    Args:
        listening: a bound socket.
        ready: called with the address once requests are taken.
    """
    hub = Hub()
    engine = connect(url, pool_size=20)
    parts = Parts(
        engine=engine,
        settings=settings,
        tariffs=TariffSource(settings),
        hub=hub,
        now=Clock(engine),
        new_id=new_id,
    )
    host, port = listening.getsockname()[:2]
    scheme = "https" if settings.tls_cert else "http"
    address = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    config = uvicorn.Config(
        create_app(parts, Listener(url, hub.heard)),
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    # uvicorn raises the signal again once it has stopped; for us that was the orderly end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    _Server(config, hub, lambda: ready(address)).run(sockets=[listening])

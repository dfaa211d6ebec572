"""Talking to the service: an agent's two calls, what the answers mean, and the long poll that says when to call."""

import logging
import queue
import random
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from protocol.base import Message, View
from protocol.errors import ErrorBody
from protocol.nodes import NodeReport
from protocol.sync import RegisterRequest, RegisterResponse, SyncRequest, SyncResponse
from protocol.version import PROTOCOL_VERSION

log = logging.getLogger(__name__)

AnyView = TypeVar("AnyView", bound=View)

CALL_TIMEOUT_S = 10.0
LONG_POLL_S = 20.0
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0

EXIT_BUG = 1
EXIT_REFUSED = 2
EXIT_REPLACED = 3


class Refused(Exception):
    """The service will not have this agent, and asking again would not help. `exit_code` is for the process."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Forgotten(Refused):
    """The service went back to a backup that was made before this agent registered: it has to register again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """No answer this time. `retry_after_s` is the service's wish, if it had one."""

    message: str
    retry_after_s: float = 0.0


class Backoff:
    """Growing delays between tries, jittered so that a thousand agents do not come back at once."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._failures = 0

    def reset(self) -> None:
        self._failures = 0

    def next_delay_s(self, answer: Unavailable, most_s: float = LONGEST_DELAY_S) -> float:
        """How long to wait after this failure, in s."""
        delay_s = FIRST_DELAY_S * 2 ** min(self._failures, 20)
        self._failures += 1
        return min(max(delay_s, answer.retry_after_s), most_s) * self._chance.uniform(0.5, 1.0)


class Exchange:
    """The service as one node sees it. Both calls answer with a value; only Refused is raised."""

    def __init__(self, server: str, token: str, *, trust: ssl.SSLContext | None = None) -> None:
        """`trust` says who vouches for the service; those that the system trusts if None."""
        self._client = httpx.Client(
            base_url=server,
            headers={"Authorization": f"Bearer {token}"},
            timeout=CALL_TIMEOUT_S,
            trust_env=not is_loopback(server),  # no proxy stands between a machine and itself
            verify=trust or True,
        )

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def register(self, report: NodeReport) -> RegisterResponse | Unavailable:
        """Present this node."""
        request = RegisterRequest(protocol=PROTOCOL_VERSION, report=report)
        return self._call("/v1/agent/register", request, RegisterResponse, CALL_TIMEOUT_S)

    def sync(self, request: SyncRequest) -> SyncResponse | Unavailable:
        """Say what this node observes, hear what it should hold."""
        return self._call("/v1/agent/sync", request, SyncResponse, CALL_TIMEOUT_S + request.wait_s)

    def _call(self, path: str, request: Message, answer: type[AnyView], timeout_s: float) -> AnyView | Unavailable:
        headers = {"Content-Type": "application/json"}
        try:
            # Without defaults: an older service refuses fields it does not know, and need not hear of them unless used.
            body = request.model_dump_json(exclude_defaults=True)
            response = self._client.post(path, content=body, headers=headers, timeout=timeout_s)
        except httpx.HTTPError as error:
            return Unavailable(message=str(error) or type(error).__name__)
        if response.is_success:
            try:
                return answer.read(response.content)
            except ValidationError as error:
                return Unavailable(message=f"the answer cannot be read: {error}")
        detail = _detail(response)
        if response.status_code == FORGOTTEN:
            raise Forgotten(EXIT_REPLACED, detail)
        if response.status_code in REFUSALS:
            exit_code, meaning = REFUSALS[response.status_code]
            raise Refused(exit_code, f"{meaning}: {detail}")
        return Unavailable(message=detail, retry_after_s=_retry_after_s(response))


FORGOTTEN = 410
REFUSALS = {
    401: (EXIT_REFUSED, "the service does not accept the node token; check --token-file"),
    403: (EXIT_REFUSED, "the service does not accept the node token; check --token-file"),
    409: (EXIT_REPLACED, "another agent has taken this node or one of its devices"),
    422: (
        EXIT_BUG,
        "the service cannot read what this agent sent: upgrade it if it is the older; else it is a bug of Ergon",
    ),
    426: (EXIT_REFUSED, "agent and service are of versions that do not understand each other; upgrade the older"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What the long poll heard: `answer` differs from `since`, the version it was parked with."""

    since: str
    answer: SyncResponse


class Doorbell(threading.Thread):
    """Parks in the long poll, and rings when the assignments change."""

    def __init__(self, exchange: Exchange, ring: Callable[[], None], chance: random.Random) -> None:
        super().__init__(name="doorbell", daemon=True)
        self.news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self.refused: Refused | None = None
        self._exchange = exchange
        self._ring = ring
        self._backoff = Backoff(chance)
        self._versions: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._closed = threading.Event()

    def begin(self, incarnation: int) -> None:
        """Begin to call as this incarnation of the node, or go on as it."""
        self._incarnation = incarnation
        self.refused = None
        if not self.is_alive():
            self.start()

    def close(self) -> None:
        """Call no more: a call after the agent's last one would announce the node again."""
        self._closed.set()
        self._versions.put("")

    def tell(self, version: str) -> None:
        """The agent holds this version now. After each ring the next poll waits for this."""
        self._versions.put(version)

    def run(self) -> None:
        version = self._versions.get()
        while not self._closed.is_set():
            version = self._latest(version)
            request = SyncRequest(
                protocol=PROTOCOL_VERSION, incarnation=self._incarnation, wait_s=LONG_POLL_S, version=version
            )
            try:
                answer = self._exchange.sync(request)
            except Refused as refused:
                if request.incarnation == self._incarnation:
                    self.refused = refused
                    self._ring()
                version = self._versions.get()
                continue
            if isinstance(answer, Unavailable):
                self._closed.wait(self._backoff.next_delay_s(answer))
                continue
            self._backoff.reset()
            since, version = version, self._latest(version)
            if answer.version != version:
                self.news.put(News(since=since, answer=answer))
                self._ring()
                version = self._versions.get()

    def _latest(self, version: str) -> str:
        """The newest version the agent told of, or `version` if it told of none since."""
        while True:
            try:
                version = self._versions.get_nowait()
            except queue.Empty:
                return version


def is_loopback(server: str) -> bool:
    host = urlsplit(server).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _detail(response: httpx.Response) -> str:
    try:
        return ErrorBody.read(response.content).detail
    except ValidationError:
        return f"HTTP status {response.status_code} from {response.url}"


def _retry_after_s(response: httpx.Response) -> float:
    """Seconds of the header `Retry-After`; a date in it counts as no wish."""
    try:
        return max(0.0, float(response.headers.get("Retry-After", 0)))
    except ValueError:
        return 0.0

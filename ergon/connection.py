"""HTTP to the service: authenticates, repeats what may be repeated, turns what is no answer into an error."""

import random
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Literal, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import ValidationError

from ergon.credentials import START_ONE, Credentials
from ergon.errors import (
    ErgonError,
    NotConfigured,
    NotFound,
    RequestRefused,
    Unauthorised,
    UnexpectedAnswer,
    Unreachable,
)
from protocol.base import View
from protocol.errors import ErrorBody
from protocol.version import PROTOCOL_HEADER, PROTOCOL_VERSION

ViewT = TypeVar("ViewT", bound=View)

Parameters = Mapping[str, str | int | bool | Sequence[str] | None]
"""A query. None leaves a parameter out; a sequence repeats it."""

TRIES = 5
PATIENT_TRIES = 12
"""Tries of a call that waits for a job anyway: about half a minute, enough for the service to restart."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
LONGEST_RETRY_AFTER_S = 30.0
"""A service that asks for more than this is not waited for."""

TIMEOUT = httpx.Timeout(20.0, connect=5.0)
LONG = httpx.Timeout(60.0, connect=5.0)
"""For archives: a store far away may take its time."""
BLOCK_BYTES = 1 << 20
STREAM_SILENCE_S = 60.0
"""A followed log carries a keep-alive line more often than this; a longer silence is a broken connection."""

UNKNOWN_ROUTE = frozenset({"urn:ergon:http-404", "urn:ergon:http-405"})
COME_BACK_LATER = frozenset({502, 503, 504})


class Connection:
    """One server, one identity. Safe to use from several threads.

    `transport` and `sleep` are for a caller that has its own HTTP transport or its own way to wait.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raises NotConfigured for an address or a token that HTTP cannot carry, or an unreadable certificate."""
        self.server = credentials.server.rstrip("/")
        self._sleep = sleep
        url = _address(self.server)
        headers = {
            "User-Agent": f"ergon/{metadata.version('ergon')}",
            "Accept": "application/json",
            PROTOCOL_HEADER: str(PROTOCOL_VERSION),
        }
        if credentials.token:
            headers["Authorization"] = f"Bearer {_token(credentials.token)}"
        # A proxy from the environment cannot reach this machine's own loopback.
        loopback = url.host in ("localhost", "::1") or url.host.startswith("127.")
        self._http = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=TIMEOUT,
            transport=transport,
            trust_env=not loopback,
            verify=_trusted(credentials.ca),
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, query: Parameters | None = None, *, tries: int = TRIES) -> httpx.Response:
        """The answer to a GET.

        Raises Unreachable, RequestRefused or UnexpectedAnswer.
        """
        return self._send(self._http.build_request("GET", path, params=_present(query or {})), tries)

    def post(self, path: str, body: str | None, *, key: str, tries: int = TRIES) -> httpx.Response:
        """The answer to a POST that carries `key` as its Idempotency-Key, so that repeating it changes nothing.

        Raises Unreachable, RequestRefused or UnexpectedAnswer.
        """
        request = self._request("POST", path, body)
        request.headers["Idempotency-Key"] = key
        try:
            return self._send(request, tries)
        except Unreachable as error:
            raise Unreachable(
                f"{error}. The request may have arrived; sending it again with key {key} is safe"
            ) from error

    def change(self, method: Literal["POST", "PATCH", "DELETE"], path: str, body: str | None = None) -> httpx.Response:
        """The answer to a request that may be repeated without an Idempotency-Key: twice does no more than once.

        Raises Unreachable, RequestRefused or UnexpectedAnswer.
        """
        return self._send(self._request(method, path, body), TRIES)

    def exists(self, path: str) -> bool:
        """Whether there is something.

        Raises Unreachable, RequestRefused or UnexpectedAnswer.
        """
        try:
            self._send(self._http.build_request("HEAD", path), TRIES)
        except UnexpectedAnswer as error:
            # An answer to HEAD has no body that could say why: what follows it will hear.
            if error.status is not None and error.status < 500:
                return False
            raise
        return True

    def put(self, path: str, body: bytes) -> None:
        """Store an archive. It may be repeated.

        Raises Unreachable, RequestRefused or UnexpectedAnswer.
        """
        headers = {"Content-Type": "application/gzip"}
        self._send(self._http.build_request("PUT", path, content=body, headers=headers, timeout=LONG), TRIES)

    def blocks(self, path: str, query: Parameters) -> Iterator[bytes]:
        """The body of an answer as it comes. Not repeated once it has begun.

        Raises Unreachable also when it breaks off; RequestRefused or UnexpectedAnswer before its first block.
        """
        try:
            with self._http.stream("GET", path, params=_present(query), timeout=LONG) as response:
                if not response.is_success:
                    response.read()
                    if response.status_code in COME_BACK_LATER:
                        raise Unreachable(self._busy(response))
                    raise self._refusal(response)
                yield from response.iter_bytes(BLOCK_BYTES)
        except httpx.TransportError as error:
            raise Unreachable(self._silent(error)) from error

    def lines(self, path: str, query: Parameters) -> Iterator[str]:
        """The lines of a streamed answer as they come, empty ones too. Not repeated: the caller knows where it was.

        Raises Unreachable also when the stream breaks off; RequestRefused or UnexpectedAnswer before its first line.
        """
        silence = httpx.Timeout(TIMEOUT.connect, read=STREAM_SILENCE_S)
        try:
            with self._http.stream("GET", path, params=_present(query), timeout=silence) as response:
                if not response.is_success:
                    response.read()
                    if response.status_code in COME_BACK_LATER:
                        raise Unreachable(self._busy(response))
                    raise self._refusal(response)
                yield from _lines(response.iter_bytes())
        except httpx.TransportError as error:
            raise Unreachable(self._silent(error)) from error

    def pause(self, failures: int) -> None:
        """Wait before the next try: longer after every failure, with jitter so that clients do not return together."""
        self._sleep(_backoff(failures))

    def _request(self, method: str, path: str, body: str | None) -> httpx.Request:
        headers = {} if body is None else {"Content-Type": "application/json"}
        return self._http.build_request(method, path, content=body, headers=headers)

    def _send(self, request: httpx.Request, tries: int) -> httpx.Response:
        failures = 0
        while True:
            failures += 1
            wait_s = _backoff(failures)
            try:
                response = self._http.send(request)
            except httpx.TransportError as error:
                problem = self._silent(error)
            else:
                if response.status_code not in COME_BACK_LATER:
                    if response.is_success:
                        return response
                    raise self._refusal(response)
                problem = self._busy(response)
                wait_s = max(wait_s, _retry_after(response))
            if failures >= tries or wait_s > LONGEST_RETRY_AFTER_S:
                raise Unreachable(problem)
            self._sleep(wait_s)

    def _silent(self, error: httpx.TransportError) -> str:
        reason = str(error) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            return (
                f"{self.server} is not known to be itself ({reason}); set ERGON_CA (an agent's --ca) to the file with "
                "the certificate that vouches for it"
            )
        return f"no answer from {self.server} ({reason}); is it running? Otherwise {START_ONE}"

    def _busy(self, response: httpx.Response) -> str:
        body = _error_body(response)
        detail = body.detail if body else f"it answered {response.status_code}"
        return f"{self.server} is not ready ({detail}); try again later"

    def _refusal(self, response: httpx.Response) -> Exception:
        status, body = response.status_code, _error_body(response)
        if body is None:
            return UnexpectedAnswer(
                f"{response.request.url} answered {status}, and not as Ergon does; check the server's address",
                status=status,
            )
        if status >= 500:
            return UnexpectedAnswer(f"the service failed: {body.detail}")
        if body.type in UNKNOWN_ROUTE:
            request = response.request
            return UnexpectedAnswer(
                f"{self.server} does not know {request.method} {request.url.path}: it is older than this client; "
                "upgrade the service, or install the client of its version"
            )
        if status in (401, 403):
            return Unauthorised(body, status)
        return NotFound(body, status) if status == 404 else RequestRefused(body, status)


def parse(view: type[ViewT], answer: httpx.Response | str) -> ViewT:
    """The answer as the view it should be. Raises UnexpectedAnswer if it is not."""
    try:
        return view.read(answer if isinstance(answer, str) else answer.content)
    except ValidationError as error:
        where = "" if isinstance(answer, str) else f"of {answer.request.url} "
        fault = error.errors(include_url=False)[0]
        field = ".".join(map(str, fault["loc"]))
        raise UnexpectedAnswer(
            f"the answer {where}is no {view.__name__} ({field}: {fault['msg']}); "
            "is it Ergon, and not older than this client?"
        ) from error


def fresh_key() -> str:
    """An Idempotency-Key that no other request has."""
    return str(uuid.uuid4())


def segment(name: str) -> str:
    """A name as one segment of a path. HTTP gives dots a meaning of their own.

    Raises ErgonError for a name that is empty or all dots.
    """
    if not name.strip("."):
        raise ErgonError(f"{name!r} is no id; `ergon jobs` and `ergon nodes` list them")
    return quote(name, safe="")


def _address(server: str) -> httpx.URL:
    remedy = "give one like http://127.0.0.1:8765"
    try:
        url, parts = httpx.URL(server), urlsplit(server)
        usable = url.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (httpx.InvalidURL, ValueError) as error:
        raise NotConfigured(f"{server!r} is not an address ({error}); {remedy}") from error
    if not usable:
        raise NotConfigured(f"{server!r} is not an address; {remedy}")
    return url


def _trusted(ca: str | None) -> ssl.SSLContext | bool:
    """What vouches for the server: the certificates in `ca` and no others, or the system's."""
    if ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ValueError) as error:
        raise NotConfigured(f"ERGON_CA or --ca {ca} cannot be used ({error}); name a certificate file (PEM)") from error


def _token(token: str) -> str:
    token = token.strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise NotConfigured("the token holds characters that no token has; copy it again, without line breaks")
    return token


def _lines(blocks: Iterator[bytes]) -> Iterator[str]:
    """Split at the newline only: JSON may hold the other characters that Unicode counts as line ends."""
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")


def _present(query: Parameters) -> dict[str, str | int | bool | Sequence[str]]:
    return {name: value for name, value in query.items() if value is not None}


def _backoff(failures: int) -> float:
    return min(FIRST_PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)


def _retry_after(response: httpx.Response) -> float:
    """The seconds of `Retry-After`. Its other form, a date, is ignored: two machines' clocks are not compared."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def _error_body(response: httpx.Response) -> ErrorBody | None:
    try:
        return ErrorBody.read(response.content)
    except ValidationError:
        return None

"""A real HTTP server in this process whose answers a test lays out, path by path."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from protocol.base import View
from protocol.errors import ErrorBody


@dataclass(slots=True, kw_only=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: str
    headers: dict[str, str]


@dataclass(slots=True)
class HttpService:
    """`answers` holds status and text by `METHOD /path`; a list is worked off, its last entry repeats."""

    url: str = ""
    answers: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    archives: dict[str, bytes] = field(default_factory=dict)
    """Code that was shipped, by digest."""
    hold: threading.Event | None = None
    """If set, a followed log is sent and then not ended before this event."""

    def answer(self, route: str, *views: View, status: int = 200) -> None:
        self.answers[route] = [(status, view.model_dump_json()) for view in views]

    def lines(self, route: str, *views: View) -> None:
        self.answers[route] = [(200, "".join(view.model_dump_json() + "\n" for view in views))]

    def refuse(self, route: str, status: int, kind: str, detail: str) -> None:
        self.answer(route, ErrorBody(type=f"urn:ergon:{kind}", title="t", status=status, detail=detail), status=status)


@contextlib.contextmanager
def http_service() -> Iterator[HttpService]:
    """A server on a free port of the loopback."""
    service = HttpService()

    class Call(BaseHTTPRequestHandler):
        def answer(self) -> None:
            parts = urlsplit(self.path)
            if parts.path.startswith("/v1/archives/"):
                self.take_archive(parts.path.rpartition("/")[2])
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            service.asked.append(
                Asked(
                    method=self.command,
                    path=parts.path,
                    query=parse_qs(parts.query),
                    body=body,
                    headers=dict(self.headers.items()),
                )
            )
            known = service.answers.get(f"{self.command} {parts.path}", [(404, "")])
            status, text = known.pop(0) if len(known) > 1 else known[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())
            if service.hold and "follow=true" in parts.query:
                self.wfile.flush()
                service.hold.wait()

        def take_archive(self, digest: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command == "PUT":
                service.archives[digest] = body
            self.send_response(204 if digest in service.archives else 404)
            self.end_headers()

        do_HEAD = do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Call) as server:
        service.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield service
        finally:
            if service.hold:
                service.hold.set()
            server.shutdown()
            thread.join()

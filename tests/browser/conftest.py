"""A real Chromium before a real service: uvicorn over PostgreSQL, in the cluster's virtual time."""

import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, expect, sync_playwright
from sqlalchemy import Engine

from protocol.states import Role
from service.api.app import create_app
from service.api.deps import Parts
from service.api.hub import Hub
from service.db import Listener
from service.settings import Settings
from service.tariff_source import TariffSource
from service.web.session import COOKIE
from tests.service.cluster import Cluster

MISSING = "no Chromium: `apt-get install chromium`, or name one in ERGON_CHROMIUM"
ARGUMENTS = [
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

expect.set_options(timeout=30_000)

EVENTS_ONLY = """
  const real = window.setTimeout;
  window.setTimeout = (run, delay, ...rest) => delay > 5000 ? 0 : real(run, 0, ...rest);
"""
"""No page asks by itself after a while: what shows was told by an event. And none waits between two of them."""


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One Chromium for this folder only: while it is there, its event loop occupies the thread that runs the tests."""
    program = os.environ.get("ERGON_CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.skip(MISSING)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass(kw_only=True)
class Site:
    """The service that listens at `url`, and the cluster behind it."""

    url: str
    cluster: Cluster
    hub: Hub


@pytest.fixture
def site(engine: Engine, database_url: str, tmp_path: Path) -> Iterator[Site]:
    settings = Settings(data_dir=tmp_path, lease_s=60.0, max_attempts=3)
    cluster, hub = Cluster(engine=engine, settings=settings), Hub()
    parts = Parts(
        engine=engine,
        settings=settings,
        tariffs=TariffSource(settings),
        hub=hub,
        now=lambda: cluster.now,
        new_id=cluster.new_id,
    )
    listening = socket.create_server(("127.0.0.1", 0))
    app = create_app(parts, Listener(database_url, hub.heard))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield Site(url=f"http://127.0.0.1:{listening.getsockname()[1]}", cluster=cluster, hub=hub)
    hub.close_soon()
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive(), "a stream keeps the service from stopping"


@dataclass(kw_only=True)
class Visit:
    """One page of a browser of its own. `problems` are what no page of ours may ever do."""

    page: Page
    site: Site
    confirms: bool | None = None
    """The answer to the questions the page asks; without one a question is a problem."""
    problems: list[str] = field(default_factory=list)

    def go(self, address: str) -> Page:
        self.page.goto(self.site.url + address)
        return self.page

    def hear(self, message: ConsoleMessage) -> None:
        """A script that the policy stops shows here; so does an answer with status 4xx, which may be wanted."""
        if message.type in {"error", "warning"} and not message.text.startswith("Failed to load resource"):
            self.problems.append(message.text)

    def answer(self, dialog: Dialog) -> None:
        if self.confirms is None:
            self.problems.append(f"a dialog opened: {dialog.message}")
        if self.confirms:
            dialog.accept()
        else:
            dialog.dismiss()


Open = Callable[..., Visit]


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Open]:
    """Open a browser for a person who is signed in, or for a stranger. At the end no page may have misbehaved."""
    visits: list[Visit] = []
    contexts: list[BrowserContext] = []

    def open_page(name: str | None = "root", *, script: str = "", **options: Any) -> Visit:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(30_000)
        if name is not None:
            site.cluster.person(name, Role.ADMIN if name == "root" else Role.USER)
            cookie = {"name": COOKIE, "value": site.cluster.tokens[name], "url": site.url}
            context.add_cookies([{**cookie, "httpOnly": True, "sameSite": "Strict"}])  # type: ignore[list-item]
        if script:
            context.add_init_script(script)
        opened = Visit(page=context.new_page(), site=site)
        opened.page.on("console", opened.hear)
        opened.page.on("pageerror", lambda error: opened.problems.append(str(error)))
        opened.page.on("dialog", opened.answer)
        opened.page.on(
            "request",
            lambda request: None if request.url.startswith(site.url) else opened.problems.append(request.url),
        )
        visits.append(opened)
        return opened

    yield open_page
    for context in contexts:
        context.close()
    assert [problem for opened in visits for problem in opened.problems] == []

"""Fixtures of the service's tests: the use cases in virtual time, and the API in process over them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from protocol.states import Role
from service.api.app import create_app
from service.api.deps import Parts
from service.api.hub import Hub
from service.settings import Settings
from service.tariff_source import TariffSource
from service.web.session import COOKIE
from tests.service.cluster import Cluster


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, lease_s=60.0, max_attempts=3)


@pytest.fixture
def cluster(engine: Engine, settings: Settings) -> Cluster:
    return Cluster(engine=engine, settings=settings)


@pytest.fixture
def three(cluster: Cluster) -> Cluster:
    """Three nodes of one device."""
    cluster.lead()
    for name in ("n1", "n2", "n3"):
        cluster.join(name, slots=1, kind="t4")
    return cluster


@pytest.fixture
def app(cluster: Cluster) -> FastAPI:
    parts = Parts(
        engine=cluster.engine,
        settings=cluster.settings,
        tariffs=TariffSource(cluster.settings),
        hub=Hub(),
        now=lambda: cluster.now,
        new_id=cluster.new_id,
    )
    return create_app(parts)


@pytest.fixture
def client(app: FastAPI, cluster: Cluster) -> Iterator[TestClient]:
    """The API in process, with alice's token."""
    cluster.person("alice")
    with TestClient(app, "http://127.0.0.1", headers=bearer(cluster.tokens["alice"])) as client:
        yield client


@pytest.fixture
def as_bob(cluster: Cluster) -> dict[str, str]:
    """Headers of another user."""
    cluster.person("bob")
    return bearer(cluster.tokens["bob"])


@pytest.fixture
def as_root(cluster: Cluster) -> dict[str, str]:
    """Headers of an administrator."""
    cluster.person("root", Role.ADMIN)
    return bearer(cluster.tokens["root"])


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


ORIGIN = "http://127.0.0.1"
OWN_FORM = {"Origin": ORIGIN}
"""What a browser sends along with a form of one of our own pages."""

SignIn = Callable[[str], TestClient]


@pytest.fixture
def sign_in(app: FastAPI, cluster: Cluster) -> Iterator[SignIn]:
    """A browser of its own for each person, with the cookie of that person's token; `root` is an administrator."""
    clients: list[TestClient] = []

    def browser(name: str) -> TestClient:
        cluster.person(name, Role.ADMIN if name == "root" else Role.USER)
        client = stranger(app)
        client.cookies.set(COOKIE, cluster.tokens[name], domain="127.0.0.1")
        clients.append(client)
        return client

    yield browser
    for client in clients:
        client.close()


def stranger(app: FastAPI) -> TestClient:
    return TestClient(app, ORIGIN, follow_redirects=False)


@pytest.fixture
def origin(database_url: str, tmp_path: Path) -> Settings:
    """A service that is backed up."""
    return Settings(data_dir=tmp_path / "a", database_url=database_url, store_url=str(tmp_path / "store-a"))


@pytest.fixture
def target(empty_url: str, tmp_path: Path) -> Settings:
    """Where its backup is restored."""
    return Settings(data_dir=tmp_path / "b", database_url=empty_url, store_url=str(tmp_path / "store-b"))

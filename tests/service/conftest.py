"""Fixtures of the service's tests: the use cases in virtual time, and the API in process over them."""

from collections.abc import Iterator
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
from tests.service.cluster import Cluster


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, lease_s=60.0, max_attempts=3)


@pytest.fixture
def cluster(engine: Engine, settings: Settings) -> Cluster:
    return Cluster(engine=engine, settings=settings)


@pytest.fixture
def app(cluster: Cluster) -> FastAPI:
    parts = Parts(
        engine=cluster.engine,
        settings=cluster.settings,
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

"""A whole cluster of real processes, as `ergon up` starts it, shared by the tests of this folder."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ergon.cli.local import LocalCluster, LocalSettings, local_cluster
from ergon.client import Client
from protocol.states import Role


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """Database, API, cycle and two agents with two CPU slots each."""
    with tempfile.TemporaryDirectory(prefix="ergon-test-") as name:
        Path(name).chmod(0o711)
        settings = LocalSettings(
            data_dir=Path(name) / "data", port=0, agents=2, slots_per_agent=2, environment=dict(os.environ)
        )
        with local_cluster(settings) as running:
            yield running


@pytest.fixture(scope="session")
def admin(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster.url, cluster.user_token("root", Role.ADMIN)) as client:
        yield client


@pytest.fixture(scope="session")
def alice(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster.url, cluster.user_token("alice", Role.USER)) as client:
        yield client

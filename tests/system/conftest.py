"""A whole cluster of real processes, as `ergon up` starts it, shared by the tests of this folder."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ergon.cli.local import LocalCluster, LocalSettings, local_cluster
from ergon.client import Client
from protocol.states import Role
from tests import podman


@pytest.fixture(scope="session")
def cluster(container_setup: podman.Setup) -> Iterator[LocalCluster]:
    """Database, API, cycle and two agents with two CPU slots each."""
    with tempfile.TemporaryDirectory(prefix="ergon-test-") as name:
        Path(name).chmod(0o711)
        settings = LocalSettings(
            data_dir=Path(name) / "data",
            port=0,
            agents=2,
            slots_per_agent=2,
            environment={**os.environ, **container_setup.environment},
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


@pytest.fixture
def ergon(cluster: LocalCluster, tmp_path: Path):
    """Runs the command as a user does, in the directory `code`; gives exit code, standard output and error."""
    token = cluster.user_token("carol", Role.USER)
    (tmp_path / "code").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ERGON_")}
    environment |= {"ERGON_SERVER": cluster.url, "ERGON_TOKEN": token}

    def run(*words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-P", "-c", "import sys; from ergon.cli.main import main; sys.exit(main())", *words]
        done = subprocess.run(
            command, cwd=tmp_path / "code", env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def carol(cluster: LocalCluster):
    with Client(cluster.url, cluster.user_token("carol", Role.USER)) as client:
        yield client

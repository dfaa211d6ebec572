"""Two machines, as far as one can play two: each agent in a network namespace with its own address, joined by join
token over TLS, and one gang training across the wire between them.
"""

import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ergon.cli.processes import Family
from ergon.client import Client
from ergon.errors import Unreachable
from protocol.jobs import JobSpec, Recipe
from protocol.states import JobState, NodeState
from tests.netns import Bridge, bridge, run

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the command `ip` (package iproute2)"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs `openssl` to make a certificate"),
]

READY_S = 120.0


@pytest.fixture(scope="module")
def network() -> Iterator[Bridge]:
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(bridge())
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network interfaces can be made here: {error.stderr.strip()}")
        yield made


@pytest.fixture(scope="module")
def machines(network: Bridge) -> Iterator[list[str]]:
    """Two namespaces on a bridge, on which the service has an address."""
    with network.machine(1) as first, network.machine(2) as second:
        yield [first, second]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ergon-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture(scope="module")
def certificate(folder: Path, network: Bridge) -> tuple[Path, Path]:
    """A certificate for the service that vouches for itself, and its key."""
    certificate, key = folder / "tls.crt", folder / "tls.key"
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=ergon-test"),
        *("-addext", f"subjectAltName=IP:{network.address}"),
    )
    return certificate, key


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", module, *arguments]


@pytest.fixture(scope="module")
def family(folder: Path, network: Bridge, certificate: tuple[Path, Path]) -> Iterator[Family]:
    """Where the processes of this cluster are started and, however the tests end, stopped."""
    logs = folder / "log"
    logs.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ERGON_")}
    environment |= {
        "ERGON_DATA_DIR": str(folder / "data"),
        "ERGON_HOST": network.address,
        "ERGON_PORT": "0",
        "ERGON_TLS_CERT": str(certificate[0]),
        "ERGON_TLS_KEY": str(certificate[1]),
    }
    with Family(environment=environment, folder=folder, logs=logs, grace_s=45.0) as family:
        yield family


@pytest.fixture(scope="module")
def admin(network: Bridge, family: Family, certificate: tuple[Path, Path]) -> Iterator[Client]:
    """The service without any agent, and its first administrator."""
    [database] = family.start({"database": python("service", "database")})
    database.wait_ready(READY_S)
    [api, cycle] = family.start({"api": python("service", "api"), "cycle": python("service", "cycle")})
    url = str(api.wait_ready(READY_S)["url"])
    cycle.wait_ready(READY_S)
    assert url.startswith(f"https://{network.address}:")
    command = python("service", "token", "user", "root", "--role", "admin")
    token = subprocess.run(
        command, env=dict(family.environment), cwd=family.folder, check=True, capture_output=True, text=True
    )
    with Client(url, token.stdout.strip(), ca=str(certificate[0])) as client:
        yield client


def agent(machine: str, admin: Client, certificate: Path, folder: Path, join_token: str | None) -> list[str]:
    """The command line of the agent on this machine; without a join token as it starts when it has joined before."""
    state = folder / machine
    joining = ("--server", admin.server, "--join-token", join_token, "--name", machine) if join_token else ()
    return [
        *("ip", "netns", "exec", machine, str(Path(sys.executable).with_name("ergon")), "agent", *joining),
        *("--state-dir", str(state), "--ca", str(certificate), "--cpu-slots", f"{machine[-1]}-{machine[-1]}"),
        *("--interface", "eth0"),
    ]


def test_a_gang_trains_across_two_machines_that_joined_by_token(
    network: Bridge,
    machines: list[str],
    admin: Client,
    family: Family,
    certificate: tuple[Path, Path],
    folder: Path,
) -> None:
    joining = {
        machine: agent(machine, admin, certificate[0], folder, admin.accounts.new_join_token(node=machine).token)
        for machine in machines
    }
    children = family.start(joining)
    for child in children:
        child.wait_ready(READY_S)
    assert {node.name: node.address for node in admin.nodes()} == {
        machine: f"{network.network}.1{number}" for number, machine in enumerate(machines, start=1)
    }
    for machine in machines:
        credential = folder / machine / "token"
        assert credential.stat().st_mode & 0o777 == 0o600

    recipe = Recipe(name="digits-mlp", options={"min_accuracy": 0.95})
    job = admin.wait(admin.submit(JobSpec(name="digits", nodes=2, device_kinds=["cpu"], recipe=recipe)).id)
    output = "".join(piece.text for piece in admin.logs(job.id))
    assert job.state == JobState.SUCCEEDED, output
    assert {member.node for member in job.attempts[-1].members} == set(machines)

    look = "import os; print(*(os.environ[n] for n in ('MASTER_ADDR', 'GLOO_SOCKET_IFNAME', 'NCCL_SOCKET_IFNAME')))"
    job = admin.wait(admin.submit(JobSpec(nodes=2, device_kinds=["cpu"], command=[sys.executable, "-c", look])).id)
    said = "".join(piece.text for piece in admin.logs(job.id)).splitlines()
    assert job.state == JobState.SUCCEEDED
    first = next(member.node for member in job.attempts[-1].members)
    assert said == [f"{network.network}.1{first[-1]} eth0 =eth0"] * 2

    # A machine that has joined starts again with nothing but its state folder.
    children[0].ask_to_stop()
    assert select.select([children[0]], [], [], READY_S)[0]
    left = admin.node(machines[0])
    assert left.state == NodeState.LOST, "an agent that holds nothing says that it leaves"
    [again] = family.start({f"{machines[0]}-again": agent(machines[0], admin, certificate[0], folder, None)})
    again.wait_ready(READY_S)
    node = admin.node(machines[0])
    assert node.state == NodeState.READY
    assert node.incarnation > left.incarnation


def test_without_a_certificate_the_service_does_not_listen_on_a_network(machines: list[str], family: Family) -> None:
    bare = {name: value for name, value in family.environment.items() if not name.startswith("ERGON_TLS")}
    refused = subprocess.run(
        python("service", "api"), env=bare, cwd=family.folder, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "set ERGON_TLS_CERT and ERGON_TLS_KEY, or listen on 127.0.0.1, or set ERGON_INSECURE=1" in refused.stderr


def test_nobody_is_believed_without_the_certificate(admin: Client) -> None:
    with (
        Client(admin.server, "secret", sleep=lambda _: None) as client,
        pytest.raises(Unreachable, match=r"is not known to be itself .*; set ERGON_CA"),
    ):
        client.version()

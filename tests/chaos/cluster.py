"""A cluster of real processes that may be killed, frozen and started again one by one."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from service.postgres import url_of
from tests.chaos.clocks import set_clock, with_clock
from tests.chaos.forwarder import Forwarder
from tests.netns import Bridge, run

READY_S = 180.0
RESTARTS = 60
SLOTS = 2
"""Devices of each node."""
LEASE_S = 12.0
DISK_BYTES = 48 << 20
"""Of each node's folder: small enough to be filled at once."""


class Process:
    """One of our processes, by a name that stays when it is started again."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.environment = dict(environment)
        self._arguments = arguments
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "start() first"
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def start_again(self) -> None:
        """As systemd does: over and over, since nothing starts while the database is down. Raises RuntimeError."""
        for left in range(RESTARTS, -1, -1):
            try:
                self.start()
                return
            except RuntimeError:
                if not left:
                    raise
            threading.Event().wait(1.0)

    def start(self) -> dict[str, object]:
        """Returns what it says once it is ready. Raises RuntimeError if it ends or takes too long."""
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments,
                env=self.environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], READY_S)[0]:
            raise RuntimeError(f"{self.name} was not ready in time")
        line = self._process.stdout.readline()
        self._process.stdout.close()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}; see its log")
        return json.loads(line)

    def send(self, number: signal.Signals) -> None:
        if not self.ended:
            os.kill(self.pid, number)

    def end(self, number: signal.Signals) -> None:
        """Returns when it is gone."""
        self.send(number)
        if self._process is not None:
            self._process.wait()


@dataclass(kw_only=True)
class Cluster:
    """`url` is the address that clients and agents know: the forwarder's, which knows both APIs."""

    folder: Path
    bridge: Bridge
    database: Process
    apis: list[Process]
    cycles: list[Process]
    forwarder: Forwarder
    agents: list[Process] = field(default_factory=list)
    namespaces: list[int] = field(default_factory=list)
    """Of each agent's machine: the inode that its processes share."""

    @property
    def url(self) -> str:
        return f"http://{self.bridge.address}:{self.forwarder.port}"

    @property
    def postmaster(self) -> int:
        """Process id of PostgreSQL."""
        return int((self.folder / "data" / "postgres" / "data" / "postmaster.pid").read_text().split()[0])

    @property
    def database_url(self) -> str:
        return url_of(self.folder / "data")

    def state_of(self, node: int) -> Path:
        return self.folder / f"node-{node + 1}"

    def jump(self, name: str, seconds: float) -> None:
        """Set a process's wall clock, and its children's: so far from the true time, of which 0 is the end."""
        set_clock(self.folder / f"{name}.clock", seconds)

    def everything(self) -> list[Process]:
        return [*self.agents, *self.cycles, *self.apis, self.database]


@contextlib.contextmanager
def cluster(folder: Path, bridge: Bridge, nodes: int) -> Iterator[Cluster]:
    """Everything is running inside, and gone afterwards, the database's files excepted."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ERGON_")}
    environment |= {
        "ERGON_DATA_DIR": str(folder / "data"),
        "ERGON_HOST": bridge.address,
        "ERGON_PORT": "0",
        "ERGON_INSECURE": "1",
        "ERGON_LEASE_S": str(LEASE_S),
        "ERGON_TICK_S": "2",
        "ERGON_STOP_GRACE_S": "1",
        "ERGON_MAX_ATTEMPTS": "1000",
    }
    kinds = ("database", "api", "api", "cycle", "cycle")
    made = [
        Process(name, _python("service", kind), environment | with_clock(folder / f"{name}.clock"), folder)
        for number, kind in enumerate(kinds)
        for name in [f"{kind}-{number}"]
    ]
    running: list[Process] = made
    try:
        for process in made:
            said = process.start()
            if address := said.get("url"):
                process.environment["ERGON_PORT"] = str(address).rstrip("/").rpartition(":")[2]
        ports = [int(api.environment["ERGON_PORT"]) for api in made[1:3]]
        forwarder = Forwarder(bridge.address, [(bridge.address, port) for port in ports])
        whole = Cluster(
            folder=folder,
            bridge=bridge,
            database=made[0],
            apis=made[1:3],
            cycles=made[3:],
            forwarder=forwarder,
        )
        with contextlib.ExitStack() as machines:
            for node in range(nodes):
                machine = machines.enter_context(bridge.machine(node + 1))
                agent = _agent(whole, node, machine, machines, environment)
                running = [agent, *running]
                agent.start()
                whole.agents.append(agent)
                whole.namespaces.append(os.stat(f"/run/netns/{machine}").st_ino)
            try:
                yield whole
            finally:
                for agent in whole.agents:
                    agent.end(signal.SIGKILL)
                for namespace in whole.namespaces:
                    for process in processes_of(namespace):
                        process.kill()
    finally:
        for process in running:
            process.send(signal.SIGCONT)
            process.end(signal.SIGTERM if process is made[0] else signal.SIGKILL)


def token(folder: Path, environment: Mapping[str, str], *arguments: str) -> str:
    """Made by the service's own command."""
    command = _python("service", "token", *arguments)
    made = subprocess.run(command, env=dict(environment), cwd=folder, check=True, capture_output=True, text=True)
    return made.stdout.strip()


def processes_of(namespace: int) -> list[psutil.Process]:
    """Whatever runs on a node."""
    return [process for process in psutil.process_iter() if _namespace(process.pid) == namespace]


def _agent(
    whole: Cluster, node: int, machine: str, mounts: contextlib.ExitStack, environment: Mapping[str, str]
) -> Process:
    """An agent in its machine, with a disk of its own."""
    name, state = f"node-{node + 1}", whole.state_of(node)
    state.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=711", "ergon-chaos", str(state))
    mounts.callback(run, "umount", "--lazy", str(state))
    token_file = whole.folder / f"{name}.token"
    token_file.write_text(token(whole.folder, environment, "node", name))
    token_file.chmod(0o600)
    command = [
        "nsenter",
        f"--net=/run/netns/{machine}",  # `ip netns exec` would hide the control groups
        *_python("workers", "--server", whole.url, "--name", name, "--token-file", str(token_file)),
        *(
            "--state-dir",
            str(state),
            "--cpu-slots",
            f"{node * SLOTS}-{node * SLOTS + SLOTS - 1}",
            "--interface",
            "eth0",
        ),
    ]
    own = {name: value for name, value in environment.items() if not name.startswith("ERGON_")}
    return Process(name, command, own | with_clock(whole.folder / f"{name}.clock"), whole.folder)


def _namespace(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", module, *arguments]

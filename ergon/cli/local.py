"""A whole cluster on this machine: database, API, planning cycle and agents, each a process of its own."""

import contextlib
import errno
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ergon.cli.processes import Family, ProcessFailed
from ergon.cli.switch import Switchboard, write_pools
from ergon.errors import ErgonError
from protocol.environment import CLIENT_VARIABLES, RANK_VARIABLES
from protocol.states import Role

DATABASE_READY_S = 180.0
"""A database that was killed replays its log first; the service gives it 120 s."""
READY_S = 60.0
COMMAND_S = 120.0
STOP_S = 45.0
"""Longer than the 30 s that the service gives its database."""
FILE_VARIABLES = ("ERGON_TLS_CERT", "ERGON_TLS_KEY", "ERGON_CA", "ERGON_POWER_POOLS", "ERGON_POWER_BUDGETS")
"""They name files."""


class LocalClusterError(ErgonError):
    """The local cluster cannot be started here. The message names the cause and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """`port` 0 takes a free one. `environment` is handed to every process, less the variables that are not theirs.

    Agents that are idle for `switch_off_idle_s` are stopped, and started again when jobs need them; None stops none.
    """

    data_dir: Path
    port: int
    agents: int
    slots_per_agent: int
    environment: Mapping[str, str] = field(repr=False)
    switch_off_idle_s: float | None = None


def default_data_dir(environment: Mapping[str, str]) -> Path:
    """`$ERGON_DATA_DIR`, else /var/lib/ergon for root and the user's own data folder for everyone else."""
    if folder := environment.get("ERGON_DATA_DIR"):
        return Path(folder)
    if os.geteuid() == 0:
        return Path("/var/lib/ergon")
    home = environment.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "ergon"


class LocalCluster:
    """A cluster that runs. `url` is the address of its API."""

    def __init__(self, family: Family, url: str, switchboard: Switchboard | None = None) -> None:
        self.url = url
        self._family = family
        self._switchboard = switchboard

    def user_token(self, user: str, role: Role) -> str:
        """A fresh token of a person, who is created if there is none of that name.

        Raises ProcessFailed if the service refuses.
        """
        return _service(self._family, "token", "user", user, "--role", role.value).strip()

    def check(self) -> None:
        """Raises ProcessFailed if a process of the cluster has ended."""
        self._family.check()

    def wait_for_a_death(self) -> None:
        """Block as long as everything runs, and switch agents as the service asks. Raises ProcessFailed when a process
        ends by itself.
        """
        if self._switchboard is None:
            self._family.wait_for_a_death()
            return
        while True:
            self._family.wait_for_a_death(self._switchboard)
            self._switchboard.answer()


@contextlib.contextmanager
def local_cluster(settings: LocalSettings) -> Iterator[LocalCluster]:
    """Start everything, agents last, and stop it in reverse order on the way out, however that comes.

    Raises LocalClusterError if the folder or the port is in use or cannot be used, ProcessFailed if a process ends or
    is not ready in time.
    """
    data_dir = settings.data_dir.absolute()
    logs = _prepare(data_dir)
    with _sole_use(data_dir):
        environment = _environment(settings, data_dir)
        _check_port(environment["ERGON_HOST"], settings.port)
        with Family(environment=environment, folder=data_dir, logs=logs, grace_s=STOP_S) as family:
            names = node_names(settings.agents)
            url, tokens = _start_service(family, names)
            commands = _agents(family, url, settings, dict(zip(names, tokens, strict=True)))
            agents = family.start(commands)
            for agent in agents:
                agent.wait_ready(READY_S)
            if settings.switch_off_idle_s is None:
                yield LocalCluster(family, url)
                return
            with Switchboard(data_dir, family, commands, agents) as switchboard:
                yield LocalCluster(family, url, switchboard)


def _start_service(family: Family, nodes: list[str]) -> tuple[str, list[str]]:
    """Start the database, the API and the planning cycle; the address of the API, and a fresh token for each node."""
    if family.environment.get("ERGON_DATABASE_URL"):
        _service(family, "migrate")
    else:
        [database] = family.start({"database": _python("service", "database")})
        database.wait_ready(DATABASE_READY_S)
    [api] = family.start({"api": _python("service", "api")})
    [cycle] = family.start({"cycle": _python("service", "cycle")})
    tokens = _service(family, "token", "node", *nodes).split() if nodes else []
    url = str(api.wait_ready(READY_S)["url"]).rstrip("/")
    cycle.wait_ready(READY_S)
    return url, tokens


def _agents(family: Family, url: str, settings: LocalSettings, tokens: Mapping[str, str]) -> dict[str, list[str]]:
    """The command of each agent. A device belongs to one node: no two share a slot, and the first has the GPUs."""
    commands: dict[str, list[str]] = {}
    for number, (name, token) in enumerate(tokens.items()):
        first = number * settings.slots_per_agent
        slots = f"{first}-{first + settings.slots_per_agent - 1}"
        commands[name] = _agent(family, url, name, token, slots) + (["--no-gpus"] if number else [])
    return commands


def node_names(agents: int) -> list[str]:
    """The names of the local nodes."""
    return [f"node-{number}" for number in range(1, agents + 1)]


def _agent(family: Family, url: str, name: str, token: str, slots: str) -> list[str]:
    """The command line of an agent, with a folder of its own and its token in it."""
    state = family.folder / "agents" / name
    state.mkdir(mode=0o711, parents=True, exist_ok=True)
    checkpoints = family.folder / "checkpoints"
    checkpoints.mkdir(mode=0o700, exist_ok=True)
    token_file = state / "token"
    token_file.unlink(missing_ok=True)
    with os.fdopen(os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token + "\n")
    return _python(
        "workers",
        *("--server", url, "--name", name, "--token-file", str(token_file), "--state-dir", str(state)),
        *("--cpu-slots", slots, "--stop-attempts-on-exit", "--checkpoint-dir", str(checkpoints)),
    )


def _python(module: str, *arguments: str) -> list[str]:
    """`-P`: no file of the folder we start from may pass for a module."""
    return [sys.executable, "-P", "-m", module, *arguments]


def _service(family: Family, *arguments: str) -> str:
    """Run a command of the service to its end; what it printed. Its log is named after it."""
    log = family.logs / f"{arguments[0]}.log"
    what = f"`service {' '.join(arguments)}`"
    with log.open("wb") as errors:
        try:
            done = subprocess.run(
                _python("service", *arguments),
                env=dict(family.environment),
                cwd=family.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                timeout=COMMAND_S,
                text=True,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ProcessFailed(f"{what} took longer than {COMMAND_S:g} s", log) from error
    if done.returncode != 0:
        raise ProcessFailed(f"{what} ended with code {done.returncode}", log)
    return done.stdout


def _environment(settings: LocalSettings, data_dir: Path) -> dict[str, str]:
    """Ours, with the place of this cluster, and without the caller's own credentials."""
    theirs = {
        name: value
        for name, value in settings.environment.items()
        if name not in CLIENT_VARIABLES and name not in RANK_VARIABLES
    }
    # The caller names files from where the caller is; our processes are started elsewhere.
    files = {name: str(Path(theirs[name]).absolute()) for name in FILE_VARIABLES if theirs.get(name)}
    if settings.switch_off_idle_s is not None and not theirs.get("ERGON_POWER_POOLS"):
        pools = data_dir / "power-pools.toml"
        write_pools(pools, data_dir, idle_s=settings.switch_off_idle_s)
        files["ERGON_POWER_POOLS"] = str(pools)
    host = theirs.get("ERGON_HOST") or "127.0.0.1"
    return theirs | files | {"ERGON_DATA_DIR": str(data_dir), "ERGON_HOST": host, "ERGON_PORT": str(settings.port)}


def _prepare(data_dir: Path) -> Path:
    """Make the data folder and its folder for logs; the latter.

    The data folder is open for passing through (0711): when root starts us, the database runs as another user.
    """
    logs = data_dir / "log"
    try:
        data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        logs.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise LocalClusterError(
            f"{error.filename} cannot be used ({error.strerror}); choose another folder with --data-dir"
        ) from error
    return logs


@contextlib.contextmanager
def _sole_use(data_dir: Path) -> Iterator[None]:
    with (data_dir / "up.lock").open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip()
            raise LocalClusterError(
                f"another local cluster (process {holder}) uses {data_dir}; stop it, or choose another --data-dir"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _check_port(host: str, port: int) -> None:
    """Say in one line what would otherwise be found in a log."""
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(address[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address[4])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise LocalClusterError(
                f"port {port} is taken; choose another with --port, or --port 0 for a free one"
            ) from error
        raise LocalClusterError(
            f"cannot listen on {host} port {port} ({error.strerror}); choose another ERGON_HOST or --port"
        ) from error

"""Do what `docker compose up --build` does, without an engine: `make check-image`.

The steps of the Dockerfile are run in a scratch folder and a clean virtual environment, with only the files that are
sent to the engine; then what the compose file starts is started, in its order, as plain processes: PostgreSQL is the
one of the wheel, names of hosts are 127.0.0.1, volumes are folders. Health checks are run as they stand. One job over
both agents has to succeed, and its output has to lie on the volume for it.

Not shown by this: the base image and its Python, the image's user, the networks, volumes and restarts of an engine.
"""

import contextlib
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from ergon.cli.processes import Child, ProcessFailed
from ergon.client import Client
from protocol.jobs import JobSpec
from protocol.states import JobState
from service.postgres import EmbeddedPostgres, program
from tests.deploy.containers import (
    IMAGE,
    PASSWORD,
    ROOT,
    command_of,
    compose,
    copies,
    environment_of,
    instructions,
    is_sent,
    last,
    mounts,
    ours,
    services,
)

STOP_S = 45.0
SECRET = secrets.token_hex(16)
SCRIPT = """
import os, torch, torch.distributed
torch.distributed.init_process_group("gloo")
total = torch.ones(1)
torch.distributed.all_reduce(total)
with open(os.path.join(os.environ["ERGON_OUTPUT"], "ranks"), "w") as file:
    file.write(str(int(total)))
torch.distributed.destroy_process_group()
"""


class CheckFailed(Exception):
    """What a container would have met as well."""


def say(text: str) -> None:
    """One line of what is being done."""
    print(text, flush=True)


@dataclass(frozen=True, slots=True)
class Scratch:
    """Where the image and the volumes are played, and the port that the API has instead of its own."""

    folder: Path
    port: int

    @property
    def programs(self) -> Path:
        """Where the image's `python` and `pip` are."""
        return self.folder / "venv" / "bin"

    def volume(self, name: str) -> Path:
        """The folder that stands for a volume."""
        return self.folder / "volumes" / name

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """What a container finds set, and nothing of ours."""
        return {"PATH": f"{self.programs}{os.pathsep}{os.defpath}", "HOME": str(self.folder), **more}


def build(scratch: Scratch) -> None:
    """The steps of the Dockerfile that do not need a file system of their own."""
    subprocess.run([sys.executable, "-m", "venv", scratch.programs.parent], check=True)
    tree = scratch.folder / "image"
    for copy in copies():
        for source in copy.sources:
            _copy(source, tree / (source if copy.target == "./" else copy.target))
    for name, command in instructions():
        if name == "RUN" and command.startswith("pip "):
            say(f"RUN {command}")
            package_index = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
            subprocess.run(command, shell=True, cwd=tree, env=scratch.environment(package_index), check=True)
    shutil.rmtree(tree)  # what runs has to be what was installed


def _copy(source: str, target: Path) -> None:
    if (ROOT / source).is_dir():
        for path in sorted((ROOT / source).rglob("*")):
            within = path.relative_to(ROOT / source)
            if path.is_file() and is_sent(f"{source}/{within.as_posix()}"):
                _copy(f"{source}/{within.as_posix()}", target / within)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / source, target)


class Started:
    """What the compose file starts, as plain processes."""

    def __init__(self, scratch: Scratch, database: EmbeddedPostgres, children: contextlib.ExitStack) -> None:
        self._scratch = scratch
        self._database = database
        self._children = children
        self._running: list[Child] = []
        self._done: set[str] = set()
        self._of_the_port = environment_of(ours()["api"])["ERGON_PORT"]
        (scratch.folder / "log").mkdir()
        for name in compose()["volumes"]:
            scratch.volume(name).mkdir(parents=True)

    def start(self, name: str) -> None:
        """Start a service after those that it waits for, and return when whoever waits for it may go on."""
        if name in self._done:
            return
        service = services()[name]
        for other in service.get("depends_on", {}):
            self.start(other)
        say(f"start {name}")
        if name in ours():
            self._start_ours(name, service)
        if "healthcheck" in service:
            self._wait_until_healthy(name, service)
        self._done.add(name)

    def check(self) -> None:
        """Raises ProcessFailed if something ended that should stay."""
        for child in self._running:
            child.check()

    def run(self, name: str, *words: str) -> str:
        """What `docker compose run --rm NAME WORDS` prints."""
        return self._run_to_its_end(name, services()[name] | {"command": list(words)})

    def _start_ours(self, name: str, service: Mapping[str, Any]) -> None:
        if service["restart"] == "on-failure":  # it does one thing and ends
            self._run_to_its_end(name, service)
            return
        child = Child(
            name,
            self._command(service),
            environment=self._environment(service),
            folder=self._scratch.folder,
            log=self._scratch.folder / "log" / f"{name}.log",
        )
        self._children.callback(child.stop, STOP_S)
        self._running.append(child)
        if "healthcheck" not in service:
            child.wait_ready(60.0)

    def _run_to_its_end(self, name: str, service: Mapping[str, Any]) -> str:
        done = subprocess.run(
            self._command(service),
            env=self._environment(service),
            cwd=self._scratch.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise CheckFailed(f"{name} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def _wait_until_healthy(self, name: str, service: Mapping[str, Any]) -> None:
        """Ask as often, and as many times, as an engine would."""
        check = service["healthcheck"]
        kind, *words = check["test"]
        command = ["sh", "-c", *words] if kind == "CMD-SHELL" else [self._here(word, service) for word in words]
        for _ in range(check["retries"]):
            environment = self._environment(service)
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                say(f"healthy: {name}")
                return
            select.select(self._running, [], [], float(check["interval"].removesuffix("s")))
            self.check()
        raise CheckFailed(f"{name} did not become healthy: {done.stdout}{done.stderr}")

    def _command(self, service: Mapping[str, Any]) -> list[str]:
        return [self._here(word, service) for word in command_of(service)]

    def _environment(self, service: Mapping[str, Any]) -> dict[str, str]:
        run = self._database.home / "run"
        if service["image"] != IMAGE:
            return {"PATH": f"{program('pg_isready').parent}{os.pathsep}{os.defpath}", "PGHOST": str(run)}
        found = {name: self._here(value, service) for name, value in environment_of(service).items()}
        if url := found.get("ERGON_DATABASE_URL"):
            start, _, database = url.partition("@postgres/")
            found["ERGON_DATABASE_URL"] = f"{start.replace(PASSWORD, SECRET)}@/{database}?host={run}"
        return self._scratch.environment(found)

    def _here(self, text: str, service: Mapping[str, Any]) -> str:
        """Words of a container with the folders, names and ports of this machine."""
        for target, volume in mounts(service).items():
            text = text.replace(target, str(self._scratch.volume(volume)))
        for name in services():
            text = text.replace(f"//{name}:", "//127.0.0.1:")
        text = text.replace(f":{self._of_the_port}", f":{self._scratch.port}")
        whole = {service.get("hostname"): "127.0.0.1", self._of_the_port: str(self._scratch.port)}
        return whole.get(text, text)


@contextlib.contextmanager
def database(folder: Path) -> Iterator[EmbeddedPostgres]:
    """PostgreSQL as the compose file wants it, but for its address: user, database and password."""
    wanted = services()["postgres"]["environment"]
    with EmbeddedPostgres(folder) as server:
        with psycopg.connect(server.url) as connection:
            user = sql.Identifier(wanted["POSTGRES_USER"])
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(user, sql.Literal(SECRET)))
        yield server


def use(started: Started, scratch: Scratch) -> None:
    """One job over both agents, as a person would submit it."""
    token = started.run("api", "service", "token", "user", "alice", "--role", "admin")
    with Client(f"http://127.0.0.1:{scratch.port}", token) as client:
        nodes = {node.name: node.state.value for node in client.nodes()}
        say(f"nodes: {nodes}")
        job = client.submit(JobSpec(command=["python", "-c", SCRIPT], nodes=2, devices_per_node=2))
        ended = client.wait(job.id)
        say(f"{job.id}: {ended.state.value}")
        if ended.state is not JobState.SUCCEEDED or len(ended.attempts[-1].members) != 2:
            raise CheckFailed(f"the job {job.id} should have succeeded on two nodes: {ended}")
        output = b"".join(client.output(job.id, 0))
    kept = [path for path in scratch.volume("store").rglob("*") if path.is_file()]
    if not output or not kept:
        raise CheckFailed(f"the output should be on the volume: {kept}")
    say(f"its output is on the volume: {len(kept)} files; {len(output)} bytes came back for the first node")
    backup = scratch.folder / "backup"
    say(started.run("api", "service", "backup", str(backup)))
    started.check()


def main() -> int:
    """Do it all; 0 if all went as it should."""
    try:
        _check()
    except (CheckFailed, ProcessFailed) as error:
        print(error, *getattr(error, "details", ()), sep="\n", file=sys.stderr)
        return 1
    say("the image's steps and the compose file's processes work")
    return 0


def _check() -> None:
    with tempfile.TemporaryDirectory(prefix="ergon-image-") as name, contextlib.ExitStack() as children:
        folder = Path(name)
        folder.chmod(0o711)  # when root starts us, the database runs as another user
        with socket.create_server(("127.0.0.1", 0)) as free:
            scratch = Scratch(folder, free.getsockname()[1])
        say(f"FROM {last('FROM')}: here Python {sys.version.split()[0]} in a clean virtual environment")
        build(scratch)
        server = children.enter_context(database(folder / "database"))
        started = Started(scratch, server, children)
        for service in services():
            started.start(service)
        use(started, scratch)
        say("stop")


if __name__ == "__main__":
    sys.exit(main())

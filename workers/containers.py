"""Containers: the command lines of podman, apptainer and docker, which of them works here, and the end of containers.

Ranks in a container share network and shared memory with the node, run as the agent's user, and see what is mounted at
the same paths as outside. They are never privileged. podman and docker make a container first and start it as the rank;
apptainer runs its container as an ordinary child. Standard library only: the last look after an attempt starts in a
process of its own.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Runtime = Literal["podman", "apptainer", "docker"]

RUNTIMES: tuple[Runtime, ...] = ("podman", "apptainer", "docker")
"""In the order in which they are tried."""

LABEL = "ergon.attempt"
MADE = "containers.json"
"""In an attempt's folder, with the runtime: containers may have been made. Without it there is none to remove."""

PROBE_S = 60.0
"""A first container on a machine sets up the runtime's storage."""

MEMORY_SHORT = 3
"""Code with which `remove_command` ends if no container is left and the kernel killed in one for want of memory."""

REMOVE_S = 10.0
REMOVE_ROUNDS = 3
"""A container whose processes were killed under it is often refused once, and goes at the second time."""

CLIENT_PREFIXES = ("XDG_", "DBUS_", "CONTAINER", "REGISTRY_", "DOCKER_", "APPTAINER_")
"""Variables by which an administrator sets up the runtimes' programs. Those of a job never get there."""

STEERING = ("PATH", "HOME", "TMPDIR", "LD_", "GODEBUG", "GOMAXPROCS", "STORAGE_", "BUILDAH_", *CLIENT_PREFIXES)
"""Beginnings of variables that would change what the runtime's own program does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One rank in a container. Limits are of this container alone; `cpus` in cores, None and 0 bytes for no limit."""

    name: str
    attempt: str
    image: str
    argv: list[str]
    env: dict[str, str]
    work: str
    written: list[str]
    """Paths that are mounted to be written to."""

    read: list[str]
    """Paths that are mounted to be read only."""

    gpus: list[str]
    """UUIDs of NVIDIA devices."""

    cpus: float | None
    memory_bytes: int
    processes: int
    user: tuple[int, int]


class BadMount(ValueError):
    """A path that no runtime can mount. The message names it."""


def create_command(runtime: str, container: Container) -> list[str]:
    """Makes the container with podman or docker. Variables that do not steer the program itself are taken from its
    environment: what is on a command line, everyone on the machine can read.
    """
    command = [runtime, "create", "--name", container.name, "--label", f"{LABEL}={container.attempt}"]
    command += ["--pull", "never", *confinement(runtime, container.user), "--workdir", container.work]
    # Its removal is not to wait for a rank that does not want to end: that was asked before.
    command += ["--stop-timeout", "0"]
    if container.cpus is not None:
        command += ["--cpus", f"{container.cpus:g}"]
    if container.memory_bytes:
        # No swap beyond it: a rank that needs more must end and say so.
        command += ["--memory", str(container.memory_bytes), "--memory-swap", str(container.memory_bytes)]
    command += ["--pids-limit", str(container.processes)]
    command += gpu_options(runtime, container.gpus) + mount_options(container)
    for name, value in sorted(container.env.items()):
        command += ["--env", f"{name}={value}" if name.startswith(STEERING) else name]
    return [*command, container.image, *container.argv]


def create_environment(container: Container, own: Mapping[str, str]) -> dict[str, str]:
    """The environment in which `create_command` is run: the program's own, and what it passes on."""
    passed = {name: value for name, value in container.env.items() if not name.startswith(STEERING)}
    return {**own, **passed}


def start_command(runtime: str, container: Container) -> list[str]:
    """What the supervisor starts as the rank: it ends with the rank's exit code and passes signals on."""
    if runtime != "apptainer":
        return [runtime, "start", "--attach", container.name]
    command = [runtime, "exec", "--cleanenv", "--contain", "--no-home", "--pwd", container.work]
    command += ["--mount", bind("/dev/shm", writable=True)]
    if container.cpus is not None:
        command += ["--cpus", f"{container.cpus:g}"]
    if container.memory_bytes:
        command += ["--memory", str(container.memory_bytes), "--memory-swap", str(container.memory_bytes)]
    command += gpu_options(runtime, container.gpus) + mount_options(container)
    return [*command, container.image, *container.argv]


def start_environment(runtime: str, container: Container) -> dict[str, str]:
    """Variables that the rank's command needs besides its own: apptainer takes the container's by a prefix."""
    if runtime != "apptainer":
        return {}
    return {f"APPTAINERENV_{name}": value for name, value in container.env.items()}


def confinement(runtime: str, user: tuple[int, int]) -> list[str]:
    """What podman and docker are told of every container: the node's network and shared memory, the agent's user."""
    options = ["--init", "--network", "host", "--ipc", "host", "--log-driver", "none"]
    options += ["--security-opt", "no-new-privileges", "--security-opt", "label=disable"]
    if runtime == "podman" and user[0] != 0:
        options += ["--userns", "keep-id"]
    return [*options, "--user", f"{user[0]}:{user[1]}"]


def gpu_options(runtime: str, gpus: list[str]) -> list[str]:
    """NVIDIA devices by UUID: podman through CDI, docker through its own option; apptainer shows what is visible."""
    if not gpus:
        return []
    if runtime == "podman":
        return [word for uuid in gpus for word in ("--device", f"nvidia.com/gpu={uuid}")]
    return ["--gpus", f'"device={",".join(gpus)}"'] if runtime == "docker" else ["--nv"]


def mount_options(container: Container) -> list[str]:
    """Everything that is mounted. Raises BadMount."""
    mounts = [bind(path, writable=True) for path in container.written]
    mounts += [bind(path, writable=False) for path in container.read]
    return [word for mount in mounts for word in ("--mount", mount)]


def bind(path: str, *, writable: bool) -> str:
    """A mount of a path at the same path. Raises BadMount."""
    if set(path) & set(',"\n') or path == "/":
        raise BadMount(f"{path!r} cannot be mounted into a container; use a path without comma, quote and line break")
    return f"type=bind,source={path},destination={path}" + ("" if writable else ",readonly")


def client_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of the agent's own environment the runtimes' programs need."""
    return {name: value for name, value in environment.items() if name.startswith(CLIENT_PREFIXES)}


# -- what works here


def find_runtime() -> tuple[Runtime | None, str]:
    """The first runtime that really runs a container here, and why there is none."""
    faults: list[str] = []
    missing: list[str] = []
    for runtime in RUNTIMES:
        if shutil.which(runtime) is None:
            missing.append(runtime)
            continue
        fault = _try_out(runtime)
        if fault is None:
            return runtime, ""
        faults.append(f"{runtime}: {fault}")
    if missing:
        faults.append(f"not installed: {', '.join(missing)}")
    return None, "; ".join(faults)


def _try_out(runtime: str) -> str | None:
    """Why the runtime cannot run a container; None if it can."""
    if runtime == "docker":  # it runs nothing without an image
        return _fault([runtime, "version", "--format", "{{.Server.Version}}"])
    with tempfile.TemporaryDirectory(prefix="ergon-probe-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        for folder in ("dev", "etc", "proc", "run", "sys", "tmp", "usr"):
            (root / folder).mkdir()
        for folder in ("bin", "lib", "lib64"):
            (root / folder).symlink_to(f"usr/{folder}")
        usr = ["--mount", bind("/usr", writable=False)]
        if runtime == "podman":
            own = confinement(runtime, (os.getuid(), os.getgid()))
            return _fault([runtime, "run", "--rm", *own, *usr, "--rootfs", name, "/usr/bin/true"])
        return _fault([runtime, "exec", "--cleanenv", "--contain", "--no-home", *usr, name, "/usr/bin/true"])


def _fault(command: list[str]) -> str | None:
    code, _out, said = ask(command, os.environ, PROBE_S)
    return None if code == 0 else said[-250:] or f"`{' '.join(command[:2])}` ends with code {code}"


# -- the end


def remove(runtime: str, attempt: str, environment: Mapping[str, str]) -> bool:
    """Kill and delete every container of the attempt. True if none is left, as the runtime itself says."""
    if runtime == "apptainer" or shutil.which(runtime, path=environment.get("PATH")) is None:
        return True  # what runs without a daemon is found among the processes
    for _round in range(REMOVE_ROUNDS):
        listing = [runtime, "ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={LABEL}={attempt}"]
        code, found, _said = ask(listing, environment, REMOVE_S)
        if code != 0:
            return False
        if not found.split():
            return True
        ask([runtime, "rm", "--force", "--volumes", *found.split()], environment, REMOVE_S)
    return False


def was_memory_short(runtime: str, attempt: str, environment: Mapping[str, str]) -> bool:
    """Whether the kernel killed in a container of the attempt for want of memory, as the runtime tells; in none that is
    removed."""
    if runtime == "apptainer":
        return False
    listing = [runtime, "ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={LABEL}={attempt}"]
    _code, found, _said = ask(listing, environment, REMOVE_S)
    if not found.split():
        return False
    inspect = [runtime, "inspect", "--format", "{{.State.OOMKilled}}", *found.split()]
    return "true" in ask(inspect, environment, REMOVE_S)[1].split()


def remove_command(python: str, runtime: str, attempt: str) -> list[str]:
    """`remove` as a process that ends with 0 or MEMORY_SHORT if none is left."""
    root = str(Path(__file__).resolve().parent.parent)
    script = f"import sys; sys.path.append({root!r}); from workers import containers; containers.main(*sys.argv[1:])"
    return [python, "-I", "-S", "-c", script, runtime, attempt]


def main(runtime: str, attempt: str) -> None:
    """Of `remove_command`."""
    short = was_memory_short(runtime, attempt, os.environ)
    sys.exit(1 if not remove(runtime, attempt, os.environ) else MEMORY_SHORT if short else 0)


def ask(command: list[str], environment: Mapping[str, str], limit_s: float | None = None) -> tuple[int, str, str]:
    """Run a program quietly: its exit code, its output, and the last line of what it said on standard error."""
    try:
        done = subprocess.run(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return -1, "", f"`{' '.join(command[:2])}` did not end within {limit_s:g} s"
    except OSError as error:
        return -1, "", f"`{command[0]}` cannot be started: {error.strerror}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return done.returncode, done.stdout, lines[-1] if lines else ""

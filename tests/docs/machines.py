"""The machines on which the pages are followed: this one, or two that are played by network namespaces."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.blocks import ROOT

FIRST_ADDRESS, SECOND_ADDRESS = "10.0.0.1", "10.0.0.2"
"""As in the pages. Nobody else sees them: both ends of the wire are in namespaces of ours."""


@dataclass(frozen=True, slots=True)
class Machine:
    """`folder` is where a new terminal begins, `prefix` the command that runs another one on this machine."""

    folder: Path
    environment: Mapping[str, str] = field(repr=False)
    prefix: tuple[str, ...] = ()


def someone(home: Path, *, installed: bool, **environment: str) -> dict[str, str]:
    """The environment of a person with a home of their own; `installed`: the command `ergon` is on their path."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "ERGON_POSTGRES_USER" or not name.startswith(("ERGON_", "XDG_", "VIRTUAL_ENV", "MAKE"))
    }
    programs = str(Path(sys.executable).parent)
    path = [folder for folder in kept.get("PATH", os.defpath).split(os.pathsep) if folder != programs]
    home.mkdir(exist_ok=True)
    return kept | {
        "HOME": str(home),
        "PATH": os.pathsep.join([programs, *path] if installed else path),
        "COLUMNS": "120",
        "PYTHONUNBUFFERED": "1",  # so that both streams come in the order in which a terminal would show them
        **environment,
    }


def copy_of_the_repository(folder: Path) -> Path:
    """A folder that looks like the repository after `make setup`, and that can be written to.

    Raises RuntimeError if `make setup` has yet to be run: in the copy it would install the copy into our environment.
    """
    if subprocess.run(["make", "-C", ROOT, "-q", ".venv/.installed"], capture_output=True, check=False).returncode:
        raise RuntimeError("the environment is not that of pyproject.toml; run `make setup` first")
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name != ".git":
            (folder / path.name).symlink_to(path)
    return folder


def two_machines_possible() -> str | None:
    """None, or why not."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in ("ip", "openssl", "unshare") if shutil.which(program) is None]
    return f"needs the commands {', '.join(missing)}" if missing else None


@contextlib.contextmanager
def two_machines(folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two namespaces with a wire between them, each with a home and a copy of the repository in `folder`."""
    names = f"ergd{os.getpid()}-1", f"ergd{os.getpid()}-2"
    with contextlib.ExitStack() as stack:
        for name in names:
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "delete", name)
        _run("ip", "link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address in zip(names, (FIRST_ADDRESS, SECOND_ADDRESS), strict=True):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                _run("ip", "-n", name, "link", "set", interface, "up")
        yield _inside(folder, names[0], "first"), _inside(folder, names[1], "second")


def _inside(folder: Path, namespace: str, name: str) -> Machine:
    """The machine in a namespace: it has an id and a /var/lib of its own, so that nothing of this one's is touched."""
    home, own = folder / name, folder / f"{name}-own"
    (own / "lib").mkdir(parents=True)
    (own / "machine-id").write_text(secrets.token_hex(16) + "\n")
    environment = someone(home, installed=False)
    mounts = f"mount --bind {own}/lib /var/lib && mount --bind {own}/machine-id /etc/machine-id"
    private = ("unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh")
    return Machine(copy_of_the_repository(home / "ergon"), environment, ("ip", "netns", "exec", namespace, *private))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)

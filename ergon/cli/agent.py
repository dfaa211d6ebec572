"""`ergon agent`: makes this machine a node, once, and runs its agent."""

import importlib.util
import json
import os
import secrets
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from ergon.accounts import Accounts
from ergon.cli.doctor import EXTRAS
from ergon.cli.output import note
from ergon.cli.units import parse_duration, parse_size
from ergon.connection import Connection
from ergon.credentials import Credentials
from ergon.errors import ErgonError
from protocol.environment import CLIENT_VARIABLES

CREDENTIAL_PREFIX = "ergon_node_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What a machine that has joined remembers; its credential lies beside it in a file of its own."""

    server: str
    node: str
    ca: str | None


def agent(
    server: Annotated[
        str | None, typer.Option(help="Address of the service, such as https://ergon.example:8765; remembered.")
    ] = None,
    join_token: Annotated[
        str | None, typer.Option(envvar="ERGON_JOIN_TOKEN", help="From `ergon join-token new`; for the first start.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of this node; the host name by default.")] = None,
    cpu_slots: Annotated[
        str | None, typer.Option(help="CPU slots to offer: 4, 0-3 or 0,2; every core unless there is a GPU.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Where other nodes reach this one; the address that reaches the service.")
    ] = None,
    interface: Annotated[
        str | None, typer.Option(help="Network interface between the nodes; the one that has the address.")
    ] = None,
    disk_per_job: Annotated[
        int | None,
        typer.Option(parser=parse_size, metavar="SIZE", help="What a job may write on this node, such as 50GiB."),
    ] = None,
    starters: Annotated[
        int | None,
        typer.Option(min=0, max=64, help="Processes that keep torch imported for those who ran scripts before; 2."),
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for the credential and what must survive a restart.")
    ] = None,
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            exists=True,
            help="Folder that all nodes share, for checkpoints; without it they go to the service.",
        ),
    ] = None,
    health_check: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, exists=True, help="Program that takes this node, or devices it names, out of use."
        ),
    ] = None,
    health_every: Annotated[
        float | None, typer.Option(parser=parse_duration, metavar="DURATION", help="How often it runs; 60s.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(envvar="ERGON_CA", help="Certificate that vouches for the service's; remembered.")
    ] = None,
) -> None:
    """Make this machine a node and run its agent. Later starts need no option but what is not remembered."""
    _check_packages()
    folder = (state_dir or default_state_dir(os.environ)).absolute()
    try:
        membership = _read(folder)
        if membership is None:
            membership = _join(folder, server=server, join_token=join_token, name=name, ca=ca)
            note(f"joined as node {membership.node}")
        elif join_token:
            note(f"node {membership.node} has joined already and needs no join token; to join anew, empty {folder}")
    except OSError as error:
        raise ErgonError(f"{folder} cannot be used ({error.strerror}); name another --state-dir") from error
    if name not in (None, membership.node):
        raise ErgonError(f"{folder} belongs to node {membership.node}; leave --name out, or name another --state-dir")
    trusted = str(ca.absolute()) if ca else membership.ca
    options = {
        "--server": server or membership.server,
        "--name": membership.node,
        "--token-file": str(folder / "token"),
        "--state-dir": str(folder),
        "--ca": trusted,
        "--cpu-slots": cpu_slots,
        "--address": address,
        "--interface": interface,
        "--disk-per-job": str(disk_per_job) if disk_per_job else None,
        "--starters": None if starters is None else str(starters),
        "--checkpoint-dir": str(checkpoint_dir.absolute()) if checkpoint_dir else None,
        "--health-check": str(health_check.absolute()) if health_check else None,
        "--health-every": str(health_every) if health_every else None,
    }
    words = [word for option, value in options.items() if value is not None for word in (option, value)]
    environment = {name: value for name, value in os.environ.items() if name not in CLIENT_VARIABLES}
    os.chdir(folder)
    os.execve(sys.executable, [sys.executable, "-P", "-m", "workers", *words], environment)


def default_state_dir(environment: Mapping[str, str]) -> Path:
    """/var/lib/ergon-agent for root, `$XDG_STATE_HOME/ergon-agent` for everyone else."""
    if os.geteuid() == 0:
        return Path("/var/lib/ergon-agent")
    home = environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "ergon-agent"


def _check_packages() -> None:
    missing = [module for module in EXTRAS["agent"][1] if importlib.util.find_spec(module) is None]
    if missing:
        raise ErgonError(f"{', '.join(missing)} missing to run an agent; pip install 'ergon[agent]'")


def _read(folder: Path) -> Membership | None:
    """None before the machine has joined: `token` is there from the moment the service has taken the credential in."""
    if not (folder / "token").exists():
        return None
    record = folder / "node.json"
    try:
        return Membership(**json.loads(record.read_text()))
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise ErgonError(f"{record} is damaged or missing; empty {folder} and join anew with a join token") from error


def _join(folder: Path, *, server: str | None, join_token: str | None, name: str | None, ca: Path | None) -> Membership:
    """Trade the join token for the node's credential.

    The credential is on disk before the service hears of it, and the call may be repeated with it: whatever breaks off
    in between, starting again with the same join token goes on where it stopped.
    """
    if not join_token:
        raise ErgonError(
            "this machine has not joined yet: ask an administrator for a join token (`ergon join-token new`) and start "
            "with --join-token"
        )
    if not server:
        raise ErgonError("name the service with --server, such as https://ergon.example:8765")
    node = name or socket.gethostname().split(".")[0]
    membership = Membership(server=server, node=node, ca=str(ca.absolute()) if ca else None)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pending = folder / "token.pending"
    _write(pending, CREDENTIAL_PREFIX + secrets.token_urlsafe(32), only_if_new=True)
    connection = Connection(Credentials(server=server, token=join_token, ca=membership.ca))
    try:
        Accounts(connection).join(node, pending.read_text())
    finally:
        connection.close()
    _write(folder / "node.json", json.dumps(asdict(membership), indent=2) + "\n")
    pending.rename(folder / "token")
    return membership


def _write(path: Path, text: str, *, only_if_new: bool = False) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    if only_if_new and path.exists():
        return
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)

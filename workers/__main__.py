"""`python -P -m workers`: the agent of this node."""

import argparse
import json
import logging
import os
import random
import signal
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from protocol.base import Name
from protocol.environment import unknown_variables
from protocol.faults import in_words
from protocol.nodes import Limit
from workers.agent import Agent, Settings
from workers.bell import Bell
from workers.cache import Shelf
from workers.caps import Caps
from workers.cgroups import Groups, NoGroups, find_groups
from workers.checkpoints import Checkpoints
from workers.containers import find_runtime
from workers.exchange import EXIT_REFUSED, Doorbell, Exchange, Refused
from workers.expiry import Expiry
from workers.health import Health
from workers.inventory import containment_of, parse_slots, take_inventory
from workers.journal import Journal, StateFolderTaken
from workers.limits import find_limits
from workers.nvml import GpuFaults, list_gpus
from workers.outputs import Outputs
from workers.rendezvous import address_on, local_address_towards
from workers.runs import Runs
from workers.starters import Starters
from workers.transfer import Transfer
from workers.uploads import Uploads

log = logging.getLogger("workers")


LIMITS: dict[str, Limit] = {"memory": "memory", "pids": "processes"}
"""What is limited, by the kernel's name for its controller."""


MOST_STARTERS = 64


class BadArgument(ValueError):
    """A setting cannot be used. The message names it and the remedy."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent. Returns 0 when it was told to leave, 2 for a setting or token that cannot be used, 3 when another
    agent has taken its node, 1 for a bug."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    options = command_line().parse_args(arguments)
    try:
        agent = _agent(options)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: agent.leave())
        agent.run(on_ready=_say_ready)
    except (BadArgument, StateFolderTaken) as error:
        log.error("%s", error)
        return EXIT_REFUSED
    except Refused as refused:
        log.error("%s", refused)
        return refused.exit_code
    return 0


def _say_ready(node: str) -> None:
    sys.stdout.write(json.dumps({"ready": "agent", "node": node}) + "\n")
    sys.stdout.flush()


def _boottime_s() -> float:
    """Seconds since boot, those asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def command_line() -> argparse.ArgumentParser:
    """What the agent takes."""
    parser = argparse.ArgumentParser(prog="python -P -m workers", description="The agent of one node.")
    parser.add_argument("--server", required=True, help="address of the service, such as http://127.0.0.1:8765")
    parser.add_argument("--name", required=True, help="name of this node")
    parser.add_argument("--token-file", required=True, type=Path, help="file with the node's token")
    parser.add_argument("--state-dir", required=True, type=Path, help="folder for what must survive a restart")
    parser.add_argument(
        "--ca",
        default=os.environ.get("ERGON_CA") or None,
        help="file with the certificate that vouches for the service's; ERGON_CA, or those that the system trusts",
    )
    parser.add_argument(
        "--cpu-slots",
        help="CPU slots to offer: a count (4), a range (0-3) or numbers (0,2); 0 for none; "
        "every core unless there is a GPU",
    )
    parser.add_argument("--no-gpus", action="store_true", help="offer none: another agent of this machine does")
    parser.add_argument("--address", help="where other nodes reach this one; the address that reaches the service")
    parser.add_argument("--interface", help="network interface between the nodes; the one that has the address")
    parser.add_argument("--memory", type=int, help="main memory to offer in bytes; all, or the share of the CPU slots")
    parser.add_argument(
        "--disk-per-job",
        type=int,
        help="bytes that a job may write on this node; without it only the job's own limit holds",
    )
    parser.add_argument(
        "--checkpoint-dir",
        type=Path,
        help="folder that all nodes share, for the checkpoints of all jobs; without it they go to the service",
    )
    parser.add_argument(
        "--health-check",
        type=Path,
        help="program that is run over and over; while it ends with another code than 0, this node gets no new work, "
        "or the devices whose ids begin a line of its output",
    )
    parser.add_argument(
        "--health-every", type=float, default=60.0, help="seconds from one look at the devices to the next (60)"
    )
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="a label; may be repeated")
    parser.add_argument(
        "--starters",
        type=int,
        default=2,
        help="processes that keep torch imported, so that scripts of users who ran some before start at once; "
        "0 for none (2)",
    )
    parser.add_argument("--sample-every", type=float, default=5.0, help="seconds between two measurements (5)")
    parser.add_argument(
        "--stop-attempts-on-exit",
        action="store_true",
        help="stop what runs when the agent is told to leave; without it, it goes on until the lease ends",
    )
    return parser


def _agent(options: argparse.Namespace) -> Agent:
    if complaints := unknown_variables(os.environ):
        raise BadArgument("; ".join(complaints))
    _check_name("--name", options.name)
    server = urlsplit(options.server)
    if server.scheme not in ("http", "https") or not server.hostname:
        raise BadArgument(f"--server {options.server!r} is no address; write it like http://127.0.0.1:8765")
    _check_limits(options)
    token = _token(options.token_file)
    try:
        trust = ssl.create_default_context(cafile=options.ca) if options.ca else None
    except (OSError, ValueError) as error:
        raise BadArgument(f"--ca {options.ca} cannot be used: {error}; name a file with a certificate") from error
    gpus = [] if options.no_gpus else list_gpus()
    try:
        slots = None if options.cpu_slots is None else parse_slots(options.cpu_slots)
    except ValueError as error:
        raise BadArgument(f"--cpu-slots: {error}") from error
    if slots == [] and not gpus:
        raise BadArgument("this node would offer nothing: there is no GPU and --cpu-slots names no slot")
    try:
        address = address_on(options.interface) if options.interface else None
    except ValueError as error:
        raise BadArgument(f"--interface: {error}") from error
    try:
        journal = Journal(options.state_dir)
        groups = _groups(journal.folder)
        caps = Caps(journal.folder) if gpus else None
        gpus = [replace(gpu, power_limit_w=caps.usual_w(gpu.uuid) or gpu.power_limit_w) for gpu in gpus if caps]
        report = take_inventory(
            address=options.address or address or local_address_towards(server.hostname, server.port or 80),
            gpus=gpus,
            slots=slots,
            memory_bytes=options.memory,
            labels=dict(_label(text) for text in options.label),
            containment=containment_of(groups),
            containers=find_runtime(),
        )
    except ValidationError as error:
        raise BadArgument(f"the inventory of this node cannot be used: {error}") from error
    except OSError as error:
        raise BadArgument(f"{error}; name an --address and a --state-dir this node can use") from error
    settings = Settings(
        name=options.name,
        sample_s=options.sample_every,
        stop_attempts_on_exit=options.stop_attempts_on_exit,
        interface=options.interface,
        disk_bytes=options.disk_per_job,
        checkpoints=options.checkpoint_dir and options.checkpoint_dir.absolute(),
        limits=_limits(groups),
    )
    exchange = Exchange(options.server, token, trust=trust)
    credentials = {"server": options.server, "token": token, "ca": str(options.ca) if options.ca else None}
    transfer = Transfer(credentials)
    bell = Bell(journal.bell)
    chance = random.Random()
    return Agent(
        settings=settings,
        report=report,
        exchange=exchange,
        doorbell=Doorbell(exchange, bell.ring, chance),
        bell=bell,
        journal=journal,
        runs=Runs(journal, report.boot_id, groups, report.container_runtime, _starters(options.starters, groups)),
        shelf=Shelf(journal.folder / "cache"),
        outputs=Outputs(transfer, bell.ring, chance),
        credentials=credentials,
        checkpoints=Checkpoints(bell.ring) if settings.checkpoints else Uploads(transfer, bell.ring, chance),
        expiry=Expiry(settings.checkpoints, transfer, chance) if settings.checkpoints else None,
        caps=caps,
        now_s=_boottime_s,
        chance=chance,
        health=Health(
            report.devices,
            folder=journal.folder,
            gpu_fault=GpuFaults([gpu.uuid for gpu in gpus]).fault,
            program=options.health_check,
            every_s=options.health_every,
            ring=bell.ring,
        ),
    )


def _check_limits(options: argparse.Namespace) -> None:
    if options.memory is not None and options.memory <= 0:
        raise BadArgument("--memory must be a positive number of bytes")
    if options.disk_per_job is not None and options.disk_per_job <= 0:
        raise BadArgument("--disk-per-job must be a positive number of bytes")
    if options.checkpoint_dir is not None and not os.access(options.checkpoint_dir, os.R_OK | os.W_OK | os.X_OK):
        raise BadArgument(f"--checkpoint-dir {options.checkpoint_dir} is no folder this agent may write to")
    if options.health_check is not None and not os.access(options.health_check, os.X_OK):
        raise BadArgument(f"--health-check {options.health_check} is no program this agent may run")
    if not 0 <= options.starters <= MOST_STARTERS:
        raise BadArgument(f"--starters must be from 0 to {MOST_STARTERS}")
    if not 0.1 <= options.health_every <= 86_400:
        raise BadArgument("--health-every must be from 0.1 to 86400 seconds")
    if not 0.1 <= options.sample_every <= 3600:
        raise BadArgument("--sample-every must be from 0.1 to 3600 seconds")


def _groups(state_folder: Path) -> Groups | None:
    """The control groups of this agent; None if it may have none."""
    try:
        groups = find_groups(str(state_folder))
    except NoGroups as reason:
        log.warning("no control groups (%s): attempts are told apart by parent and environment only", reason)
        return None
    log.info("attempts run in control groups (%s)", containment_of(groups))
    return groups


def _limits(groups: Groups | None) -> list[Limit]:
    """What the kernel limits for this agent."""
    limits: list[Limit] = [LIMITS[name] for name in find_limits(groups)]
    if missing := [limit for limit in LIMITS.values() if limit not in limits]:
        log.warning("nothing limits the %s of an attempt here", " and the ".join(missing))
    return limits


def _starters(most: int, groups: Groups | None) -> Starters | None:
    """The starters of this agent; None where it may have none: what they fork is known by its control group only."""
    if most and groups is not None and find_spec("torch") and find_spec("numpy"):
        return Starters(most)
    log.info("no starters: every rank imports for itself")
    return None


def _token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadArgument(f"--token-file {path} cannot be read: {error}") from error
    if not token.isascii() or not token.isprintable() or not token:
        raise BadArgument(f"--token-file {path} holds no token")
    return token


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise BadArgument(f"--label {text!r} has no value; write KEY=VALUE")
    _check_name("--label", key)
    return key, value


def _check_name(option: str, value: str) -> None:
    try:
        TypeAdapter(Name).validate_python(value)
    except ValidationError as error:
        raise BadArgument(f"{option} {value!r}: {in_words(error.errors()[0])}") from error


if __name__ == "__main__":
    sys.exit(main())

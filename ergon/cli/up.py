"""`ergon up`: a local cluster that stays until it is told to stop."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from ergon.cli.local import LocalCluster, LocalSettings, default_data_dir, local_cluster, node_names
from ergon.cli.output import line, note
from ergon.cli.processes import leave_on_signals
from ergon.cli.units import parse_duration
from ergon.credentials import Credentials, credentials_path, save
from ergon.errors import ErgonError
from protocol.states import Role

PORT = 8765
ADMIN = "admin"


def up(
    data_dir: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder of the cluster; ERGON_DATA_DIR or the system's by default."),
    ] = None,
    port: Annotated[
        int,
        typer.Option(min=0, max=65_535, envvar="ERGON_PORT", help="Port of the API and the page; 0 for a free one."),
    ] = PORT,
    agents: Annotated[int, typer.Option(min=1, max=64, help="Node agents to start.")] = 2,
    slots_per_agent: Annotated[
        int | None, typer.Option(min=1, max=1_024, help="CPU slots of each agent; its part of the CPUs by default.")
    ] = None,
    switch_off_idle: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration,
            metavar="DURATION",
            help="Stop agents that are idle for so long, and start them for jobs, as machines are switched off and on.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object when everything is ready.")] = False,
) -> None:
    """Start a local cluster and stay: database, API, planning cycle and agents. Ctrl-C stops it; its data stays."""
    settings = LocalSettings(
        data_dir=data_dir or default_data_dir(os.environ),
        port=port,
        agents=agents,
        slots_per_agent=slots_per_agent or max(1, len(os.sched_getaffinity(0)) // agents),
        environment=os.environ,
        switch_off_idle_s=switch_off_idle,
    )
    note(f"starting a cluster in {settings.data_dir}")
    with leave_on_signals(), local_cluster(settings) as cluster:
        credentials = _save_credentials(cluster)
        if as_json:
            line(json.dumps({"url": cluster.url, "docs": f"{cluster.url}/docs", "credentials": str(credentials)}))
        else:
            _greet(cluster, settings, credentials)
        try:
            cluster.wait_for_a_death()
        finally:
            note("stopping")


def _save_credentials(cluster: LocalCluster) -> Path:
    path = credentials_path()
    try:
        save(Credentials(server=cluster.url, token=cluster.user_token(ADMIN, Role.ADMIN)), path)
    except OSError as error:
        raise ErgonError(
            f"{path} cannot be written ({error.strerror}); set XDG_CONFIG_HOME to another folder"
        ) from error
    return path


def _greet(cluster: LocalCluster, settings: LocalSettings, credentials: Path) -> None:
    line(f"page      {cluster.url}/")
    line(f"API docs  {cluster.url}/docs")
    slots = f"{settings.slots_per_agent} CPU slot{'' if settings.slots_per_agent == 1 else 's'} each"
    line(f"nodes     {', '.join(node_names(settings.agents))} with {slots}")
    line(f"token     an administrator's, written to {credentials}; `ergon` commands of yours use it")
    line(f"logs      {settings.data_dir.absolute() / 'log'}")
    line("Ctrl-C stops everything")

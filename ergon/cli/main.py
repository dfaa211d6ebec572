"""The `ergon` command: its table of contents, and the one place where errors become a line and an exit code."""

import io
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer

from ergon.cli import accounts, agent, backup, batch, cluster, control, demo, doctor, fetch, jobs, nodes, submit, up
from ergon.cli.output import complain, line, note
from ergon.errors import ErgonError
from protocol.environment import unknown_variables
from protocol.version import PROTOCOL_VERSION

BAD_INPUT = 2
INTERRUPTED = 130

app = typer.Typer(
    name="ergon",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Schedules AI training on GPU and CPU nodes at the least energy and idle time. The server and the token come "
    "from ERGON_SERVER and ERGON_TOKEN, or from the file that `ergon up` writes.",
    epilog="Exit codes: 0 done, 1 a job or a process failed, 2 bad input or refused, 3 the service is out of reach, "
    "130 interrupted.",
)
app.command("up")(up.up)
app.command("demo")(demo.demo)
# What follows the first word of the user's command belongs to that command.
app.command("submit", context_settings={"allow_interspersed_args": False})(submit.submit)
app.command("fetch")(fetch.fetch)
app.command("jobs")(jobs.jobs)
app.command("hold")(control.hold)
app.command("release")(control.release)
app.command("preempt")(control.preempt)
app.command("resubmit")(control.resubmit)
app.command("priority")(control.priority)
app.command("schema")(batch.print_schema)
app.command("show")(jobs.show)
app.command("logs")(jobs.logs)
app.command("cancel")(jobs.cancel)
app.command("nodes")(cluster.nodes)
app.command("alarms")(cluster.alarms)
app.command("report")(cluster.report)
app.command("plans")(cluster.plans)
app.add_typer(nodes.node_commands, name="node")
app.command("users")(accounts.users)
app.add_typer(accounts.user_commands, name="user")
app.add_typer(accounts.token_commands, name="token")
app.add_typer(accounts.join_token_commands, name="join-token")
app.command("agent")(agent.agent)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.command("doctor")(doctor.doctor)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        line(f"ergon {metadata.version('ergon')}, protocol {PROTOCOL_VERSION}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, `sys.argv` unless `arguments` are given, and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a name in any script, a terminal in any encoding
    complaints = unknown_variables(os.environ)
    if complaints:
        complain("; ".join(complaints))
        return BAD_INPUT
    try:
        code: int | None = app(arguments, prog_name="ergon", standalone_mode=False)
    except typer.TyperException as error:
        complain(f"{error.format_message().rstrip('.')}; `ergon --help` tells more")
        return BAD_INPUT
    except ErgonError as error:
        complain(str(error))
        for detail in error.details:
            note(f"  {detail}")
        return error.exit_code
    if code == INTERRUPTED:
        complain("interrupted")
    return code or 0

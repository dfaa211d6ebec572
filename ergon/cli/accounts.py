"""`ergon users`, `user`, `token` and `join-token`: who may call, and which machines may become nodes."""

from typing import Annotated

import typer

from ergon.cli.output import Json, line, local_time, note, table, write_json, write_json_lines
from ergon.cli.units import parse_duration
from ergon.client import Client
from ergon.errors import ErgonError
from protocol.accounts import DEFAULT_JOIN_S
from protocol.states import Role

SHOWN_ONCE = "keep it now: it cannot be shown again"

user_commands = typer.Typer(help="Add people and change their roles. Administrators only.")
token_commands = typer.Typer(help="Make, list and revoke tokens.")
join_token_commands = typer.Typer(help="Let machines become nodes. Administrators only.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the user.")]
User = Annotated[str | None, typer.Option("--user", metavar="NAME", help="Whose; yours by default.")]


def users(as_json: Json = False) -> None:
    """List the people. Administrators only."""
    with Client() as client:
        found = list(client.accounts.users())
    if as_json:
        write_json_lines(found)
        return
    rows = [(user.name, user.role, str(user.tokens), local_time(user.created_at)) for user in found]
    table(("USER", "ROLE", ">TOKENS", "SINCE"), rows)


@user_commands.command("add")
def add_user(
    name: Name,
    role: Annotated[Role, typer.Option(help="What the person may do.")] = Role.USER,
    as_json: Json = False,
) -> None:
    """Make a person known. `ergon token new --user NAME` then makes a token to call with."""
    with Client() as client:
        view = client.accounts.add_user(name, role)
    if as_json:
        write_json(view)
        return
    line(f"{view.name} ({view.role})")
    if not view.tokens:
        note(f"without a token {view.name} cannot call; make one with `ergon token new --user {view.name}`")


@user_commands.command("role")
def change_role(name: Name, role: Annotated[Role, typer.Argument(help="The new role.")], as_json: Json = False) -> None:
    """Give a person another role. All tokens of the person have it at once."""
    with Client() as client:
        view = client.accounts.change_role(name, role)
    if as_json:
        write_json(view)
    else:
        line(f"{view.name} ({view.role})")


@token_commands.command("new")
def new_token(user: User = None, as_json: Json = False) -> None:
    """Make a token and print it, this once."""
    with Client() as client:
        view = client.accounts.new_token(user or client.me().user)
    if as_json:
        write_json(view)
        return
    note(f"{view.id} of {view.owner}; {SHOWN_ONCE}")
    line(view.token)


@token_commands.command("list")
def list_tokens(
    user: User = None,
    node: Annotated[str | None, typer.Option(metavar="NAME", help="Credentials of this node instead.")] = None,
    as_json: Json = False,
) -> None:
    """List tokens that are not revoked, without the tokens themselves."""
    if user and node:
        raise ErgonError("--user and --node do not go together; give one of them")
    with Client() as client:
        found = client.accounts.node_tokens(node) if node else client.accounts.tokens(user or client.me().user)
    if as_json:
        write_json_lines(found)
        return
    if not found:
        note("no tokens")
        return
    rows = [(view.id, view.owner, local_time(view.created_at), f"...{view.ending or ''}") for view in found]
    table(("ID", "OWNER", "MADE", "TOKEN"), rows)


@token_commands.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `ergon token list` shows it.")],
) -> None:
    """Make a token worth nothing, at once."""
    with Client() as client:
        client.accounts.revoke(token_id)
    note(f"{token_id} is revoked")


@join_token_commands.command("new")
def new_join_token(
    node: Annotated[
        str | None, typer.Option(metavar="NAME", help="Good for this node only; any new one if absent.")
    ] = None,
    valid: Annotated[
        float | None, typer.Option(parser=parse_duration, metavar="DURATION", help="How long; 1h by default.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Let it take the place of the node's present agent, which is shut out.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a join token, good once, and print it. The machine runs `ergon agent --server URL --join-token TOKEN`."""
    with Client() as client:
        view = client.accounts.new_join_token(node=node, valid_s=valid or DEFAULT_JOIN_S, replace=replace)
    if as_json:
        write_json(view)
        return
    whom = f"node {view.node}" if view.node else "one node"
    note(f"for {whom}, until {local_time(view.expires_at)}; {SHOWN_ONCE}")
    line(view.token)

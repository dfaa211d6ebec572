"""`ergon node`: taking nodes out of use and back, and switching them off and on."""

from collections import Counter
from typing import Annotated

import typer

from ergon.cli.output import Json, line, local_time, note, write_json
from ergon.cli.units import parse_duration
from ergon.client import Client
from protocol.nodes import NodeView
from protocol.states import DeviceCondition, PowerState

DEFAULT_DEADLINE_S = 600.0

node_commands = typer.Typer(help="Take nodes out of use and back, switch them off and on. Administrators only.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the node.")]


@node_commands.command("cordon")
def cordon(name: Name, as_json: Json = False) -> None:
    """Keep new work away from a node; what runs there goes on."""
    with Client() as client:
        _say(client.cordon(name), as_json)


@node_commands.command("uncordon")
def uncordon(name: Name, as_json: Json = False) -> None:
    """Let a node take work again."""
    with Client() as client:
        _say(client.uncordon(name), as_json)


@node_commands.command("confirm-down")
def confirm_down(name: Name, as_json: Json = False) -> None:
    """Say that a node which is not heard of is off: what it held is free, its jobs run again elsewhere at once.

    Look first: on a machine that is still on, its ranks would run beside the new ones.
    """
    with Client() as client:
        _say(client.confirm_down(name), as_json)


@node_commands.command("drain")
def drain(
    name: Name,
    deadline: Annotated[
        float | None,
        typer.Option(parser=parse_duration, metavar="DURATION", help="Until what runs is stopped; 10m by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Empty a node: nothing new goes there, and what still runs after the deadline is stopped and requeued."""
    with Client() as client:
        _say(client.drain(name, deadline_s=DEFAULT_DEADLINE_S if deadline is None else deadline), as_json)


@node_commands.command("on")
def switch_on(
    name: Name,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it on whatever the plans say.")] = False,
    as_json: Json = False,
) -> None:
    """Switch a node on that is off or lost. Plans may switch it off again unless it is kept on."""
    with Client() as client:
        _say(client.switch_on(name, keep=keep), as_json)


@node_commands.command("off")
def switch_off(name: Name, as_json: Json = False) -> None:
    """Switch a node off as soon as nothing runs there any more, and leave it off until `ergon node on`."""
    with Client() as client:
        _say(client.switch_off(name), as_json)


def state_words(node: NodeView) -> str:
    """Its state, and whether it takes work: `ready`, `ready, cordoned`, `ready, drains until 2031-05-01 12:00:00`,
    `ready, 1 unfit`, `off since 2031-05-01 12:00:00`, `ready, to go off`."""
    words = [str(node.state)]
    if node.power != PowerState.ON:
        words = [f"{node.power} since {local_time(node.power_since)}" if node.power_since else str(node.power)]
    if node.drain_at is not None:
        words.append(f"drains until {local_time(node.drain_at)}")
    elif node.closed_because is not None:
        words.append("closed by the service")
    elif node.cordoned:
        words.append("cordoned")
    if node.power_kept == "on":
        words.append("kept on")
    elif node.power_kept == "off":
        words.append("to go off" if node.power == PowerState.ON else "kept off")
    conditions = Counter(device.condition for device in node.devices if device.condition != DeviceCondition.OK)
    words += [f"{count} {condition}" for condition, count in sorted(conditions.items())]
    return ", ".join(words)


def _say(node: NodeView, as_json: bool) -> None:
    if as_json:
        write_json(node)
        return
    line(f"{node.name}: {state_words(node)}")
    for fault in (node.closed_because, node.power_fault):
        if fault is not None:
            note(fault)
    jobs = sorted({holder.job for device in node.devices for holder in device.sharers})
    if (node.cordoned or node.power_kept == "off") and jobs:
        note(f"still there: {', '.join(jobs)}")

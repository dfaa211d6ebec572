"""`ergon submit`."""

import json
import math
from typing import Annotated

import typer
from pydantic import ValidationError

from ergon.cli.jobs import print_logs, say_end
from ergon.cli.output import Json, line, note, write_json
from ergon.cli.units import parse_duration, parse_size
from ergon.client import Client
from ergon.errors import ErgonError
from protocol.jobs import JobSpec, JobView
from protocol.states import JobState

OPTIONS = {
    "name": "--name",
    "queue": "--queue",
    "priority": "--priority",
    "nodes": "--nodes",
    "devices_per_node": "--devices-per-node",
    "device_kinds": "--kind",
    "ranks_per_node": "--ranks-per-node",
    "cpu_cores_per_node": "--cores",
    "memory_bytes_per_node": "--memory",
    "time_limit_s": "--time-limit",
    "expected_run_s": "--expect",
    "env": "--env",
    "recipe": "--recipe",
    "command": "COMMAND",
}
"""The option each field of the spec is given with."""


def submit(
    *,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="Program and arguments of every rank.")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="A recipe of Ergon's instead of a command.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("-o", metavar="KEY=VALUE", help="Option of the recipe; may repeat.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name for people; it need not be unique.")] = None,
    nodes: Annotated[int | None, typer.Option(help="Nodes the job needs at once; 1 unless told otherwise.")] = None,
    devices_per_node: Annotated[int | None, typer.Option(help="Devices on each node; 1 unless told otherwise.")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Acceptable device kind; may repeat. Any by default.")] = None,
    ranks_per_node: Annotated[int | None, typer.Option(help="Processes on each node; one per device.")] = None,
    cores: Annotated[float | None, typer.Option(help="CPU cores on each node; one per device.")] = None,
    memory: Annotated[
        int | None, typer.Option(parser=parse_size, metavar="SIZE", help="Memory on each node, such as 4GiB.")
    ] = None,
    queue: Annotated[str | None, typer.Option(help="The queue to wait in.")] = None,
    priority: Annotated[int | None, typer.Option(help="A higher one goes first; 0 by default.")] = None,
    time_limit: Annotated[
        float | None, typer.Option(parser=parse_duration, metavar="DURATION", help="Stop it after this, such as 2h.")
    ] = None,
    expect: Annotated[
        float | None, typer.Option(parser=parse_duration, metavar="DURATION", help="How long it should run.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Environment variable of every rank; may repeat.")
    ] = None,
    require_feasible: Annotated[
        bool, typer.Option("--require-feasible", help="Refuse the job if no present node could ever run it.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; exit 1 unless the job succeeded.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="The same, showing what the job writes.")] = False,
    as_json: Json = False,
) -> int:
    """Submit a job. Its id goes to standard output, what the planner says of it to standard error.

    The command starts at the first word that is no option: `ergon submit --nodes 2 -- python train.py --lr 0.1`.
    """
    if follow and as_json:
        raise ErgonError("--follow and --json do not go together; submit with --json, then `ergon logs -f`")
    if (recipe is None) == (not command):
        raise ErgonError("give either a command, as in `ergon submit -- python train.py`, or --recipe NAME")
    if recipe is None and option:
        raise ErgonError("-o sets an option of a recipe; name it with --recipe")
    fields = {
        "command": command or None,
        "recipe": None if recipe is None else {"name": recipe, "options": _recipe_options(option or [])},
        "name": name,
        "nodes": nodes,
        "devices_per_node": devices_per_node,
        "device_kinds": kind or None,
        "ranks_per_node": ranks_per_node,
        "cpu_cores_per_node": cores,
        "memory_bytes_per_node": memory,
        "queue": queue,
        "priority": priority,
        "time_limit_s": time_limit,
        "expected_run_s": expect,
        "env": _pairs(env or [], "--env", "NAME=VALUE"),
        "require_feasible": require_feasible,
    }
    spec = _spec({field: value for field, value in fields.items() if value is not None})
    with Client() as client:
        return _run(client, spec, wait=wait, follow=follow, as_json=as_json)


def _run(client: Client, spec: JobSpec, *, wait: bool, follow: bool, as_json: bool) -> int:
    job = client.submit(spec)
    if not as_json:
        line(job.id)
        note(first_words(job))
    if not (wait or follow):
        if as_json:
            write_json(job)
        return 0
    try:
        if follow:
            print_logs(client.follow_logs(job.id), prefix=spec.nodes * spec.ranks > 1)
        job = client.wait(job.id)
    except KeyboardInterrupt:
        note(f"the job goes on; see it with `ergon logs -f {job.id}`, end it with `ergon cancel {job.id}`")
        raise
    if as_json:
        write_json(job)
    else:
        say_end(job)
    return 0 if job.state is JobState.SUCCEEDED else 1


def first_words(job: JobView) -> str:
    """What the planner said when the job was submitted, in a sentence."""
    if job.verdict is None or job.verdict.outcome == "placed":
        return f"{job.state}; `ergon show {job.id}` tells more"
    reasons = "; ".join(reason.message for reason in job.verdict.reasons)
    if job.verdict.outcome == "impossible":
        return f"no present node could run it, so it waits for one that can: {reasons}"
    return f"waiting: {reasons}"


def _spec(fields: dict[str, object]) -> JobSpec:
    try:
        return JobSpec.model_validate(fields)
    except ValidationError as error:
        faults: list[str] = []
        for fault in error.errors(include_url=False):
            place = [str(part) for part in fault["loc"]]
            option = OPTIONS.get(place[0], place[0]) if place else ""
            inner = ".".join(place[1:])
            words = f"{option}{f' ({inner})' if inner else ''}: " if option else ""
            faults.append(words + fault["msg"].removeprefix("Value error, "))
        raise ErgonError("; ".join(faults)) from error


def _recipe_options(words: list[str]) -> dict[str, bool | int | float | str]:
    return {key: _scalar(value) for key, value in _pairs(words, "-o", "KEY=VALUE").items()}


def _pairs(words: list[str], option: str, form: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ErgonError(f"{option} {word}: write {form}")
        if key in pairs:
            raise ErgonError(f"{option} {key} is given twice")
        pairs[key] = value
    return pairs


def _scalar(text: str) -> bool | int | float | str:
    """`true`, `false` and numbers as JSON has them; anything else is text."""
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) and math.isfinite(value) else text

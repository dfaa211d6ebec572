"""`ergon submit`."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from ergon.cli.batch import MAYBE_SUBMITTED, submit_batch, try_out
from ergon.cli.jobfile import read_jobs
from ergon.cli.jobs import goes_on, print_logs, say_end
from ergon.cli.output import Json, line, note, told_on_interrupt, write_json
from ergon.cli.units import parse_duration, parse_percent, parse_size, show_size
from ergon.client import Client
from ergon.errors import ErgonError
from ergon.shipping import Shipment, pack_directory
from protocol.faults import in_words
from protocol.jobs import JobSpec, JobView
from protocol.states import JobState

OPTIONS = {
    "name": "--name",
    "queue": "--queue",
    "priority": "--priority",
    "nodes": "--nodes",
    "devices_per_node": "--devices-per-node",
    "device_share": "--device-share",
    "device_isolation": "--device-isolation",
    "device_kinds": "--kind",
    "ranks_per_node": "--ranks-per-node",
    "cpu_cores_per_node": "--cores",
    "memory_bytes_per_node": "--memory",
    "disk_bytes_per_node": "--disk",
    "time_limit_s": "--time-limit",
    "stall_timeout_s": "--stall-timeout",
    "stop_grace_s": "--stop-grace",
    "expected_run_s": "--expect",
    "may_wait_s": "--may-wait",
    "may_slow": "--may-slow",
    "env": "--env",
    "array": "--array",
    "after": "--after",
    "max_retries": "--max-retries",
    "on_disconnect": "--on-disconnect",
    "may_move": "--may-move",
    "recipe": "--recipe",
    "code": "--dir",
    "image": "--image",
    "python": "--python",
    "requirements": "--requirements",
    "datasets": "--dataset",
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
    nodes: Annotated[
        str | None,
        typer.Option(
            metavar="N|MIN-MAX",
            help="Nodes the job needs at once; 1 unless told otherwise. Of a range such as 1-4 the planner chooses.",
        ),
    ] = None,
    devices_per_node: Annotated[
        int | None, typer.Option(help="Devices on each node; 1 unless told otherwise, 0 for CPU cores and memory only.")
    ] = None,
    device_share: Annotated[
        float | None, typer.Option(metavar="PART", help="Part of one device, such as 0.25; others may have the rest.")
    ] = None,
    device_isolation: Annotated[
        str | None,
        typer.Option(metavar="none|memory|hardware", help="What keeps apart those that share a device; none."),
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Acceptable device kind; may repeat. Any by default.")] = None,
    ranks_per_node: Annotated[int | None, typer.Option(help="Processes on each node; one per device.")] = None,
    cores: Annotated[float | None, typer.Option(help="CPU cores on each node; one per device.")] = None,
    memory: Annotated[
        int | None, typer.Option(parser=parse_size, metavar="SIZE", help="Memory on each node, such as 4GiB.")
    ] = None,
    disk: Annotated[
        int | None,
        typer.Option(parser=parse_size, metavar="SIZE", help="What it may write on each node, such as 20GiB."),
    ] = None,
    queue: Annotated[str | None, typer.Option(help="The queue to wait in.")] = None,
    priority: Annotated[int | None, typer.Option(help="A higher one goes first; 0 by default.")] = None,
    time_limit: Annotated[
        float | None, typer.Option(parser=parse_duration, metavar="DURATION", help="Stop it after this, such as 2h.")
    ] = None,
    stall_timeout: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration, metavar="DURATION", help="Stop and retry it when it writes nothing for this long."
        ),
    ] = None,
    stop_grace: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration, metavar="DURATION", help="How long it has to save and leave when it is stopped."
        ),
    ] = None,
    expect: Annotated[
        float | None, typer.Option(parser=parse_duration, metavar="DURATION", help="How long it should run.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Environment variable of every rank; may repeat.")
    ] = None,
    directory: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Directory to ship; the current one by default.")
    ] = Path(),
    no_ship: Annotated[
        bool, typer.Option("--no-ship", help="Ship nothing: the command finds all it needs on the node.")
    ] = False,
    image: Annotated[
        str | None, typer.Option(metavar="REF", help="Container image to run in, where a node can run containers.")
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="What `python` means on the node or in the image; the agent's by default."),
    ] = None,
    requirements: Annotated[
        str | None, typer.Option(metavar="FILE", help="Requirements file inside the shipped directory.")
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH|URL", help="Data that ranks find at $ERGON_DATASET_NAME; may repeat."),
    ] = None,
    array: Annotated[int | None, typer.Option(help="Submit it this many times, with ERGON_ARRAY_INDEX from 0.")] = None,
    array_limit: Annotated[int | None, typer.Option(help="Of the array, how many may run at a time.")] = None,
    after: Annotated[
        list[str] | None,
        typer.Option(metavar="JOB[:end]", help="Start once this job or array has succeeded, or ended; may repeat."),
    ] = None,
    max_retries: Annotated[int | None, typer.Option(help="Try again this often after a rank has failed.")] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="Submit the jobs of this YAML or TOML file, all or none.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Submit nothing; say what would be, and whether it would start now.")
    ] = False,
    on_disconnect: Annotated[
        str | None,
        typer.Option(metavar="fence|wait", help="Stop or go on when a node cannot reach the service; fence."),
    ] = None,
    may_wait: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration,
            metavar="DURATION",
            help="How long it may wait for hours of cheaper or cleaner energy.",
        ),
    ] = None,
    may_slow: Annotated[
        float | None,
        typer.Option(
            parser=parse_percent,
            metavar="PERCENT",
            help="How much longer it may run so that power caps save energy, such as 10%.",
        ),
    ] = None,
    may_move: Annotated[
        bool,
        typer.Option(
            "--may-move",
            help="It may be stopped and go on elsewhere, of a range also on more or fewer nodes, from its checkpoint.",
        ),
    ] = False,
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
    if file is None and (recipe is None) == (not command):
        raise ErgonError("give either a command, as in `ergon submit -- python train.py`, or --recipe NAME")
    if recipe is None and option:
        raise ErgonError("-o sets an option of a recipe; name it with --recipe")
    fields = {
        "command": command or None,
        "recipe": None if recipe is None else {"name": recipe, "options": _recipe_options(option or [])},
        "name": name,
        "nodes": int(nodes) if nodes and nodes.isdecimal() and len(nodes) < 10 else nodes,
        "devices_per_node": devices_per_node,
        "device_share": device_share,
        "device_isolation": device_isolation,
        "device_kinds": kind or None,
        "ranks_per_node": ranks_per_node,
        "cpu_cores_per_node": cores,
        "memory_bytes_per_node": memory,
        "queue": queue,
        "priority": priority,
        "disk_bytes_per_node": disk,
        "time_limit_s": time_limit,
        "stall_timeout_s": stall_timeout,
        "stop_grace_s": stop_grace,
        "expected_run_s": expect,
        "may_wait_s": may_wait,
        "may_slow": may_slow,
        "env": _pairs(env or [], "--env", "NAME=VALUE"),
        "image": image,
        "python": python,
        "requirements": requirements,
        "datasets": _pairs(dataset or [], "--dataset", "NAME=PATH or NAME=URL"),
        "array": _array(array, array_limit),
        "after": [_dependency(word) for word in after or []],
        "max_retries": max_retries,
        "on_disconnect": on_disconnect,
        "may_move": may_move,
        "require_feasible": require_feasible,
    }
    given = {field: value for field, value in fields.items() if value not in (None, [], {}) and value is not False}
    specs = [_spec(given)] if file is None else _jobs_of(file, given)
    if follow and (len(specs) > 1 or specs[0].array or dry_run):
        raise ErgonError("--follow shows one job as it runs; submit without it, then `ergon logs -f JOB`")
    shipment = None if no_ship or all(spec.recipe or spec.code for spec in specs) else pack_directory(directory)
    if shipment is not None:
        specs = [spec if spec.recipe or spec.code else _shipped(spec, shipment) for spec in specs]
    elif any(spec.requirements and not spec.code for spec in specs):
        raise ErgonError("--requirements names a file of the shipped directory, and nothing is shipped")
    with Client() as client:
        if shipment is not None and not dry_run and client.ship(shipment.archive, shipment.digest) and not as_json:
            note(f"shipped {shipment.folder}: {len(shipment.files)} files, {show_size(len(shipment.archive))}")
        if dry_run:
            return try_out(client, specs, as_json=as_json)
        if file is not None or specs[0].array:
            return submit_batch(client, specs, wait=wait or follow, as_json=as_json)
        (spec,) = specs
        return _run(client, spec, wait=wait, follow=follow, as_json=as_json)


def _run(client: Client, spec: JobSpec, *, wait: bool, follow: bool, as_json: bool) -> int:
    with told_on_interrupt(MAYBE_SUBMITTED):
        job = client.submit(spec)
    told = codes_of(job)
    if not as_json:
        line(job.id)
        note(first_words(job))

    def look(job: JobView) -> None:
        """Say why it waits when that has changed."""
        nonlocal told
        if not as_json and codes_of(job) not in (told, []):
            told = codes_of(job)
            note(first_words(job))

    if not (wait or follow):
        if as_json:
            write_json(job)
        return 0
    with told_on_interrupt(goes_on(job.id)):
        if follow:
            print_logs(client.follow_logs(job.id), prefix=spec.sizes[-1] * spec.ranks > 1)
        job = client.wait(job.id, look=look)
    if as_json:
        write_json(job)
    else:
        say_end(job)
    return 0 if job.state is JobState.SUCCEEDED else 1


def _shipped(spec: JobSpec, shipment: Shipment) -> JobSpec:
    if spec.requirements is not None and spec.requirements not in shipment.files:
        raise ErgonError(
            f"--requirements {spec.requirements}: the shipped directory holds no such file; give its path below it, "
            "and see that .gitignore does not leave it out"
        )
    return spec.model_copy(update={"code": shipment.digest})


def codes_of(job: JobView) -> list[str]:
    """Why it waits; nothing if it does not."""
    waits = job.verdict is not None and job.state in (JobState.HELD, JobState.QUEUED)
    return [reason.code for reason in job.verdict.reasons] if waits and job.verdict else []


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
            faults.append(words + in_words(fault))
        raise ErgonError("; ".join(faults)) from error


def _jobs_of(file: Path, given: dict[str, object]) -> list[JobSpec]:
    """The jobs of a file, which says everything about them itself."""
    if given:
        option = OPTIONS.get(next(iter(given)), "--require-feasible")
        raise ErgonError(f"{option} and --file do not go together; write it into {file}")
    return read_jobs(file)


def _array(count: int | None, limit: int | None) -> dict[str, int | None] | None:
    if count is None:
        if limit is not None:
            raise ErgonError("--array-limit goes with --array COUNT")
        return None
    return {"count": count, "limit": limit}


def _dependency(word: str) -> dict[str, str]:
    job, colon, on = word.partition(":")
    if colon and on not in ("success", "end"):
        raise ErgonError(f"--after {word}: write JOB, JOB:success or JOB:end")
    return {"job": job, "on": on or "success"}


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

"""`ergon jobs`, `show`, `logs` and `cancel`."""

import contextlib
import itertools
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated

import typer

from ergon.cli.chart import chart
from ergon.cli.output import (
    Json,
    clean,
    complain,
    line,
    local_time,
    note,
    table,
    told_on_interrupt,
    write_json,
    write_json_lines,
)
from ergon.cli.units import show_duration, show_size
from ergon.client import Client, Stream
from ergon.errors import ErgonError
from protocol.jobs import (
    ArrayView,
    AttemptView,
    ExpectedView,
    InputsView,
    JobSpec,
    JobView,
    LogView,
    ProgressView,
    SampleEnergyView,
)
from protocol.states import FINAL_JOB_STATES, JobState

NEWEST = 20
EVENTS_SHOWN = 10
ARRAY_PREFIX = "array-"
"""How the id of an array begins."""

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]


def jobs(
    state: Annotated[list[JobState] | None, typer.Option(help="Only jobs in this state; may repeat.")] = None,
    user: Annotated[str | None, typer.Option(help="Only jobs of this user.")] = None,
    queue: Annotated[str | None, typer.Option(help="Only jobs of this queue.")] = None,
    array: Annotated[str | None, typer.Option(metavar="ARRAY", help="The jobs of this array, one by one.")] = None,
    every: Annotated[bool, typer.Option("--all", help=f"Every job, not the newest {NEWEST} only.")] = False,
    as_json: Json = False,
) -> None:
    """List jobs, newest first; an array is one line with the states of its jobs. A user sees own jobs, an administrator
    all.
    """
    limit = None if every else NEWEST
    with Client() as client:
        found = client.jobs(
            states=state or (),
            user=user,
            queue=queue,
            array=array,
            folded=array is None,
            page_size=None if every else NEWEST,
        )
        shown = itertools.islice(found, limit)
        if as_json:
            write_json_lines(shown)
            return
        rows = [_row(job) for job in shown]
        if not rows:
            note("no jobs")
            return
        table(("ID", "NAME", "USER", "STATE", "ASKS", "SUBMITTED", ">RAN", "PROGRESS"), rows)
        if not every and next(found, None) is not None:
            note("older jobs are not shown; `ergon jobs --all` lists every one")


def _row(job: JobView) -> tuple[str, ...]:
    spec = job.spec
    kinds = ("|".join(spec.device_kinds) or "any") if spec.devices_per_node else "cores"
    asks = f"{spec.nodes}x{(spec.devices_per_node or spec.cores) * spec.device_share:g} {kinds}"
    state = f"{job.state} (cancelling)" if job.cancel_requested and job.state not in FINAL_JOB_STATES else job.state
    progress = describe_progress(job.progress) if job.progress else ""
    if job.array and job.array.states:
        states = _states(job.array.states)
        return (job.array.id, spec.name, job.user, states, asks, local_time(job.submitted_at), "-", "")
    name = f"{spec.name}[{job.array.index}]" if job.array else spec.name
    return (job.id, name, job.user, state, asks, local_time(job.submitted_at), _ran(job), progress)


def _ran(job: JobView) -> str:
    if job.started_at is None:
        return "-"
    return show_duration(((job.ended_at or datetime.now(UTC)) - job.started_at).total_seconds())


def describe_progress(progress: ProgressView) -> str:
    """Such as `epoch 3/20 step 120/800 loss 0.21`."""
    words: list[str] = []
    for what, done, total in (
        ("epoch", progress.epoch, progress.total_epochs),
        ("step", progress.step, progress.total_steps),
    ):
        if done is not None:
            words.append(f"{what} {done}" + (f"/{total}" if total is not None else ""))
    words += [f"{name} {value:.4g}" for name, value in sorted(progress.metrics.items())]
    return " ".join(words)


def show(job_id: JobId, as_json: Json = False) -> None:
    """Everything about one job: what it asks for, where it runs, why it waits, how the loss falls."""
    with Client() as client:
        if job_id.startswith(ARRAY_PREFIX):
            _show_array(client.array(job_id), as_json=as_json)
            return
        job = client.job(job_id)
        if as_json:
            write_json(job)
            return
        _describe(job)
        events = list(client.events(job_id))
        if events:
            line("events" + (f" (the last {EVENTS_SHOWN})" if len(events) > EVENTS_SHOWN else ""))
            for event in events[-EVENTS_SHOWN:]:
                facts = " ".join(f"{key}={value}" for key, value in event.data.items() if value is not None)
                line(f"  {local_time(event.at)}  {event.kind}  {facts}".rstrip())
        curve = loss_curve(client, job)
        if curve:
            line("loss")
            for row in curve:
                line(row)


def _show_array(array: ArrayView, *, as_json: bool) -> None:
    if as_json:
        write_json(array)
        return
    limit = f", at most {array.limit} at a time" if array.limit else ""
    line(f"array     {array.id}  {array.count} jobs{limit}  (user {array.user})")
    line(f"states    {_states(array.states)}")
    line(f"times     submitted {local_time(array.submitted_at)}")
    line(f"jobs      `ergon jobs --array {array.id}` lists them")


def _states(states: Mapping[JobState, int]) -> str:
    """Such as `2 running, 4 queued`, in the order of a job's life."""
    return ", ".join(f"{states[state]} {state}" for state in JobState if states.get(state))


def loss_curve(client: Client, job: JobView) -> list[str]:
    """The loss that rank 0 of the latest attempt reported, drawn in plain characters; nothing if it reported none."""
    points = client.metrics(job.id, name="loss", rank=0)
    return chart([point.value for point in points if point.epoch == job.epoch])


def _describe(job: JobView) -> None:
    spec = job.spec
    line(f"job       {job.id}  {spec.name}  (user {job.user}, queue {spec.queue}, priority {job.priority})")
    if job.array:
        line(f"array     {job.array.id}, number {job.array.index} of {job.array.count}")
    if job.resubmitted_from:
        line(f"again     a new run of {job.resubmitted_from}")
    line(f"state     {job.state}" + (f": {job.reason}" if job.reason else ""))
    times = [f"submitted {local_time(job.submitted_at)}"]
    if job.started_at:
        times.append(f"started {local_time(job.started_at)}")
    if job.ended_at:
        times.append(f"ended {local_time(job.ended_at)}")
    line("times     " + ", ".join(times) + (f" (ran {_ran(job)})" if job.started_at else ""))
    line(f"asks for  {describe_request(spec)}")
    line(f"program   {_program(spec)}")
    if job.verdict and job.state not in FINAL_JOB_STATES:
        line(f"verdict   {job.verdict.outcome}")
        for reason in job.verdict.reasons:
            line(f"          {reason.message} ({reason.code})")
    _describe_course(job)
    for attempt in job.attempts:
        line(
            f"attempt {attempt.epoch} {attempt.state}"
            + (f" ({attempt.reason})" if attempt.reason else "")
            + (f", on {len(attempt.members)} of {spec.nodes} nodes" if len(spec.sizes) > 1 else "")
            + f", granted {local_time(attempt.granted_at)}"
            + _describe_cap(attempt)
        )
        for member in attempt.members:
            facts = [f"exit code {member.exit_code}"] if member.exit_code is not None else []
            facts += [str(fact) for fact in (member.reason, member.message) if fact]
            ended = f" ({', '.join(facts)})" if facts else ""
            line(f"  {member.node}: {', '.join(member.devices) or 'no device'}: {member.state}{ended}")


def _describe_course(job: JobView) -> None:
    """How far it has come, what it draws and fetches for that, and how long it will go on."""
    if job.progress:
        line(f"progress  {describe_progress(job.progress)}")
    if job.sample_energy:
        line(f"energy    {_describe_energy(job.sample_energy)}")
    if job.expected:
        line(f"expected  {_describe_expected(job.expected, job.spec, runs=job.state is JobState.RUNNING)}")
    if job.inputs:
        line(f"inputs    {_describe_inputs(job.inputs, waits=job.state is not JobState.STARTING)}")
    if job.checkpoint:
        line(f"saved     step {job.checkpoint.step} of attempt {job.checkpoint.epoch}, {local_time(job.checkpoint.at)}")


def _describe_cap(attempt: AttemptView) -> str:
    """Such as `, capped at 266 W each device, about 4.8% slower`."""
    if attempt.cap_w is None:
        return ""
    return f", capped at {attempt.cap_w:.0f} W each device, about {attempt.slower - 1:.1%} slower"


def _describe_energy(energy: SampleEnergyView) -> str:
    """Such as `0.0123 J per token, at 502 W each device (measured)`."""
    return f"{energy.joules:.3g} J per {energy.per}, at {energy.device_w:.3g} W each device ({energy.quality})"


def _describe_expected(expected: ExpectedView, spec: JobSpec, *, runs: bool) -> str:
    """Such as `ends in about 2h 10m (1h 50m to 2h 40m), from its progress`."""
    about, low, high = (show_duration(seconds) for seconds in (expected.seconds, expected.low_s, expected.high_s))
    where = f" on {expected.kind}" if expected.kind and not runs else ""
    if expected.nodes is not None and len(spec.sizes) > 1 and not runs:
        where += f" on {_count(expected.nodes, 'node')}"
    time = f"{'ends in' if runs else 'runs for'} about {about}{where} ({low} to {high}), {expected.because}"
    if expected.device_w is None or not expected.metered_on:
        return time
    return f"{time}; {expected.device_w:.0f} W above idle each device, as metered on {', '.join(expected.metered_on)}"


def _describe_inputs(inputs: InputsView, *, waits: bool) -> str:
    """Such as `1.2GiB of code and data, kept by a, b; elsewhere it takes about 14s to fetch`, or `fetching 1.2GiB:
    about 14s`.
    """
    about = f"about {show_duration(inputs.fetch_s)}"
    if inputs.unsized:
        return f"{_count(inputs.unsized, 'dataset')} of unknown size, for no node has fetched it"
    if not waits:
        return f"fetching {show_size(inputs.missing_bytes)}: {about}" if inputs.missing_bytes else "all there"
    kept = f"kept by {', '.join(inputs.nodes)}; elsewhere" if inputs.nodes else "kept by no node;"
    return f"{show_size(inputs.size_bytes)} of code and data, {kept} it takes {about} to fetch"


def describe_request(spec: JobSpec) -> str:
    """Such as `2 nodes with 1 device each (h100), 1 rank and 1 core per node`."""
    kinds = " or ".join(spec.device_kinds) or "any kind"
    if spec.device_share < 1:
        kept = "" if spec.device_isolation == "none" else f", isolated by {spec.device_isolation}"
        devices = f"{spec.device_share:g} of a device each ({kinds}{kept})"
    elif spec.devices_per_node:
        devices = f"{_count(spec.devices_per_node, 'device')} each ({kinds})"
    else:
        devices = "no device"
    words = f"{spec.nodes} {'node' if spec.nodes == 1 else 'nodes'} with {devices}, "
    words += f"{_count(spec.ranks, 'rank')} and {_count(spec.cores, 'core')} per node"
    if spec.memory_bytes_per_node:
        words += f", {show_size(spec.memory_bytes_per_node)} of memory per node"
    if spec.disk_bytes_per_node:
        words += f", at most {show_size(spec.disk_bytes_per_node)} on each node's disk"
    if spec.stall_timeout_s:
        words += f", stalled after {show_duration(spec.stall_timeout_s)} of silence"
    if spec.stop_grace_s is not None:
        words += f", {show_duration(spec.stop_grace_s)} to leave when stopped"
    if spec.may_wait_s:
        words += f", may wait {show_duration(spec.may_wait_s)} for cheaper hours"
    if spec.may_slow:
        words += f", may run {spec.may_slow:.1%} longer to save energy"
    if spec.may_move:
        words += ", may be moved"
    if spec.time_limit_s:
        words += f", at most {show_duration(spec.time_limit_s)}"
    return words


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def _program(spec: JobSpec) -> str:
    if spec.recipe:
        return " ".join([f"recipe {spec.recipe.name}", *(f"{key}={v}" for key, v in spec.recipe.options.items())])
    return " ".join(spec.command or [])


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job has ended.")] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="Only this rank.")] = None,
    stream: Annotated[Stream | None, typer.Option(help="Only standard output or only standard error.")] = None,
    as_json: Json = False,
) -> None:
    """What the ranks have written. Every line carries its rank if there are several."""
    told = told_on_interrupt(goes_on(job_id)) if follow else contextlib.nullcontext()
    with Client() as client, told:
        read = client.follow_logs if follow else client.logs
        pieces = read(job_id, rank=rank, stream=stream)
        if as_json:
            write_json_lines(pieces)
        else:
            job = client.job(job_id)
            if job.output_deleted:
                note(f"what {job_id} wrote was kept as long as the service keeps it, and is deleted")
            print_logs(pieces, prefix=rank is None and job.spec.sizes[-1] * job.spec.ranks > 1)


def goes_on(job_id: str) -> str:
    """To say of a job that nobody waits for any more."""
    return f"the job goes on; see it with `ergon logs -f {job_id}`, end it with `ergon cancel {job_id}`"


def print_logs(pieces: Iterable[LogView], *, prefix: bool) -> None:
    """Write pieces of logs as they come; with `prefix` only whole lines, so that ranks do not mix inside one.

    A terminal gets clean text, a file or a pipe exactly what was written.
    """
    shown = clean if sys.stdout.isatty() else str
    rests: dict[tuple[int, str], str] = {}
    for piece in pieces:
        if prefix:
            source = (piece.rank, piece.stream)
            *lines, rests[source] = (rests.get(source, "") + piece.text).split("\n")
            sys.stdout.writelines(f"[{piece.rank}] {shown(text)}\n" for text in lines)
        else:
            sys.stdout.write(shown(piece.text))
        sys.stdout.flush()
    sys.stdout.writelines(f"[{rank}] {shown(rest)}\n" for (rank, _), rest in rests.items() if rest)


def cancel(
    job_ids: Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids of the jobs.")],
    as_json: Json = False,
) -> int:
    """End jobs. One that cannot be cancelled does not keep the others; the exit code then is not 0."""
    worst = 0
    with Client() as client:
        for job_id in dict.fromkeys(job_ids):
            try:
                job = client.cancel_array(job_id) if job_id.startswith(ARRAY_PREFIX) else client.cancel(job_id)
            except ErgonError as error:
                complain(f"{job_id}: {error}")
                worst = max(worst, error.exit_code)
            else:
                if as_json:
                    write_json(job)
                elif isinstance(job, ArrayView):
                    line(f"{job.id} {_states(job.states)}")
                else:
                    done = job.state in FINAL_JOB_STATES
                    line(f"{job.id} {'cancelled' if done else 'is being stopped'}")
    return worst


def say_end(job: JobView) -> None:
    """How a job ended, on stderr."""
    ran = f" after {_ran(job)}" if job.started_at else ""
    note(f"{job.state}{ran}" + (f": {job.reason}" if job.reason else ""))

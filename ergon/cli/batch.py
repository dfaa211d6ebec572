"""Many jobs at once on the command line, dry runs, and `ergon schema`."""

import json
from collections.abc import Sequence

import typer

from ergon.cli.jobfile import schema
from ergon.cli.jobs import describe_request, say_end
from ergon.cli.output import line, note, told_on_interrupt, write_json
from ergon.client import Client
from protocol.batch import MAX_DRY_RUN, BatchItem, DryRunItem
from protocol.jobs import JobSpec
from protocol.states import JobState

MAYBE_SUBMITTED = "it may have been submitted; `ergon jobs` tells"
"""To say of a submission that was broken off before the answer."""


def submit_batch(client: Client, specs: Sequence[JobSpec], *, wait: bool, as_json: bool) -> int:
    """Submit jobs, all or none. The ids of jobs and arrays go to standard output, one a line."""
    with told_on_interrupt(MAYBE_SUBMITTED):
        items = client.submit_many(specs).items
    for item in items:
        if as_json:
            write_json(item)
        else:
            line(item.id)
    if not as_json:
        note(_summary(items))
    if not wait:
        return 0
    with told_on_interrupt("the jobs go on; `ergon jobs` shows them, `ergon cancel` ends them"):
        return _wait_for(client, items, specs)


def _wait_for(client: Client, items: Sequence[BatchItem], specs: Sequence[JobSpec]) -> int:
    """Wait for every job and say how it ended. 0 if all have succeeded, else 1."""
    worst = 0
    for item, spec in zip(items, specs, strict=True):
        ids = [job.id for job in client.jobs(array=item.id)] if spec.array else [item.id]
        for job_id in reversed(ids):
            job = client.wait(job_id)
            if job.state is not JobState.SUCCEEDED:
                note(f"{job_id}:")
                say_end(job)
                worst = 1
    return worst


def try_out(client: Client, specs: Sequence[JobSpec], *, as_json: bool) -> int:
    """Say what would become of the jobs. 1 if one of them could not run on the present nodes, else 0."""
    items = client.dry_run(specs[:MAX_DRY_RUN]).items
    for item in items:
        if as_json:
            write_json(item)
        else:
            _say(item)
    if len(specs) > MAX_DRY_RUN:
        note(f"{len(specs) - MAX_DRY_RUN} more jobs are well formed; a dry run weighs the first {MAX_DRY_RUN} only")
    return int(any(item.verdict.outcome == "impossible" for item in items))


def print_schema() -> None:
    """Print the JSON Schema of job files, for editors that complete and check them."""
    typer.echo(json.dumps(schema(), indent=2))


def _say(item: DryRunItem) -> None:
    spec = item.spec
    copies = f"{spec.array.count} times " if spec.array else ""
    line(f"{spec.name}: {copies}{describe_request(spec)}")
    reasons = "; ".join(reason.message for reason in item.verdict.reasons)
    match item.verdict.outcome:
        case "placed":
            line(f"  would start now on {', '.join(item.nodes)}")
        case "waiting":
            line(f"  would wait: {reasons}")
        case "impossible":
            line(f"  could not run on the present nodes: {reasons}")


def _summary(items: Sequence[BatchItem]) -> str:
    stuck = [item for item in items if item.verdict and item.verdict.outcome == "impossible"]
    said = f"{len(items)} submitted"
    if not stuck:
        return said
    reasons = "; ".join(reason.message for reason in (stuck[0].verdict.reasons if stuck[0].verdict else []))
    return f"{said}; {len(stuck)} of them wait for nodes that are not there, such as {stuck[0].id}: {reasons}"

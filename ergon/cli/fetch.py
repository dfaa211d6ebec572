"""`ergon fetch`."""

from pathlib import Path
from typing import Annotated

import typer

from ergon.cli.jobs import JobId
from ergon.cli.output import Json, line, note, write_json
from ergon.client import Client
from ergon.errors import ErgonError
from ergon.shipping import fetch_output
from protocol.jobs import OutputView


def fetch(
    job_id: JobId,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where to; a folder named after the job.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch what a job left in $ERGON_OUTPUT. The paths of the files go to standard output.

    A job of several nodes gets a folder for each member: `member-0`, `member-1`, ... `--json` only lists what there is.
    """
    with Client() as client:
        job = client.job(job_id)
        found = client.outputs(job.id)
        if as_json:
            write_json(found)
            return
        latest = _of_latest_attempt(found.items)
        if not latest:
            raise ErgonError(f"job {job_id} has stored no output: it is {job.state}, or it wrote nothing there")
        folder = output or Path(job.id)
        attempt = next(attempt for attempt in job.attempts if attempt.epoch == latest[0].epoch)
        nodes = len(attempt.members)
        for stored in latest:
            target = folder / f"member-{stored.member}" if job.spec.sizes[-1] > 1 else folder
            for path in fetch_output(client, job.id, stored, target, overwrite=force):
                line(str(target / path))
        absent = nodes - len(latest)
        if absent:
            note(f"{absent} of {nodes} members stored nothing in attempt {latest[0].epoch}")


def _of_latest_attempt(outputs: list[OutputView]) -> list[OutputView]:
    latest = max((output.epoch for output in outputs), default=0)
    return [output for output in outputs if output.epoch == latest]

"""`python -P -m workers.prepare FOLDER`: what an attempt needs before its ranks start.

A child of the supervisor, so that a stop, the lease and the death of the agent reach it as they reach the ranks. Its
standard error goes to the job's log. Standard input carries how to reach the service: neither a file nor an
environment that the job could read holds it.

    FOLDER/launch.json      `prepare` says what is needed
    FOLDER/work             where the code goes; empty before
    FOLDER/prepared.json    written at the end: program and variables, of containers those of each rank; or the fault
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from archives.limits import CODE, ArchiveError
from archives.unpack import unpack
from ergon.checkpoints import Mark
from protocol.caches import Fetch
from protocol.environment import DATASET_PREFIX
from workers import files
from workers.cache import Cache
from workers.commands import CommandFailed
from workers.containers import BadMount
from workers.datasets import DatasetMissing, place_of
from workers.environments import EnvironmentFailed, environment_python, find_interpreter
from workers.fetching import fetch_checkpoint
from workers.images import ImageFailed, make_containers
from workers.transfer import Transfer, TransferFailed, TransferRefused

Answer = TypeVar("Answer")

TRIES = 8
LONGEST_PAUSE_S = 10.0
MESSAGE_CHARACTERS = 1_500

FAULTS = (
    ArchiveError,
    BadMount,
    CommandFailed,
    DatasetMissing,
    EnvironmentFailed,
    ImageFailed,
    TransferFailed,
    TransferRefused,
)
"""What may be wrong with an attempt, in words for its user."""


def main(folder: Path) -> int:
    """Prepare the attempt in `folder`; the exit code, 0 if it may start."""
    credentials = json.load(sys.stdin)
    launch = files.read_record(str(folder / "launch.json"))
    assert launch is not None, "the agent writes it before it starts the supervisor"
    try:
        result = prepare(folder, launch, Transfer(credentials))
    except (*FAULTS, OSError) as error:
        result = {"fault": str(error)[:MESSAGE_CHARACTERS]}
        sys.stderr.write(f"ergon: {error}\n")
    files.write_record(str(folder / "prepared.json"), result, durable=False)
    return 1 if "fault" in result else 0


def prepare(folder: Path, launch: dict, transfer: Transfer) -> dict:
    """Code, checkpoint, data, then Python or containers: `argv` and `env` to start all ranks with, in `ranks` what each
    has of its own.

    Raises one of FAULTS, or OSError.
    """
    needs, own = launch["prepare"], launch["env"]
    cache = Cache(folder.parent.parent / "cache", folder)
    work = folder / "work"
    if needs["code"]:
        unpack_code(cache, needs["code"], work, transfer)
    if mark := needs.get("checkpoint"):  # a record of before has none
        fetch_checkpoint(
            transfer, launch["attempt"], Path(launch["checkpoints"]["folder"]), Mark(*mark), patient=_with_patience
        )
    env = {
        f"{DATASET_PREFIX}{name.upper()}": str(place_of(cache, name, source))
        for name, source in needs["datasets"].items()
    }
    if launch.get("container"):  # a record of before has none
        return {"argv": launch["argv"], "env": {}, "ranks": make_containers(cache, folder, launch, data=env)}
    path = own.get("PATH", os.defpath)
    argv: list[str] = launch["argv"]
    if needs["requirements"]:
        requirements = work / needs["requirements"]
        if not requirements.is_file():
            raise EnvironmentFailed(f"the code holds no file {needs['requirements']}; check --requirements")
        python = environment_python(
            cache,
            python=find_interpreter(needs["python"], path),
            requirements=requirements,
            folder=work,
            code=needs["code"],
            env=_build_environment(own),
        )
        argv = [str(python), *argv[1:]] if needs["is_python"] else argv
        env |= {"VIRTUAL_ENV": str(python.parent.parent), "PATH": f"{python.parent}{os.pathsep}{path}"}
    return {"argv": argv, "env": env, "ranks": []}


def unpack_code(cache: Cache, digest: str, work: Path, transfer: Transfer) -> None:
    """The archive from the cache or the service, unpacked."""

    def make(entry: Path) -> Fetch:
        return _with_patience(lambda: _download(transfer, digest, entry / "archive.tar.gz"))

    with (cache.get("archives", digest, make) / "archive.tar.gz").open("rb") as archive:
        unpack(archive, work, CODE)


def _download(transfer: Transfer, digest: str, target: Path) -> Fetch:
    with target.open("wb") as file:
        return transfer.download(digest, file)


def _with_patience(call: Callable[[], Answer]) -> Answer:
    """Try again while the service does not answer, with growing pauses."""
    failures = 0
    while True:
        try:
            return call()
        except TransferFailed as error:
            if failures == TRIES - 1:
                raise TransferFailed(f"it cannot be fetched from the service: {error}") from error
            time.sleep(min(0.2 * 2**failures, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0))
            failures += 1


def _build_environment(ranks: Mapping[str, str]) -> dict[str, str]:
    """The ranks' variables over our own, which are settings of pip and of proxies besides."""
    return {**os.environ, **ranks}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""Runs a recipe as a gang of real processes, with the environment torchrun gives its ranks."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

ADDRESS = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """What one rank left behind. `progress` are the lines it reported."""

    code: int
    stdout: str
    stderr: str
    progress: list[dict[str, object]]


@contextmanager
def started(
    words: list[str], *, world_size: int, folder: Path, attempt: dict[str, str] | None = None
) -> Iterator[list[subprocess.Popen[str]]]:
    """The ranks of `python -m training words`, by rank; none is left when the block ends.

    The test holds the store the ranks meet at, as torchrun's own agent does, on a port the kernel chose: no other test
    can take it in between. `attempt` are further variables.
    """
    store = dist.TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False)
    ranks: list[subprocess.Popen[str]] = []
    try:
        for rank in range(world_size):
            environment = {
                "PATH": os.environ["PATH"],
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": ADDRESS,
                "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RESTART_COUNT": "0",
                "ERGON_PROGRESS": str(folder / f"{rank}.jsonl"),
                **(attempt or {}),
            }
            command = [sys.executable, "-P", "-m", "training", *words]
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            ranks.append(process)
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


def run(words: list[str], *, world_size: int, folder: Path, attempt: dict[str, str] | None = None) -> list[Exit]:
    """Wait for the whole gang. The exits come in the order of the ranks."""
    with started(words, world_size=world_size, folder=folder, attempt=attempt) as ranks:
        outputs = [process.communicate() for process in ranks]
        return [
            Exit(code=process.returncode, stdout=stdout, stderr=stderr, progress=progress(folder / f"{rank}.jsonl"))
            for rank, (process, (stdout, stderr)) in enumerate(zip(ranks, outputs, strict=True))
        ]


def progress(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

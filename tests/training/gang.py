"""Runs a recipe as a gang of real processes, with the environment torchrun gives its ranks."""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed as dist

ADDRESS = "127.0.0.1"
SPEED = {"step_ms", "examples_per_s", "tokens_per_s", "memory_bytes", "mfu", "communication_share"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """What one rank left behind. `progress` are the lines it reported."""

    code: int
    stdout: str
    stderr: str
    progress: list[dict[str, object]]


class Rank:
    """One process of a gang. `stdout` is what it prints, while it runs."""

    def __init__(self, words: list[str], folder: Path, environment: dict[str, str], stderr: Path) -> None:
        self._stderr = stderr
        out, out_end = os.pipe()
        status, status_end = os.pipe()
        error_end = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        request = json.dumps({"words": words, "folder": str(folder), "environment": environment}).encode()
        ends = [out_end, error_end, status_end]
        socket.send_fds(starter(), [request], ends)
        for end in ends:
            os.close(end)
        self.stdout = os.fdopen(out)
        self._status = os.fdopen(status)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def send_signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def communicate(self) -> tuple[str, str]:
        """The rest of its stdout and all of its stderr, once it has ended."""
        said = "" if self.stdout.closed else self.stdout.read()
        self.stdout.close()
        if self.returncode is None:
            self.returncode = int(self._status.readline())
            self._status.close()
        return said, self._stderr.read_text()

    def end(self) -> None:
        if self.returncode is None:
            self.send_signal(signal.SIGKILL)
            self.communicate()


@cache
def starter() -> socket.socket:
    """The socket of this process's one starter, which ends with it."""
    ours, theirs = socket.socketpair()
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.starter", str(theirs.fileno())]
    process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


@contextmanager
def started(
    words: list[str], *, world_size: int, folder: Path, attempt: dict[str, str] | None = None
) -> Iterator[list[Rank]]:
    """The ranks of `python -m training words`, by rank; none is left when the block ends.

    The test holds the store the ranks meet at, as torchrun's own agent does, on a port the kernel chose: no other test
    can take it in between. `attempt` are further variables.
    """
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        ADDRESS, 0, is_master=True, wait_for_workers=False
    )
    ranks: list[Rank] = []
    try:
        for number in range(world_size):
            environment = {
                "PATH": os.environ["PATH"],
                "OMP_NUM_THREADS": "1",
                "RANK": str(number),
                "LOCAL_RANK": str(number),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": ADDRESS,
                "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RESTART_COUNT": "0",
                "ERGON_PROGRESS": str(folder / f"{number}.jsonl"),
                **(attempt or {}),
            }
            ranks.append(Rank(words, folder, environment, folder / f"{number}.stderr"))
        yield ranks
    finally:
        for rank in ranks:
            rank.end()


def run(words: list[str], *, world_size: int, folder: Path, attempt: dict[str, str] | None = None) -> list[Exit]:
    """Wait for the whole gang. The exits come in the order of the ranks."""
    with started(words, world_size=world_size, folder=folder, attempt=attempt) as ranks:
        outputs = [rank.communicate() for rank in ranks]
        return [
            Exit(code=rank.returncode or 0, stdout=stdout, stderr=stderr, progress=progress(folder / f"{number}.jsonl"))
            for number, (rank, (stdout, stderr)) in enumerate(zip(ranks, outputs, strict=True))
        ]


def progress(path: Path) -> list[dict[str, object]]:
    """What was told, but for how fast it was, which no two runs have in common."""
    lines = told(path)
    for line in lines:
        line["metrics"] = {name: value for name, value in line["metrics"].items() if name not in SPEED}
    return lines


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

"""What a member may use of its node, kept by the kernel: main memory, and processes. Standard library only.

The controllers `memory` and `pids` of v1 only, where this agent may make groups in them: each attempt gets one in both,
beside the control group that is there to kill it. Elsewhere nothing is limited.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

from workers.cgroups import Group, own_group

MOST_PROCESSES = 32_768
"""Processes and threads of one member: more than any training has, and fewer than a machine has room for."""


def limit_folders(attempt: str) -> dict[str, str]:
    """Where the groups of an attempt lie, by controller, as far as this agent may make any."""
    folders = {name: own_group(unified=False, controller=name) for name in ("memory", "pids")}
    return {name: f"{own}/ergon-limits/{attempt}" for name, own in folders.items() if own and os.access(own, os.W_OK)}


class Limits:
    """The groups of one attempt, by controller; they may exist or not."""

    def __init__(self, folders: dict[str, str], memory_bytes: int) -> None:
        """`memory_bytes` is what it may use; 0 for no limit: then it is only noted whether memory was short."""
        self._groups = {name: Group(path) for name, path in folders.items()}
        self._memory_bytes = memory_bytes

    def make(self) -> None:
        """What cannot be limited is not."""
        for name, group in list(self._groups.items()):
            try:
                group.make()
                if name == "pids":
                    _write(f"{group.path}/pids.max", MOST_PROCESSES)
                elif self._memory_bytes:
                    _write(f"{group.path}/memory.limit_in_bytes", self._memory_bytes)
                    with contextlib.suppress(FileNotFoundError):  # a kernel that does not count swap
                        _write(f"{group.path}/memory.memsw.limit_in_bytes", self._memory_bytes)
            except OSError as error:
                sys.stderr.write(f"no limit of {name} in {group.path}: {error.strerror}\n")
                del self._groups[name]

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """What is started meanwhile is limited."""
        with contextlib.ExitStack() as stack:
            for group in self._groups.values():
                stack.enter_context(group.inside())
            yield

    def was_memory_short(self) -> bool:
        """Whether the kernel killed something in here for want of memory, the group's own or the machine's."""
        if "memory" not in self._groups:
            return False
        with open(f"{self._groups['memory'].path}/memory.oom_control", encoding="ascii") as file:
            counts = dict(line.split() for line in file)
        return int(counts.get("oom_kill", 0)) > 0

    def remove(self) -> None:
        """Delete the groups. One that is not empty stays."""
        for group in self._groups.values():
            group.remove()


def _write(path: str, number: int) -> None:
    file = os.open(path, os.O_WRONLY)
    try:
        os.write(file, str(number).encode())
    finally:
        os.close(file)

"""What a member may use of its node, kept by the kernel: main memory, and processes. Standard library only.

With the controllers `memory` and `pids` of v1 each attempt gets a group in both, beside the control group that is there
to kill it. With those of v2 they limit that group itself. Where this agent may have neither, nothing is limited.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

from workers.cgroups import Group, Groups, own_group

CONTROLLERS = ("memory", "pids")
MOST_PROCESSES = 32_768
"""Processes and threads of one member: more than any training has, and fewer than a machine has room for."""
TRIAL_BYTES = 1 << 30


def limit_folders(attempt: str, groups: Groups | None) -> dict[str, str]:
    """Where the groups of an attempt lie, by controller, as far as this agent may have any; `groups` are those in which
    it kills."""
    v1 = {name: own_group(unified=False, controller=name) for name in CONTROLLERS}
    found = {name: f"{own}/ergon-limits/{attempt}" for name, own in v1.items() if own and os.access(own, os.W_OK)}
    if groups is not None and groups.unified:
        path = groups.group(attempt).path
        found |= {name: path for name in CONTROLLERS if v1[name] is None and _is_there(name, groups.own)}
    return found


def find_limits(groups: Groups | None) -> list[str]:
    """The controllers that limit the attempts of the agent with these groups, tried out."""
    folders = limit_folders(f".trial-{os.getpid()}", groups)
    trial = Limits(folders, TRIAL_BYTES)
    trial.make()
    Limits(folders, 0).remove()
    return trial.kept()


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
                if os.path.exists(f"{group.path}/cgroup.controllers"):
                    _enable(name, group.path)
                self._limit(name, group.path)
            except OSError as error:
                sys.stderr.write(f"no limit of {name} in {group.path}: {error.strerror}\n")
                del self._groups[name]

    def kept(self) -> list[str]:
        """The controllers that limit something, once made."""
        return list(self._groups)

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
        path = self._groups["memory"].path
        v2 = f"{path}/memory.events"  # counts what happens in groups below, too
        with open(v2 if os.path.exists(v2) else f"{path}/memory.oom_control", encoding="ascii") as file:
            counts = dict(line.split() for line in file)
        return int(counts.get("oom_kill", 0)) > 0

    def remove(self) -> None:
        """Delete the groups. One that is not empty stays."""
        for group in self._groups.values():
            group.remove()

    def _limit(self, name: str, path: str) -> None:
        if name == "pids":
            _write(f"{path}/pids.max", str(MOST_PROCESSES))
            return
        limit, swap = "memory.limit_in_bytes", ("memory.memsw.limit_in_bytes", str(self._memory_bytes))
        if os.path.exists(f"{path}/memory.max"):
            limit, swap = "memory.max", ("memory.swap.max", "0")  # v2 counts swap apart
        if self._memory_bytes:
            _write(f"{path}/{limit}", str(self._memory_bytes))
            with contextlib.suppress(FileNotFoundError):  # a kernel that does not count swap
                _write(f"{path}/{swap[0]}", swap[1])


def _is_there(name: str, own: str) -> bool:
    """Whether the controller of v2 can be had below the group `own`."""
    with open(f"{own}/cgroup.controllers", encoding="ascii") as file:
        return name in file.read().split()


def _enable(name: str, path: str) -> None:
    """Let the controller of v2 act in the group `path`: the two above it pass it on. Raises OSError."""
    above = os.path.dirname(path)
    for folder in (os.path.dirname(above), above):
        _write(f"{folder}/cgroup.subtree_control", f"+{name}")


def _write(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)

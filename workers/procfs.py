"""Reading `/proc`: who is alive, who descends from whom, and the CPU time they used. Standard library only."""

import os
import signal

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Process:
    """One line of the process table. `start` is in clock ticks since boot, `cpu_s` in s.

    `cpu_s` includes children that ended and were waited for, so that the sum over a tree whose root reaps every orphan
    loses nothing when one of its processes ends.
    """

    __slots__ = ("cpu_s", "parent", "pid", "start", "state")

    def __init__(self, pid: int, state: str, parent: int, start: int, cpu_s: float) -> None:
        self.pid = pid
        self.state = state
        self.parent = parent
        self.start = start
        self.cpu_s = cpu_s


def read_process(pid: int) -> Process | None:
    """The process as proc(5) describes it in `/proc/PID/stat`, or None if there is none of this number."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in brackets and may hold anything; the rest starts after the last bracket.
    fields = text[text.rindex(b")") + 2 :].split()
    cpu_s = sum(int(field) for field in fields[11:15]) / TICKS_PER_S
    return Process(pid, fields[0].decode(), int(fields[1]), int(fields[19]), cpu_s)


def is_alive(pid: int, start: int) -> bool:
    """Whether the process that had this number and start time still runs. A zombie does not."""
    process = read_process(pid)
    return process is not None and process.start == start and process.state not in "ZX"


def read_processes() -> dict[int, Process]:
    """Every process of the machine, by number."""
    found = (read_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process is not None}


def descendants(root: int, table: dict[int, Process]) -> list[Process]:
    """All processes below `root`, zombies included, `root` itself not."""
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += [process.pid for process in below]
    return found


def pids_with_variable(variable: bytes) -> list[int]:
    """Processes that were started with `variable`, given as `NAME=value`, in their environment. Zombies have none."""
    found: list[int] = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                environment = file.read()
        except OSError:
            continue  # it ended, or it belongs to somebody else and cannot be one of ours
        if variable in environment.split(b"\0"):
            found.append(int(name))
    return found


def send_signal(pid: int, start: int, number: signal.Signals) -> None:
    """Signal exactly the process that had this number and start time: no other one, and none if it has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        process = read_process(pid)
        if process is not None and process.start == start:
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        pass  # it ended by itself
    finally:
        os.close(handle)

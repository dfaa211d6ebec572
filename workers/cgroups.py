"""Control groups: the kernel's own list of everything that an attempt has started. Standard library only.

A process can leave its session, lose its parent and clear its environment; its control group it cannot leave, unless it
is root and means to. Two kinds will do: the unified hierarchy (v2), which kills a group at once from Linux 5.14 on, and
the freezer of v1. What a member may use is limited in `limits.py`.

    OWN/ergon-FOLDER/ATTEMPT    OWN is the agent's own group, FOLDER the device and inode number of its state folder

Where the agent's group is called `ergon-agent`, OWN is the one above: v2 limits nothing below a group that has
processes of its own (cgroups(7), "no internal processes"), so systemd is asked for a place beside (DelegateSubgroup=).
"""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator

PREFIX = "ergon-"
SUBGROUP = "ergon-agent"
"""Where an agent is that leaves the group above to what it makes."""
FREEZE_S = 0.1
"""How long one try to kill a group of v1 waits until nothing in it runs, in s. What sleeps in the kernel never freezes,
and needs not: it cannot fork either."""


class Group:
    """The group whose folder is `path`; it may exist or not."""

    def __init__(self, path: str) -> None:
        self.path = path

    def make(self) -> None:
        """Raises OSError."""
        for tries_left in (2, 1, 0):
            try:
                os.makedirs(self.path, exist_ok=True)
            except FileNotFoundError:
                if not tries_left:
                    raise
                continue  # a neighbour that ended took the folder above away at this moment
            return

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This process is in the group meanwhile, and what it starts stays there. Then it goes back to where the agent
        is. Raises OSError."""
        _write(f"{self.path}/cgroup.procs", "0")
        try:
            yield
        finally:
            _write(f"{self._home()}/cgroup.procs", "0")

    def is_empty(self) -> bool:
        """Whether no process is left inside, as the kernel sees it. A zombie counts as gone."""
        try:
            return "populated 0" in _read(f"{self.path}/cgroup.events")
        except FileNotFoundError:
            return not self._pids()

    def kill(self) -> None:
        """Send SIGKILL to everything inside, once. It takes a moment to be gone, and what hangs in the kernel stays."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.exists(f"{self.path}/cgroup.kill"):
                _write(f"{self.path}/cgroup.kill", "1")
            elif os.path.exists(f"{self.path}/freezer.state"):
                self._kill_frozen()

    def remove(self) -> None:
        """Delete it and all groups that its processes made inside, and the one above if it was the last there. One that
        is not empty stays."""
        inside = [folder for folder, _folders, _files in os.walk(self.path, topdown=False)]
        for folder in (*inside, os.path.dirname(self.path)):
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def _home(self) -> str:
        """Where the agent is."""
        own = os.path.dirname(os.path.dirname(self.path))
        return f"{own}/{SUBGROUP}" if os.path.isdir(f"{own}/{SUBGROUP}") else own

    def _kill_frozen(self) -> None:
        """While the group stands still nothing in it forks, and no number of a process is given to another one."""
        state = f"{self.path}/freezer.state"
        _write(state, "FROZEN")
        give_up_s = time.monotonic() + FREEZE_S
        while _read(state) != "FROZEN" and time.monotonic() < give_up_s:
            time.sleep(0.001)
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _write(state, "THAWED")

    def _pids(self) -> list[int]:
        """Every process of the group and of the groups below. One of another PID namespace has no number here: 0."""
        found: list[int] = []
        for folder, _folders, _files in os.walk(self.path):
            with contextlib.suppress(FileNotFoundError):
                found += [int(word) for word in _read(f"{folder}/cgroup.procs").split() if word != "0"]
        return found


class Groups:
    """The groups of one agent, of the unified hierarchy or of the freezer of v1."""

    def __init__(self, own: str, key: str, *, unified: bool) -> None:
        """`own` is the folder in which groups are made, `key` tells this agent's from those of its neighbours."""
        self.unified = unified
        self.own = own
        self._folder = f"{own}/{PREFIX}{key}"

    def group(self, attempt: str) -> Group:
        """The group for an attempt of this agent."""
        return Group(f"{self._folder}/{attempt}")

    def attempts(self) -> list[str]:
        """Attempts that this agent's groups stand for."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(entry.name for entry in os.scandir(self._folder) if entry.is_dir())
        return []

    def every_group(self, attempt: str) -> list[Group]:
        """The groups of an attempt, whichever agent on this machine made them: a state folder may have been lost."""
        folders = [entry.path for entry in os.scandir(self.own) if entry.name.startswith(PREFIX)]
        return [Group(f"{folder}/{attempt}") for folder in folders if os.path.isdir(f"{folder}/{attempt}")]


class NoGroups(Exception):
    """This process may have no groups. The message says why."""


def find_groups(state_folder: str) -> Groups:
    """The groups for the agent with this state folder, tried out.

    Raises:
        NoGroups: none of the two kinds is there for this process.
    """
    status = os.stat(state_folder)
    key = f"{status.st_dev:x}-{status.st_ino:x}"
    why = "none are mounted"
    for unified, needed in ((True, "cgroup.kill"), (False, "freezer.state")):
        own = own_group(unified=unified)
        if own is None:
            continue
        if os.path.basename(own) == SUBGROUP:
            own = os.path.dirname(own)
        groups = Groups(own, key, unified=unified)
        trial = groups.group(".trial")
        try:
            trial.make()
            with trial.inside():
                pass
            if os.path.exists(f"{trial.path}/{needed}"):
                return groups
            why = f"{own} has no {needed}"
        except OSError as error:
            why = f"{own}: {error.strerror}"
        finally:
            trial.remove()
    raise NoGroups(why)


def own_group(*, unified: bool, controller: str = "freezer") -> str | None:
    """The folder of this process's own group, from `/proc/self/cgroup` and `/proc/self/mountinfo` (proc(5))."""
    group = None
    for line in _read("/proc/self/cgroup").splitlines():
        _number, controllers, path = line.split(":", 2)
        if not controllers if unified else controller in controllers.split(","):
            group = path.rstrip("/")
    for line in _read("/proc/self/mountinfo").splitlines():
        before, _dash, after = line.partition(" - ")
        file_system, _source, options = after.split(" ", 2)
        root, folder = before.split()[3:5]
        root = root.rstrip("/")
        fits = file_system == "cgroup2" if unified else file_system == "cgroup" and controller in options.split(",")
        if group is not None and fits and f"{group}/".startswith(f"{root}/"):
            return folder + group[len(root) :]
    return None


def _read(path: str) -> str:
    with _gone_is_not_found(), open(path, encoding="utf-8") as file:
        return file.read().strip()


def _write(path: str, text: str) -> None:
    with _gone_is_not_found():
        file = os.open(path, os.O_WRONLY)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)


@contextlib.contextmanager
def _gone_is_not_found() -> Iterator[None]:
    """A supervisor and an agent may empty the same group: of one that the other removes while a file of it is open,
    the kernel says ENODEV."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
        raise

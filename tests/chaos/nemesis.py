"""What breaks, when and where follows from a seed. What is hit by it is looked up at that moment."""

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.chaos.cluster import Cluster, Process, processes_of
from tests.chaos.history import History
from tests.freezing import freeze, thaw
from tests.netns import run

PAUSE_S = 2.2
"""Mean time from one fault to the next."""
LONGEST_S = 9.0
"""Longer than a node may run on without an answer: 0.65 of the lease."""

JUMP_S = 7200.0
"""How far a clock jumps, forwards or backwards."""

Undo = Callable[[], None]
Fault = Callable[[], Undo]


class Nemesis:
    """One fault after another, several at a time, but no target twice at a time."""

    def __init__(self, cluster: Cluster, history: History, seed: int) -> None:
        self._cluster = cluster
        self._history = history
        self._chance = random.Random(seed)
        self._busy: set[str] = set()
        self._undoing: list[threading.Thread] = []
        self._over = threading.Event()
        self._reviving = threading.Lock()

    def rage(self, over: threading.Event, seconds: float) -> None:
        """Break things until it is `over` or the time is, then undo everything."""
        kinds: list[str] = []
        threading.Timer(seconds, self._over.set).start()
        while not self._over.wait(self._chance.expovariate(1 / PAUSE_S)) and not over.is_set():
            if not kinds:  # each kind equally often
                kinds = sorted(FAULTS)
                self._chance.shuffle(kinds)
            self._strike(kinds.pop())
        self._over.set()
        for thread in self._undoing:
            thread.join()
        self._revive()

    def _strike(self, kind: str) -> None:
        where, make = FAULTS[kind]
        targets = [target for target in where(self._cluster) if target not in self._busy]
        lasts_s = self._chance.uniform(0.5, LONGEST_S)
        if not targets:
            return
        target = self._chance.choice(targets)
        hit, jobs = self._look(target)
        self._busy.add(target)
        undo = make(self._cluster, target, self._chance)
        if undo is None:  # there was nothing to hit
            self._busy.discard(target)
            return
        self._history.add("nemesis", "info", kind, target=target, hit=hit, jobs=jobs, lasts_s=lasts_s)

        def heal() -> None:
            self._over.wait(lasts_s)
            try:
                undo()
            except Exception as error:
                self._history.add("nemesis", "violation", kind, target=target, said=f"it does not start again: {error}")
            self._history.add("nemesis", "info", "undo", kind=kind, target=target)
            self._busy.discard(target)
            self._revive()

        thread = threading.Thread(target=heal, name=f"undo-{kind}")
        thread.start()
        self._undoing.append(thread)

    def _revive(self) -> None:
        """Start again, as systemd would, what ended without our doing, which it should not."""
        with self._reviving:
            for process in self._cluster.everything():
                if process.name not in self._busy and process.ended:
                    self._history.add("nemesis", "violation", "revive", said=f"{process.name} ended by itself")
                    process.start_again()

    def _look(self, target: str) -> tuple[str | None, list[tuple[str, int]]]:
        """What is going on where it will hit: on a node what runs there, elsewhere whether something is committed."""
        if not target.startswith("node-"):
            return ("committing" if self._history.open_writes else None), []
        supervisors, ranks = attempts_on(self._cluster, target)
        if not supervisors:
            return None, []
        return ("running" if ranks else "starting"), sorted({attempt_of(process) for process in ranks} - {("", 0)})


def attempts_on(cluster: Cluster, node: str) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """Supervisors and ranks there."""
    supervisors: list[psutil.Process] = []
    ranks: list[psutil.Process] = []
    for process in processes_of(cluster.namespaces[_number(node)]):
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if "from workers import supervisor" in words:
                supervisors.append(process)
            elif "rank.py" in words:
                ranks.append(process)
    return supervisors, ranks


def attempt_of(rank: psutil.Process) -> tuple[str, int]:
    """Job and epoch."""
    try:
        environment = rank.environ()
        return environment["ERGON_JOB_ID"], int(environment["ERGON_EPOCH"])
    except (psutil.Error, KeyError):
        return "", 0


# -- the faults. Each breaks something and returns how to mend it, or None if there is nothing to break.


def _number(node: str) -> int:
    return int(node.removeprefix("node-")) - 1


def _process(cluster: Cluster, name: str) -> Process:
    return next(process for process in cluster.everything() if process.name == name)


def kill(cluster: Cluster, target: str, _: random.Random) -> Undo | None:
    process = _process(cluster, target)
    process.end(signal.SIGKILL)
    return process.start_again


def stop(cluster: Cluster, target: str, _: random.Random) -> Undo | None:
    process = _process(cluster, target)
    process.send(signal.SIGSTOP)
    return lambda: process.send(signal.SIGCONT)


def kill_postgres(cluster: Cluster, _: str, __: random.Random) -> Undo | None:
    os.kill(cluster.postmaster, signal.SIGKILL)
    return lambda: None  # its supervisor starts it again


def freeze_postgres(cluster: Cluster, _: str, __: random.Random) -> Undo | None:
    stopped = freeze(cluster.postmaster)
    return lambda: thaw(stopped)


def _signal_one(processes: list[psutil.Process], chance: random.Random, number: signal.Signals) -> Undo | None:
    if not processes:
        return None
    one = chance.choice(processes)
    with contextlib.suppress(psutil.NoSuchProcess):
        one.send_signal(number)
    return lambda: thaw([one])


def kill_supervisor(cluster: Cluster, node: str, chance: random.Random) -> Undo | None:
    return _signal_one(attempts_on(cluster, node)[0], chance, signal.SIGKILL)


def freeze_supervisor(cluster: Cluster, node: str, chance: random.Random) -> Undo | None:
    return _signal_one(attempts_on(cluster, node)[0], chance, signal.SIGSTOP)


def kill_rank(cluster: Cluster, node: str, chance: random.Random) -> Undo | None:
    return _signal_one(attempts_on(cluster, node)[1], chance, signal.SIGKILL)


def freeze_rank(cluster: Cluster, node: str, chance: random.Random) -> Undo | None:
    return _signal_one(attempts_on(cluster, node)[1], chance, signal.SIGSTOP)


def partition(cluster: Cluster, node: str, _: random.Random) -> Undo | None:
    wire = cluster.bridge.wire(_number(node) + 1)
    run("ip", "link", "set", wire, "down")

    def heal() -> None:
        run("ip", "link", "set", wire, "up")

    return heal


def drop_answers(cluster: Cluster, _: str, __: random.Random) -> Undo | None:
    cluster.forwarder.drops_answers = True

    def heal() -> None:
        cluster.forwarder.drops_answers = False

    return heal


def fill_disk(cluster: Cluster, node: str, _: random.Random) -> Undo | None:
    ballast = cluster.state_of(_number(node)) / "ballast"
    _fill(ballast)
    return ballast.unlink


def jump_clock(cluster: Cluster, name: str, chance: random.Random) -> Undo | None:
    cluster.jump(name, chance.choice([-JUMP_S, JUMP_S]))
    return lambda: cluster.jump(name, 0.0)


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"\0" * 65_536):
            pass


def _nodes(cluster: Cluster) -> Iterator[str]:
    yield from (agent.name for agent in cluster.agents)


FAULTS: dict[str, tuple[Callable[[Cluster], Iterator[str]], Callable[[Cluster, str, random.Random], Undo | None]]] = {
    "kill-api": (lambda cluster: (api.name for api in cluster.apis), kill),
    "freeze-api": (lambda cluster: (api.name for api in cluster.apis), stop),
    "kill-cycle": (lambda cluster: (cycle.name for cycle in cluster.cycles), kill),
    "freeze-cycle": (lambda cluster: (cycle.name for cycle in cluster.cycles), stop),
    "kill-database": (lambda cluster: iter([cluster.database.name]), kill),
    "kill-postgres": (lambda cluster: iter([cluster.database.name]), kill_postgres),
    "freeze-postgres": (lambda cluster: iter([cluster.database.name]), freeze_postgres),
    "drop-answers": (lambda _: iter(["forwarder"]), drop_answers),
    "jump-clock": (
        lambda cluster: (one.name for one in cluster.everything() if one is not cluster.database),
        jump_clock,
    ),
    "kill-agent": (_nodes, kill),
    "freeze-agent": (_nodes, stop),
    "kill-supervisor": (_nodes, kill_supervisor),
    "freeze-supervisor": (_nodes, freeze_supervisor),
    "kill-rank": (_nodes, kill_rank),
    "freeze-rank": (_nodes, freeze_rank),
    "partition": (_nodes, partition),
    "fill-disk": (_nodes, fill_disk),
}

"""Virtual time: one thread, one ordered list of events, and processes that wait in it as if they had threads.

A process is a greenlet: real code that blocks (an agent, a planning cycle) runs unchanged, and whatever would block it
lets the next event happen instead. All chance comes from one seed, so a seed is a history.
"""

import hashlib
import heapq
import itertools
import queue
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

TICK_S = 1e-6
"""Every wait takes at least this long, so that time goes on whatever the rounding of clocks."""
MOST_EVENTS = 20_000
"""In one second of virtual time. More of them mean that something spins."""


class Process:
    """Something that runs and waits. A frozen one sleeps through its wake-ups until it is thawed."""

    def __init__(self, world: "World", name: str, body: Callable[[], None]) -> None:
        self.name = name
        self.frozen_until = 0.0
        self.waits_for: object = None
        self.dead = False
        self._world = world
        self._body = body
        self.greenlet = greenlet(self._run, parent=world.hub)

    def _run(self) -> None:
        try:
            self._body()
        finally:
            self.dead = True

    def kill(self) -> None:
        """End it where it waits, as SIGKILL would: only what has no effect outside may still be cleaned up."""
        if not self.dead:
            self.dead = True
            self.greenlet.throw(GreenletExit)

    def freeze(self, seconds: float) -> None:
        self.frozen_until = self._world.now + seconds


class World:
    """The true time in s, what will happen, and what has."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.hub = getcurrent()
        self.faults: Counter[str] = Counter()
        self.trace: list[str] = []
        self._digest = hashlib.sha256()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def say(self, who: str, what: str) -> None:
        """One line of the history."""
        line = f"{self.now:10.3f} {who:12} {what}"
        self.trace.append(line)
        self._digest.update(line.encode() + b"\n")

    def fault(self, kind: str, who: str, what: str = "") -> None:
        """A line of the history that is a fault."""
        self.faults[kind] += 1
        self.say(who, f"FAULT {kind} {what}".rstrip())

    @property
    def trace_hash(self) -> str:
        return self._digest.hexdigest()[:16]

    def at(self, delay_s: float, event: Callable[[], None]) -> None:
        """Let something happen after `delay_s`."""
        heapq.heappush(self._events, (self.now + delay_s, next(self._numbers), event))

    def run(self, until: float) -> None:
        """Let everything happen up to a point in time."""
        left = MOST_EVENTS * (1 + until - self.now)
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
            left -= 1
            assert left > 0, f"something spins at {self.now}: {event}"
        self.now = until

    def spawn(self, name: str, body: Callable[[], None]) -> Process:
        process = Process(self, name, body)
        self.at(0.0, lambda: None if process.dead else process.greenlet.switch())
        process.greenlet.process = process  # pyright: ignore[reportAttributeAccessIssue]
        return process

    def park(self, timeout_s: float | None, prepare: Callable[[Callable[[Any], None]], None] | None = None) -> Any:
        """Wait in the current process.

        Args:
            prepare: is handed what ends the wait with a value; later calls of that have no effect.

        Returns: that value, or None when the time is over.
        """
        process: Process = getcurrent().process  # pyright: ignore[reportAttributeAccessIssue]
        ticket = process.waits_for = object()

        def resume(value: object) -> None:
            if process.dead or process.waits_for is not ticket:
                return
            if process.frozen_until > self.now:
                self.at(process.frozen_until - self.now, lambda: resume(value))
                return
            process.waits_for = None
            process.greenlet.switch(value)

        if timeout_s is not None:
            self.at(max(0.0, timeout_s) + TICK_S, lambda: resume(None))
        if prepare is not None:
            prepare(lambda value: self.at(0.0, lambda: resume(value)))
        return self.hub.switch()

    def pause(self, seconds: float) -> None:
        self.park(seconds)


class Bell:
    """As `workers.bell.Bell`; `rate` is how fast the clock of its machine goes."""

    def __init__(self, world: World, rate: float = 1.0) -> None:
        self._world = world
        self._rate = rate
        self._rung = False
        self._wake: Callable[[Any], None] | None = None

    def ring(self) -> None:
        self._rung = True
        if self._wake is not None:
            self._wake(True)

    def wait(self, seconds: float) -> bool:
        if not self._rung:
            self._world.park(seconds / self._rate, self._note)
            self._wake = None
        rung, self._rung = self._rung, False
        return rung

    def _note(self, wake: Callable[[Any], None]) -> None:
        self._wake = wake


class Flag(Bell):
    """As `threading.Event`, for one waiter."""

    def set(self) -> None:
        self.ring()

    def is_set(self) -> bool:
        return self._rung

    def clear(self) -> None:
        self._rung = False

    def wait(self, seconds: float) -> bool:
        if super().wait(seconds):
            self._rung = True
        return self._rung


class Queue:
    """As `queue.SimpleQueue`, for one reader."""

    def __init__(self, world: World) -> None:
        self._items: deque[Any] = deque()
        self._bell = Bell(world)
        self._world = world

    def put(self, item: object) -> None:
        self._items.append(item)
        self._bell.ring()

    def get(self) -> Any:
        while not self._items:
            self._bell.wait(1e9)
        return self._items.popleft()

    def get_nowait(self) -> Any:
        if not self._items:
            raise queue.Empty
        return self._items.popleft()

    def empty(self) -> bool:
        return not self._items

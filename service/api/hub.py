"""Waiting without holding a thread or a connection: notifications of the database wake coroutines that are parked."""

import asyncio
from collections import defaultdict

ANY = "*"
"""The topic on which everything is heard, whatever its own topic."""


class Hub:
    """Counts what has happened on each topic, and wakes who waits for it.

    A caller takes a ticket first, looks at the database, and waits with the ticket if there was nothing: whatever
    happens after the ticket was taken ends the wait, so nothing is missed in between.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._everything = 0
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._parked: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._closed = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Name the loop on which everybody waits."""
        self._loop = loop

    def heard(self, topic: str) -> None:
        """Called from the listening thread. The empty topic means that anything may have happened."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, topic)

    def close_soon(self) -> None:
        """Let everybody who waits go, now and from now on: the process is stopping. May be called from a signal."""
        self._closed = True
        self.heard("")

    @property
    def closed(self) -> bool:
        return self._closed

    def ticket(self, topic: str) -> tuple[int, int]:
        return self._everything, self._counts[topic]

    async def wait(self, topic: str, ticket: tuple[int, int], timeout_s: float) -> None:
        """Return when something has happened on the topic since the ticket, or when the time is over."""
        if self._closed or self.ticket(topic) != ticket:
            return
        event = asyncio.Event()
        self._parked[topic].add(event)
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            self._parked[topic].discard(event)
            if not self._parked[topic]:
                del self._parked[topic]

    def _wake(self, topic: str) -> None:
        if topic == "":
            self._everything += 1
            events = {event for parked in self._parked.values() for event in parked}
        else:
            self._counts[topic] += 1
            self._counts[ANY] += 1
            events = {*self._parked.get(topic, ()), *self._parked.get(ANY, ())}
        for event in events:
            event.set()

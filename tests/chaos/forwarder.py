"""One address for several APIs, as a load balancer gives; it can lose answers on the way back."""

import asyncio
import contextlib
import itertools
import socket
import threading
from collections.abc import Sequence

BLOCK_BYTES = 65_536


class Forwarder:
    """Forwards TCP connections to whichever target takes them, in a thread of its own."""

    def __init__(self, host: str, targets: Sequence[tuple[str, int]]) -> None:
        self.drops_answers = False
        self.dropped = 0
        self._targets = targets
        self._turns = itertools.count()
        self._socket = socket.create_server((host, 0))
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="forwarder", daemon=True).start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.create_task(asyncio.start_server(self._forward, sock=self._socket))
        self._loop.run_forever()

    async def _forward(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        turn = next(self._turns)
        for number in range(len(self._targets)):
            host, port = self._targets[(turn + number) % len(self._targets)]
            try:
                service, out = await asyncio.wait_for(asyncio.open_connection(host, port), 2.0)
            except (OSError, TimeoutError):
                continue
            ways = (self._pump(client, out, answers=False), self._pump(service, back, answers=True))
            await asyncio.wait({asyncio.ensure_future(way) for way in ways}, return_when=asyncio.FIRST_COMPLETED)
            out.transport.abort()
            break
        back.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while block := await source.read(BLOCK_BYTES):
                if answers and self.drops_answers:
                    self.dropped += 1
                    return
                sink.write(block)
                await sink.drain()

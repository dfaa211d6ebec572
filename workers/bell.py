"""What ends the agent's wait: a FIFO in the state folder that the agent, its threads and its supervisors ring."""

import os
import select
from pathlib import Path

from workers import files


class Bell:
    """The agent's end of the FIFO."""

    def __init__(self, fifo: Path) -> None:
        self._path = str(fifo)
        self._fifo = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)

    def ring(self) -> None:
        """End the wait that goes on now, or the next one."""
        files.ring(self._path)

    def wait(self, seconds: float) -> None:
        """Until the bell rings, or `seconds` have passed."""
        waiting = select.poll()
        waiting.register(self._fifo, select.POLLIN)
        if waiting.poll(max(0.0, seconds) * 1000):
            os.read(self._fifo, 4096)

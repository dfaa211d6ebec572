"""The agent's starters: made for users whose scripts have run here, asked to fork their next supervisors, given up as
soon as one fails. `starter.py` is what runs in them.
"""

import contextlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

from workers.launch import kept_environment
from workers.starter import CODE, MESSAGE_BYTES, READY, THREADS

log = logging.getLogger(__name__)

ANSWER_S = 1.0
"""The agent waits so long for a fork, which takes milliseconds. A starter that takes longer is killed."""

Key = tuple[str, str]
"""User, and the value of OMP_NUM_THREADS: libraries read it while they are loaded."""


class Starter:
    """One process. The agent's end; it dies with the agent."""

    def __init__(self, threads: str) -> None:
        """Begin to import. Raises OSError."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CODE, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # no terminal: ranks take their streams over, with their buffers
                cwd="/",
                env=kept_environment(os.environ) | {THREADS: threads},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._is_ready = False

    def is_ready(self) -> bool:
        """Whether it has imported everything, and lives."""
        if not self._is_ready:
            self._is_ready = self._hear(0.0) == READY
        return self._is_ready and self.process.poll() is None

    def supervise(self, folder: Path, stdin: int | None) -> tuple[int, int] | None:
        """Have it fork the supervisor of an attempt's folder; process number and start time. None if it does not
        answer: then it may have forked one all the same, and the claim decides which one runs the attempt."""
        try:
            socket.send_fds(self._socket, [str(folder).encode()], [] if stdin is None else [stdin])
        except OSError:
            return None
        answer = self._hear(ANSWER_S)
        if not answer:
            return None
        record = json.loads(answer)
        return record["pid"], record["start"]

    def end(self) -> None:
        """Its supervisors go on."""
        self._socket.close()
        self.process.kill()
        self.process.wait()

    def _hear(self, seconds: float) -> bytes:
        """The next message; empty if none comes in time or ever."""
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        with contextlib.suppress(OSError):
            if waiting.poll(seconds * 1000):
                return self._socket.recv(MESSAGE_BYTES)
        return b""


class Starters:
    """The starters of one agent, `most` at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[Key, Starter] = {}  # the one that was used last is last

    def warm(self, key: Key) -> None:
        """Have one for `key`, in place of the one that was not used for longest."""
        if key in self._held or not self._most:
            return
        while len(self._held) >= self._most:
            self._end(next(iter(self._held)))
        try:
            self._held[key] = Starter(key[1])
        except OSError as error:
            log.warning("cannot start a starter: %s", error)
        else:
            log.info("made a starter for %s with %s threads", *key)

    def supervise(self, key: Key, folder: Path, stdin: int | None) -> tuple[int, int] | None:
        """As `Starter.supervise`; None also if there is none for `key`, or none that is ready."""
        starter = self._held.get(key)
        if starter is None:
            return None
        if starter.is_ready():
            self._held[key] = self._held.pop(key)
            if process := starter.supervise(folder, stdin):
                return process
        elif starter.process.poll() is None:
            return None  # it still imports
        log.warning("the starter for %s with %s threads does not answer and is given up", *key)
        self._end(key)
        return None

    def _end(self, key: Key) -> None:
        self._held.pop(key).end()

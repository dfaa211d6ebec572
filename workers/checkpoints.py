"""Which checkpoints the ranks of this node's attempts have completed: a thread of its own looks for their names.

The file system that all nodes share may hang, and the agent must not: a lease would run out. Nothing in a checkpoint
is opened here; whether it is still what was written, the ranks find out when they go on from it.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ergon.checkpoints import is_complete, marks

log = logging.getLogger(__name__)

LOOK_S = 1.0


@dataclass(slots=True, kw_only=True)
class _Watched:
    """`ended` once its ranks have, `settled` once it was looked at after that."""

    folder: Path
    epoch: int
    world_size: int
    step: int | None = None
    ended: bool = False
    settled: bool = False


class Checkpoints(threading.Thread):
    """Looks after the checkpoints of all runs of this node."""

    def __init__(self, ring: Callable[[], None]) -> None:
        """`ring` is called when there is something new to tell."""
        super().__init__(name="checkpoints", daemon=True)
        self._ring = ring
        self._watched: dict[str, _Watched] = {}
        self._look_now = threading.Event()

    def watch(self, attempt: str, launch: dict) -> None:
        """Look for checkpoints of a run, by its launch record. Asking again changes nothing."""
        record = launch.get("checkpoints")  # a record of before has none, nor one of a node that keeps none
        if record is not None and attempt not in self._watched:
            folder, epoch, world_size = Path(record["folder"]), launch["epoch"], record["world_size"]
            self._watched[attempt] = _Watched(folder=folder, epoch=epoch, world_size=world_size)

    def newest(self, attempt: str) -> int | None:
        """Step of the newest checkpoint of this attempt that all ranks have completed, as far as was looked."""
        return self._watched[attempt].step if attempt in self._watched else None

    def is_settled(self, attempt: str) -> bool:
        """Whether nothing new can come of a run that has ended: looks once more after its end."""
        watched = self._watched.get(attempt)
        if watched is None:
            return True
        if not watched.ended:
            watched.ended = True
            self._look_now.set()
        return watched.settled

    def drop(self, attempt: str) -> None:
        """The run is forgotten."""
        self._watched.pop(attempt, None)

    def run(self) -> None:
        while True:
            self._look_now.wait(LOOK_S)
            self._look_now.clear()
            for attempt, watched in list(self._watched.items()):
                if not watched.settled:
                    self._look(attempt, watched)

    def _look(self, attempt: str, watched: _Watched) -> None:
        ended, before = watched.ended, watched.step
        try:
            for mark in marks(watched.folder):
                if mark.epoch == watched.epoch and is_complete(watched.folder / mark.folder, watched.world_size):
                    watched.step = max(mark.step, -1 if before is None else before)
                    break
        except OSError as error:
            log.warning("cannot look for checkpoints of attempt %s: %s", attempt, error)
        watched.settled = ended
        if ended or watched.step != before:
            self._ring()

"""Which checkpoints the ranks of this node's attempts have completed: a thread of its own looks for their names.

The file system that all nodes share may hang, and the agent must not: a lease would run out. Nothing in a checkpoint
is opened here; whether it is still what was written, the ranks find out when they go on from it.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ergon.checkpoints import has_ranks, marks
from protocol.checkpoints import CheckpointPart

log = logging.getLogger(__name__)

LOOK_S = 1.0


@dataclass(slots=True, kw_only=True)
class Watched:
    """`ranks` are those that save here. `ended` once they have, `settled` once it was looked at after that."""

    folder: Path
    epoch: int
    ranks: range
    world_size: int
    step: int | None = None
    ended: bool = False
    settled: bool = False
    note: str = ""
    brought: tuple[int, CheckpointPart] | None = None
    """Step and first part of what this node has brought to the service last."""


class Checkpoints(threading.Thread):
    """Looks after the checkpoints of all runs of this node, in a folder that all nodes share."""

    LOCAL = False
    """Whether it is for runs with a folder of their own."""

    def __init__(self, ring: Callable[[], None]) -> None:
        """`ring` is called when there is something new to tell."""
        super().__init__(name="checkpoints", daemon=True)
        self._ring = ring
        self._watched: dict[str, Watched] = {}
        self._look_now = threading.Event()

    def watch(self, attempt: str, launch: dict) -> None:
        """Look for checkpoints of a run, by its launch record. Asking again changes nothing."""
        record = launch.get("checkpoints")  # a record of before has none, nor one of a node that keeps none
        if record is not None and attempt not in self._watched and bool(record.get("local")) == self.LOCAL:
            world_size = record["world_size"]
            ranks = range(*record["local"]) if self.LOCAL else range(world_size)
            self._watched[attempt] = Watched(
                folder=Path(record["folder"]), epoch=launch["epoch"], ranks=ranks, world_size=world_size
            )

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

    def note(self, attempt: str) -> str:
        """What the user should know of the checkpoints of a run, mostly nothing."""
        return self._watched[attempt].note if attempt in self._watched else ""

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

    def _look(self, attempt: str, watched: Watched) -> None:
        ended, before = watched.ended, watched.step
        try:
            for mark in marks(watched.folder):
                if mark.epoch == watched.epoch and has_ranks(watched.folder / mark.folder, watched.ranks):
                    watched.step = max(mark.step, -1 if before is None else before)
                    break
        except OSError as error:
            log.warning("cannot look for checkpoints of attempt %s: %s", attempt, error)
        watched.settled = ended
        if ended or watched.step != before:
            self._ring()

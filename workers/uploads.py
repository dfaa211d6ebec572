"""Checkpoints on a node without a shared folder: brought to the service, so that the job can go on elsewhere.

Each node brings what its own ranks have saved, one file at a time and each content once; what has arrived is not sent
again, whoever was killed meanwhile. The service tells of a checkpoint when it has all of it. Ranks never wait for it.

The nodes of a gang bring the same one, however long it takes: who has brought a step begins none before the others have
brought it too, and then the one that another node has begun.
"""

import logging
import random
from collections.abc import Callable

from ergon.checkpoints import Mark, files_of, has_ranks, marks, opened
from protocol.checkpoints import MAX_FILES, CheckpointFile, CheckpointPart
from workers.checkpoints import Checkpoints, Watched
from workers.exchange import Backoff, Unavailable
from workers.transfer import Transfer, TransferFailed, TransferFull, TransferRefused

log = logging.getLogger(__name__)

NOTE_CHARACTERS = 1_000


class Uploads(Checkpoints):
    """Looks after the checkpoints of runs that have a folder of their own."""

    LOCAL = True

    def __init__(self, transfer: Transfer, ring: Callable[[], None], chance: random.Random) -> None:
        """`ring` is called when there is something new to tell."""
        super().__init__(ring)
        self._transfer = transfer
        self._backoff = Backoff(chance)

    def newest(self, attempt: str) -> int | None:
        """Nothing to tell: the service knows itself what has arrived."""
        return None

    def _look(self, attempt: str, watched: Watched) -> None:
        ended = watched.ended
        try:
            mark = _newest(watched)
        except OSError as error:
            log.warning("cannot look for checkpoints of attempt %s: %s", attempt, error)
            mark = None
        if mark is not None and mark.step != watched.step and not self._store(attempt, watched, mark, last=ended):
            return
        watched.settled = ended
        if ended:
            self._ring()

    def _store(self, attempt: str, watched: Watched, mark: Mark, *, last: bool) -> bool:
        """Bring a checkpoint to the service. False if that is to be tried again; `last` if no newer one can come."""
        why = ""
        try:
            chosen = mark if last else self._choose(attempt, watched, mark)
            if chosen is None:
                return True
            mark = chosen
            self._bring(attempt, watched, mark)
        except TransferFailed as error:
            if not (last and isinstance(error, TransferFull)):  # a job does not wait for room once it has ended
                delay_s = self._backoff.next_delay_s(Unavailable(message=str(error)))
                log.warning("cannot store a checkpoint of %s, next try in %.1f s: %s", attempt, delay_s, error)
                self._look_now.wait(delay_s)
                return False
            why = str(error)
        except OSError as error:
            if mark != _newest(watched):  # ranks delete what is older than their two newest ones
                return False
            why = error.strerror or str(error)
        except (TransferRefused, ValueError) as error:
            why = str(error)
        self._backoff.reset()
        watched.step, watched.note = mark.step, ""
        if why:
            watched.note = f"its checkpoint of step {mark.step} was not stored: {why}"[:NOTE_CHARACTERS]
            log.warning("attempt %s: %s", attempt, watched.note)
        return True

    def _choose(self, attempt: str, watched: Watched, newest: Mark) -> Mark | None:
        """What to bring now, so that all nodes bring the same; None: others are not done with what this one brought.
        Raises as `_bring`."""
        if watched.brought is None:
            return newest
        step, part = watched.brought
        answer = self._transfer.tell_part(attempt, step, watched.ranks[0], part)
        if answer.begun is not None:
            begun = Mark(watched.epoch, answer.begun)
            return begun if has_ranks(watched.folder / begun.folder, watched.ranks) else newest
        return newest if answer.complete else None

    def _bring(self, attempt: str, watched: Watched, mark: Mark) -> None:
        """Raises TransferRefused, TransferFailed; ValueError and OSError if the checkpoint is not what it should be."""
        for rank in watched.ranks:
            files = files_of(watched.folder / mark.folder, rank)
            if len(files) > MAX_FILES:
                raise ValueError(f"rank {rank} saved {len(files)} files, and {MAX_FILES} is the most")
            entries = [CheckpointFile(path=path, size=size, sha256=sha) for path, (size, sha) in files.items()]
            part = CheckpointPart(world_size=watched.world_size, files=entries)
            places = {sha: path for path, (_size, sha) in files.items()}
            for digest in self._transfer.tell_part(attempt, mark.step, rank, part).missing:
                with opened(watched.folder / mark.folder / f"rank-{rank}", places[digest]) as file:
                    self._transfer.upload_file(attempt, file, digest)
            if self._transfer.tell_part(attempt, mark.step, rank, part).missing:
                raise TransferFailed("not all that was sent has arrived")
            if rank == watched.ranks[0]:
                watched.brought = (mark.step, part)


def _newest(watched: Watched) -> Mark | None:
    """The newest checkpoint that all ranks of this node have completed."""
    return next(
        (
            mark
            for mark in marks(watched.folder)
            if mark.epoch == watched.epoch and has_ranks(watched.folder / mark.folder, watched.ranks)
        ),
        None,
    )

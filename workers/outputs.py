"""What ranks left in $ERGON_OUTPUT: packed after their end and stored with the service, in a thread of its own.

FOLDER/output           the ranks' folder; nothing in it is trusted
FOLDER/output.tar.gz    packed, not stored yet
FOLDER/outputs.json     stored, or given up; `note` says what the user should know
"""

import logging
import queue
import random
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from archives.limits import OUTPUT, ArchiveError
from archives.pack import pack
from workers import files
from workers.exchange import Backoff, Unavailable
from workers.transfer import Transfer, TransferFailed, TransferRefused

log = logging.getLogger(__name__)

NAMED = 5
NOTE_CHARACTERS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaving:
    attempt: str
    member: int
    folder: Path


class Outputs(threading.Thread):
    """Takes the outputs of runs that have ended to the service, one after another."""

    def __init__(self, transfer: Transfer, ring: Callable[[], None], chance: random.Random) -> None:
        super().__init__(name="outputs", daemon=True)
        self._transfer = transfer
        self._ring = ring
        self._backoff = Backoff(chance)
        self._queue: queue.SimpleQueue[_Leaving] = queue.SimpleQueue()
        self._known: set[str] = set()
        self._notes: dict[str, str] = {}

    def collect(self, attempt: str, member: int, folder: Path) -> None:
        """See that the output of a run that has ended gets to the service. Asking again changes nothing."""
        if attempt in self._known:
            return
        self._known.add(attempt)
        done = files.read_record(str(folder / "outputs.json"))
        if done is not None or not _holds_anything(folder / "output"):
            self._notes[attempt] = (done or {"note": ""})["note"]
        else:
            self._queue.put(_Leaving(attempt=attempt, member=member, folder=folder))

    def note(self, attempt: str) -> str | None:
        """None until the output is stored or given up; then what the user should know of it, mostly nothing."""
        return self._notes.get(attempt)

    def drop(self, attempt: str) -> None:
        """The run is forgotten."""
        self._known.discard(attempt)
        self._notes.pop(attempt, None)

    def run(self) -> None:
        while True:
            leaving = self._queue.get()
            try:
                note = self._store(leaving)[:NOTE_CHARACTERS]
                files.write_record(str(leaving.folder / "outputs.json"), {"note": note})
                (leaving.folder / "output.tar.gz").unlink(missing_ok=True)
            except OSError as error:  # the disk is full, or the run was forgotten meanwhile
                note = f"its output was not stored: {error.strerror or error}"
            except Exception:  # a bug of ours must not keep every later run from ending
                log.exception("cannot store the output of attempt %s", leaving.attempt)
                note = "its output was not stored, which is a bug of Ergon; the log of the agent has more"
            if leaving.attempt in self._known:
                self._notes[leaving.attempt] = note
                if note:
                    log.warning("attempt %s: %s", leaving.attempt, note)
            self._ring()

    def _store(self, leaving: _Leaving) -> str:
        """Pack and upload; what the user should know."""
        archive = leaving.folder / "output.tar.gz"
        try:
            with archive.open("wb") as file:
                packed = pack(
                    leaving.folder / "output", file, OUTPUT, ignored=lambda _path, _is_folder: False, strict=False
                )
        except (ArchiveError, OSError, tarfile.TarError) as error:
            archive.unlink(missing_ok=True)
            return f"its output was not stored: {error}"
        while True:
            try:
                self._transfer.upload(leaving.attempt, leaving.member, archive, packed.digest)
            except TransferRefused as refused:
                return f"its output was not stored: {refused}"
            except TransferFailed as error:
                delay_s = self._backoff.next_delay_s(Unavailable(message=str(error)))
                log.warning("cannot store the output of %s, next try in %.1f s: %s", leaving.attempt, delay_s, error)
                threading.Event().wait(delay_s)
                if leaving.attempt not in self._known:
                    return ""
            else:
                self._backoff.reset()
                return _skipped(packed.skipped)


def _holds_anything(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:
        return False


def _skipped(paths: tuple[str, ...]) -> str:
    if not paths:
        return ""
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"left out of its output: {'; '.join(paths[:NAMED])}{more}"

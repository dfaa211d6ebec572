"""The agent's memory across restarts: one folder per attempt, written before anything is done about it.

    STATE/lock                      held by the one agent that uses this folder
    STATE/identity.json             made up once: an agent with another folder knows nothing of what is in this one
    STATE/bell                      FIFO; supervisors ring it when they wrote a record
    STATE/lease.json                until when ranks may run without news; supervisors read it
    STATE/attempts/ATTEMPT/...      records (see `supervisor.py`), output and working folder of the ranks

A folder whose name starts with a dot is one that is being made or deleted.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
from pathlib import Path

from workers import files
from workers.reconcile import Lease, Stop

log = logging.getLogger(__name__)

RECORDS_TO_COME = 6
"""Of an attempt, at most: claim, prepared, started, stop, exit and outputs."""


class StateFolderTaken(RuntimeError):
    """Another agent uses the state folder."""


class StartedBefore(RuntimeError):
    """An attempt has a launch record already: it may have run and must never start again."""


class Journal:
    """The state folder. Raises StateFolderTaken if another agent uses it, OSError if it cannot be used."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StateFolderTaken(f"another agent uses the state folder {folder}; give this one its own") from None
        self.attempts_folder = self.folder / "attempts"
        self.attempts_folder.mkdir(mode=0o700, exist_ok=True)
        self.bell = self.folder / "bell"
        if not self.bell.is_fifo():
            os.mkfifo(self.bell, 0o600)
        self.lease = self.folder / "lease.json"
        with contextlib.suppress(OSError):  # on a full disk, what runs must find its agent again all the same
            files.set_aside(str(self.folder), 1)
        self.identity = self._identity()
        for leftover in self.attempts_folder.glob(".*"):
            self._delete(leftover)

    def _identity(self) -> str:
        path = str(self.folder / "identity.json")
        known = files.read_record(path)
        if known is None:
            known = {"id": secrets.token_hex(8)}
            files.write_record(path, known)
        return known["id"]

    def attempts(self) -> list[str]:
        """Attempts with a launch record."""
        return sorted(path.name for path in self.attempts_folder.iterdir() if not path.name.startswith("."))

    def attempt_folder(self, attempt: str) -> Path:
        """Where the records of an attempt are, or will be.

        Raises:
            ValueError: the id cannot be the name of a folder.
        """
        if not attempt or attempt.startswith(".") or "/" in attempt or "\0" in attempt:
            raise ValueError(f"attempt id {attempt!r} cannot name a folder")
        return self.attempts_folder / attempt

    def create(self, attempt: str, launch: dict) -> None:
        """Make the launch record durable, together with the folders of the ranks.

        Raises:
            StartedBefore: there is one already; nothing was changed.
            OSError: it cannot be written, the disk being full for example; nothing of it is left.
        """
        folder = self.attempt_folder(attempt)
        if folder.exists():
            raise StartedBefore(f"attempt {attempt} has a launch record already")
        draft = folder.with_name(f".{attempt}.draft")
        try:
            draft.mkdir(mode=0o700)
            for name in ("work", "output"):
                (draft / name).mkdir(mode=0o700)
            files.write_record(str(draft / "launch.json"), launch, durable=False)
            files.set_aside(str(draft), RECORDS_TO_COME)
            draft.rename(folder)
            # In one go at the end: the first makes most file systems write all three, and the others find it done.
            for path in (folder / "launch.json", folder, self.attempts_folder):
                files.sync(str(path))
        except OSError:
            self._delete(draft if draft.exists() else folder)
            raise

    def write_stop(self, attempt: str, stop: Stop, message: str) -> None:
        """Tell the supervisor to stop. No boot is survived by what it would stop, so neither need the record be."""
        record = {"at_s": stop.at_s, "grace_s": stop.grace_s, "reason": stop.reason.value, "message": message}
        files.write_record(str(self.attempt_folder(attempt) / "stop.json"), record, durable=False)

    def write_lease(self, lease: Lease) -> None:
        record = {"fence_at_s": lease.fence_at_s, "grace_s": lease.grace_s}
        files.write_record(str(self.lease), record, durable=False)

    def delete(self, attempt: str) -> None:
        """Forget the attempt. What cannot be deleted now is tried again at the agent's next start."""
        folder = self.attempt_folder(attempt)
        doomed = folder.with_name(f".{attempt}.doomed")
        folder.rename(doomed)
        self._delete(doomed)

    @staticmethod
    def _delete(folder: Path) -> None:
        shutil.rmtree(folder, onerror=lambda _call, path, why: log.warning("cannot delete %s: %s", path, why[1]))

"""Deletes the checkpoints of jobs that ended long ago from the folder that all nodes share, in a thread of its own.

Which may go the service says: how long they are kept is its setting, and a job it does not know keeps its folder. The
agents of all nodes do the same; whoever is first renames a folder, and what one leaves unfinished the next deletes.

    SHARED/JOB            checkpoints of one job
    SHARED/.expired-JOB   being deleted
"""

import logging
import os
import random
import re
import shutil
import stat
import threading
from pathlib import Path

from protocol.checkpoints import MAX_FOLDERS
from workers.transfer import Transfer, TransferFailed, TransferRefused

log = logging.getLogger(__name__)

EVERY_S = 3_600.0
DOOMED = ".expired-"

_JOB = re.compile(r"job-[0-9a-z]{1,59}")


class Expiry(threading.Thread):
    """Looks for such folders about once in an hour, for as long as the agent runs."""

    def __init__(self, shared: Path, transfer: Transfer, chance: random.Random) -> None:
        """`chance` keeps the agents of a cluster from looking all at once."""
        super().__init__(name="expiry", daemon=True)
        self._shared = shared
        self._transfer = transfer
        self._chance = chance
        self._never = threading.Event()

    def run(self) -> None:
        while not self._never.wait(EVERY_S * self._chance.uniform(0.5, 1.5)):
            self.sweep()

    def sweep(self) -> None:
        """Delete what may go. What does not work now is tried again the next time."""
        try:
            names = os.listdir(self._shared)
            for name in names:
                if name.startswith(DOOMED) and _JOB.fullmatch(name.removeprefix(DOOMED)):
                    self._delete(name)
            jobs = sorted(name for name in names if _JOB.fullmatch(name))
            for first in range(0, len(jobs), MAX_FOLDERS):
                asked = jobs[first : first + MAX_FOLDERS]
                for job in sorted(set(self._transfer.expired_folders(asked)) & set(asked)):
                    self._expire(job)
        except (OSError, TransferFailed, TransferRefused) as error:
            log.warning("cannot look for checkpoints of old jobs in %s: %s", self._shared, error)

    def _expire(self, job: str) -> None:
        try:
            os.rename(self._shared / job, self._shared / f"{DOOMED}{job}")
        except FileNotFoundError:
            return  # another agent was faster
        except OSError as error:
            log.warning("cannot delete the checkpoints of %s: %s", job, error)
            return
        log.info("deleting the checkpoints of %s, which ended long ago", job)
        self._delete(f"{DOOMED}{job}")

    def _delete(self, name: str) -> None:
        """Follows no link: one in place of a folder goes itself."""
        path = self._shared / name
        try:
            if stat.S_ISDIR(path.lstat().st_mode):
                shutil.rmtree(path, onerror=_tell)
            else:
                path.unlink()
        except FileNotFoundError:
            pass  # another agent was faster


def _tell(_call: object, path: str, why: tuple[type[BaseException], BaseException, object]) -> None:
    if not isinstance(why[1], FileNotFoundError):
        log.warning("cannot delete %s: %s", path, why[1])

"""Power caps: the limits of GPUs that attempts run with, set before their ranks start and put back when they are over.

What each limit was is on disk before it is changed, so that whoever comes after a crash can put it back: a cap is put
back once no attempt that lives holds it. A limit that is not the one set here any more has been changed by somebody
else, or by a boot, and is left alone.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from workers import files, nvml

log = logging.getLogger(__name__)

SAME_W = 1.0
"""Two limits that differ by less are the same: drivers round."""


class CannotCap(OSError):
    """A limit could not be set; all that were changed for the attempt are to be put back."""


class Caps:
    """The caps of this node's GPUs. Made once, before the inventory is taken: it reads what is on disk."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "caps.json")
        self._set: dict[str, dict] = files.read_record(self._path) or {}

    def usual_w(self, uuid: str) -> float | None:
        """The limit that the GPU has, or will have again when its cap is put back, in W; None if it tells none."""
        now_w = nvml.power_limit_w(uuid)
        known = self._set.get(uuid)
        return known["before_w"] if known and _is(now_w, known["cap_w"]) else now_w

    def able(self, uuids: Sequence[str]) -> dict[str, float]:
        """The GPUs whose limit this agent can set, tried out, each with the lowest limit it takes, in W."""
        found: dict[str, float] = {}
        for uuid in uuids:
            now_w, least_w = nvml.power_limit_w(uuid), nvml.least_power_limit_w(uuid)
            if now_w is None or least_w is None:
                continue
            try:
                nvml.set_power_limit_w(uuid, now_w)
            except OSError as error:
                log.info("no power caps on GPU %s: %s", uuid, error)
                continue
            found[uuid] = least_w
        return found

    def apply(self, attempt: str, uuids: Sequence[str], cap_w: float) -> None:
        """Lower the limits of an attempt's GPUs. A limit that is lower already stays.

        Raises:
            CannotCap: a limit cannot be set.
            OSError: what the limits were cannot be written down; none was changed.
        """
        fresh: dict[str, dict] = {}
        for uuid in uuids:
            before_w = self.usual_w(uuid)
            if before_w is None:
                raise CannotCap(f"GPU {uuid} does not tell its power limit")
            if before_w > cap_w:
                fresh[uuid] = {"attempt": attempt, "before_w": before_w, "cap_w": cap_w}
        self._write(self._set | fresh)
        for uuid in fresh:
            try:
                nvml.set_power_limit_w(uuid, cap_w)
            except OSError as error:
                raise CannotCap(f"the power limit of GPU {uuid} cannot be set to {cap_w:g} W: {error}") from error

    def settle(self, living: Collection[str]) -> None:
        """Put back every limit that no living attempt holds. What fails is tried again at the next call."""
        left = {uuid: cap for uuid, cap in self._set.items() if cap["attempt"] in living or not _put_back(uuid, cap)}
        if left != self._set:
            try:
                self._write(left)
            except OSError as error:  # a full disk: it is put back once more, which does nothing
                log.warning("cannot write down that power caps are over: %s", error)

    def _write(self, caps: Mapping[str, dict]) -> None:
        if caps != self._set:
            files.write_record(self._path, dict(caps))
            self._set = dict(caps)


def _put_back(uuid: str, cap: Mapping) -> bool:
    """Whether the limit is not the cap any more."""
    now_w = nvml.power_limit_w(uuid)
    if now_w is None:
        return False  # the driver does not reach it now
    if not _is(now_w, cap["cap_w"]):
        return True
    try:
        nvml.set_power_limit_w(uuid, cap["before_w"])
    except OSError as error:
        log.warning("the power limit of GPU %s cannot be put back to %g W: %s", uuid, cap["before_w"], error)
        return False
    log.info("the power limit of GPU %s is %g W again", uuid, cap["before_w"])
    return True


def _is(now_w: float | None, limit_w: float) -> bool:
    return now_w is not None and abs(now_w - limit_w) < SAME_W

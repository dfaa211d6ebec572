"""What lies in a folder, in bytes of its disk. Standard library only: the supervisor uses it."""

import os
from collections.abc import Callable, Iterator

EVERY_S = 2.0
"""From the end of one measurement to the beginning of the next: what is written faster than that goes beyond a limit
before anyone sees it."""
SLICE_S = 0.02
PAUSE_S = 0.1
"""Of a folder with many files, a slice is measured at a time: stops and leases must not wait for it."""
BLOCK_BYTES = 512
"""Unit of `st_blocks`, whatever the file system's own blocks are (stat(2))."""


class Usage:
    """Measures one folder over and over, a slice of time at a call."""

    def __init__(self, folder: str, clock: Callable[[], float]) -> None:
        """`clock` tells the time in s."""
        self.next_s = 0.0  # when to look again
        self._folder = folder
        self._clock = clock
        self._walk: Iterator[int] = iter(())
        self._walking = False
        self._found = 0

    def look(self) -> int:
        """Measure for a moment if it is time to; so many bytes at least lie there now, as far as was counted."""
        now_s = self._clock()
        if now_s < self.next_s:
            return self._found
        if not self._walking:
            self._walk, self._walking, self._found = sizes(self._folder), True, 0
        for size in self._walk:
            self._found += size
            if self._clock() >= now_s + SLICE_S:
                self.next_s = self._clock() + PAUSE_S
                return self._found
        self._walking = False
        self.next_s = self._clock() + EVERY_S
        return self._found


def sizes(folder: str) -> Iterator[int]:
    """Bytes on disk of everything below `folder`, one after another: holes take none, a file of several names counts
    once, links are not followed. What goes away meanwhile, or cannot be read, is left out.
    """
    seen: set[tuple[int, int]] = set()
    folders = [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                    except OSError:
                        continue
                    if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                        if (status.st_dev, status.st_ino) in seen:
                            continue
                        seen.add((status.st_dev, status.st_ino))
                    yield status.st_blocks * BLOCK_BYTES
        except OSError:
            continue

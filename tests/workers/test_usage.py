"""What a folder takes on its disk, as `du` counts it, and never for long at a time."""

import os
import subprocess
from pathlib import Path

from workers.usage import EVERY_S, PAUSE_S, SLICE_S, Usage, sizes


class Clock:
    """Moves on by `step_s` whenever it is read."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s = 100.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def tree(root: Path) -> Path:
    """Files, folders, a file of two names, one that is mostly hole, links out of it and in a circle."""
    folder = root / "folder"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "plain").write_bytes(b"x" * 100_000)
    os.link(folder / "a" / "plain", folder / "again")
    with (folder / "hole").open("wb") as file:
        file.seek(1 << 30)
        file.write(b"x")
    (root / "outside").write_bytes(b"x" * 5_000_000)
    (folder / "out").symlink_to(root / "outside")
    (folder / "a" / "b" / "circle").symlink_to(folder)
    return folder


def du(folder: Path) -> int:
    """`du` counts the folder itself too."""
    done = subprocess.run(["du", "-s", "--block-size=512", folder], capture_output=True, check=True)
    return (int(done.stdout.split()[0]) - folder.stat().st_blocks) * 512


def test_it_counts_as_du_does(tmp_path: Path) -> None:
    folder = tree(tmp_path)
    found = sum(sizes(str(folder)))
    assert found == du(folder)
    assert 100_000 < found < 1_000_000


def test_what_is_not_there_takes_nothing(tmp_path: Path) -> None:
    assert list(sizes(str(tmp_path / "none"))) == []


def test_it_is_measured_anew_after_a_while_and_not_before(tmp_path: Path) -> None:
    clock = Clock()
    usage = Usage(str(tmp_path), clock)
    assert usage.look() == 0
    assert usage.next_s == clock.now_s + EVERY_S
    (tmp_path / "file").write_bytes(b"x" * 50_000)
    assert usage.look() == 0
    clock.now_s = usage.next_s
    assert usage.look() >= 50_000
    (tmp_path / "file").unlink()
    clock.now_s = usage.next_s
    assert usage.look() == 0


def test_many_files_are_counted_in_slices_that_add_up(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / str(number)).write_bytes(b"x" * 5_000)
    clock = Clock(step_s=SLICE_S / 4)
    usage = Usage(str(tmp_path), clock)
    sums, pauses = [usage.look()], 0
    while usage.next_s - clock.now_s <= PAUSE_S:
        pauses += 1
        clock.now_s = usage.next_s
        sums.append(usage.look())
    assert pauses > 5
    assert sums == sorted(sums)
    assert sums[-1] == du(tmp_path)

"""Checkpoints: whatever kills the writer, fills the disk or damages a file, the newest one that is whole is found."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ergon import checkpoints, runtime
from ergon.checkpoints import MANIFEST, Mark

KILLED = textwrap.dedent(
    """
    import os, pathlib, random, shutil, signal, sys
    from ergon import checkpoints

    def train(folder, told):
        for step in range(1, 5):
            for rank in range(2):
                with checkpoints.written(folder, checkpoints.Mark(1, step), rank=rank, world_size=2) as draft:
                    (draft / "parts").mkdir()
                    (draft / "parts" / "model").write_text(f"{rank} at {step}" * 20_000)
                if rank == 0:
                    checkpoints.prune(folder, 1, range(2))
            os.write(told, bytes([step]))

    def until(event):
        calls = 0
        def count(_frame, kind, _argument):
            nonlocal calls
            calls += kind in ("c_call", "c_return")
            if calls == event:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.setprofile(count)
        return lambda: (sys.setprofile(None), calls)[1]

    def run(folder, event):
        read_end, told = os.pipe()
        child = os.fork()
        if child == 0:
            calls = until(event)
            train(folder, told)
            os.write(told, b"!%d" % calls())
            os._exit(0)
        os.close(told)
        os.waitpid(child, 0)
        with os.fdopen(read_end, "rb") as pipe:
            return pipe.read()

    root = pathlib.Path(sys.argv[1])
    steps, _, total = run(root / "whole", -1).partition(b"!")
    assert list(steps) == [1, 2, 3, 4], steps
    chance = random.Random(int(sys.argv[2]))
    for number in range(200):
        event = chance.randint(1, int(total))
        folder = root / str(number)
        steps = run(folder, event)
        found = checkpoints.newest_intact(folder, known=None, epoch=2)
        step = checkpoints.marks(folder)[0].step if found else 0
        reached = int(found.name.rpartition("-")[2]) if found else 0
        assert reached >= max(steps, default=0), (event, list(steps), reached)
        for rank in range(2 if found else 0):
            assert (found / f"rank-{rank}" / "parts" / "model").read_text() == f"{rank} at {reached}" * 20_000
        shutil.rmtree(folder, ignore_errors=True)
    print("killed 200 times within", int(total), "calls")
    """
)


def test_a_writer_that_is_killed_anywhere_leaves_the_latest_it_completed(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", KILLED, str(tmp_path), "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("killed 200 times")


def save(folder: Path, epoch: int, step: int, world_size: int = 1, text: str = "model") -> Path:
    """A complete checkpoint; its folder."""
    for rank in range(world_size):
        with checkpoints.written(folder, Mark(epoch, step), rank=rank, world_size=world_size) as draft:
            (draft / "model.pt").write_text(f"{text} of {rank}")
    return folder / Mark(epoch, step).folder


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "flipped": lambda path: flip_a_bit(path / "rank-1" / "model.pt"),
    "truncated": lambda path: os.truncate(path / "rank-0" / "model.pt", 2),
    "longer": lambda path: (path / "rank-0" / "model.pt").write_text("model of 0 and more"),
    "missing file": lambda path: (path / "rank-0" / "model.pt").unlink(),
    "missing rank": lambda path: shutil.rmtree(path / "rank-1"),
    "missing manifest": lambda path: (path / "rank-1" / MANIFEST).unlink(),
    "torn manifest": lambda path: os.truncate(path / "rank-1" / MANIFEST, 40),
    "flipped manifest": lambda path: flip_a_bit(path / "rank-0" / MANIFEST),
    "another's part": lambda path: shutil.copyfile(path / "rank-0" / MANIFEST, path / "rank-1" / MANIFEST),
    "a link": lambda path: (
        (path / "rank-0" / "model.pt").rename(path / "model.pt"),
        (path / "rank-0" / "model.pt").symlink_to(path / "model.pt"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over_for_the_one_before(tmp_path: Path, damage: str) -> None:
    before, newest = (save(tmp_path, 1, step, world_size=2) for step in (10, 20))
    assert checkpoints.newest_intact(tmp_path, known=None, epoch=2) == newest
    DAMAGES[damage](newest)
    assert checkpoints.newest_intact(tmp_path, known=None, epoch=2) == before


def test_a_manifest_that_leads_out_or_names_no_file_opens_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("model of 0")
    path = save(tmp_path / "job", 1, 10)
    manifest = path / "rank-0" / MANIFEST
    for name in ("../../../secret", str(secret), "pipe", ".", "x\0y"):
        if name == "pipe":
            os.mkfifo(path / "rank-0" / "pipe")
        good = manifest.read_text()
        manifest.write_text(good.replace('"model.pt"', f'"{name}"'.replace("\0", "\\u0000")))
        assert not checkpoints.is_intact(path, Mark(1, 10)), name
        manifest.write_text(good)
    assert checkpoints.is_intact(path, Mark(1, 10))


# Of each case: attempt and step of what is there, in the order of writing; the latest the service knows; who asks.
@pytest.mark.parametrize(
    ("there", "known", "epoch", "expected"),
    [
        ([], None, 1, None),
        ([(1, 10), (1, 9)], None, 2, (1, 10)),
        ([(1, 10), (2, 5)], None, 3, (2, 5)),
        ([(1, 10), (1, 20)], (1, 10), 2, (1, 10)),
        ([(1, 10), (1, 20)], (0, 0), 2, None),
        ([(1, 10), (2, 20)], (1, 10), 2, (2, 20)),
        ([(1, 10), (2, 20), (2, 30)], (2, 20), 3, (2, 20)),
        ([(1, 100)], (2, 20), 3, (1, 100)),
    ],
)
def test_the_newest_that_counts(
    tmp_path: Path,
    there: list[tuple[int, int]],
    known: tuple[int, int] | None,
    epoch: int,
    expected: tuple[int, int] | None,
) -> None:
    for each in there:
        save(tmp_path, *each)
    found = checkpoints.newest_intact(tmp_path, known=Mark(*known) if known else None, epoch=epoch)
    assert found == (tmp_path / Mark(*expected).folder if expected else None)


def test_two_are_kept_and_none_goes_before_two_later_ones_are_complete(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, 1, step, world_size=2)
        checkpoints.prune(tmp_path, 1, range(2))
    assert checkpoints.marks(tmp_path) == [(1, 30), (1, 20)]
    with checkpoints.written(tmp_path, Mark(1, 40), rank=0, world_size=2):
        pass
    checkpoints.prune(tmp_path, 1, range(2))
    assert checkpoints.marks(tmp_path) == [(1, 40), (1, 30), (1, 20)], "the other rank has not saved yet"
    save(tmp_path, 2, 50, world_size=2)
    checkpoints.prune(tmp_path, 2, range(2))
    assert (1, 20) in checkpoints.marks(tmp_path), "the new attempt has one only"
    save(tmp_path, 1, 60, world_size=2)
    save(tmp_path, 1, 70, world_size=2)
    checkpoints.prune(tmp_path, 1, range(2))
    assert (1, 20) in checkpoints.marks(tmp_path), "an attempt that has a successor deletes nothing"
    save(tmp_path, 2, 60, world_size=2)
    checkpoints.prune(tmp_path, 2, range(2))
    assert checkpoints.marks(tmp_path) == [(2, 60), (2, 50)]


def test_what_cannot_be_kept_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    def refused(make, why: str) -> None:
        with (
            pytest.raises(ValueError, match=why),
            checkpoints.written(tmp_path, Mark(1, 1), rank=0, world_size=1) as draft,
        ):
            make(draft)

    refused(lambda draft: (draft / "link").symlink_to("/etc/passwd"), "link is neither")
    refused(lambda draft: os.mkfifo(draft / "pipe"), "pipe is neither")
    refused(lambda draft: (draft / MANIFEST).touch(), MANIFEST)
    with pytest.raises(RuntimeError), checkpoints.written(tmp_path, Mark(1, 1), rank=0, world_size=1):
        raise RuntimeError
    assert list((tmp_path / Mark(1, 1).folder).iterdir()) == []


def test_a_disk_that_is_full_costs_the_new_one_and_not_the_old(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=False).returncode:
        pytest.skip("needs a small file system of its own, so root")
    try:
        before = save(small, 1, 10, text="x" * 300_000)
        with pytest.raises(OSError, match="No space left"):
            save(small, 1, 20, text="x" * 1_000_000)
        assert checkpoints.newest_intact(small, known=None, epoch=2) == before
        later = save(small, 1, 30, text="x" * 300_000)
        assert checkpoints.newest_intact(small, known=None, epoch=2) == later
    finally:
        subprocess.run(["umount", small], check=True)


def test_scripts_save_and_find_theirs_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERGON_CHECKPOINT_DIR", str(tmp_path / "job"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ERGON_EPOCH", "3")
    assert runtime.latest_checkpoint() is None
    for step in (1, 2, 3):
        for rank in ("1", "0"):
            monkeypatch.setenv("RANK", rank)
            with runtime.checkpoint(step) as folder:
                (folder / "model.pt").write_text(f"rank {rank} at {step}")
    found = runtime.latest_checkpoint()
    assert found == tmp_path / "job" / "epoch-3-step-3"
    assert (found / "rank-1" / "model.pt").read_text() == "rank 1 at 3"
    assert len(list(found.parent.iterdir())) == checkpoints.KEPT
    with runtime.checkpoint(3) as folder:
        (folder / "model.pt").write_text("again")
    assert (found / "rank-0" / "model.pt").read_text() == "rank 0 at 3", "what is there stays"

    monkeypatch.setenv("ERGON_EPOCH", "4")
    monkeypatch.setenv("ERGON_CHECKPOINT_LATEST", "3/2")
    assert runtime.latest_checkpoint() == tmp_path / "job" / "epoch-3-step-2"
    monkeypatch.setenv("ERGON_CHECKPOINT_LATEST", "0/0")
    assert runtime.latest_checkpoint() is None
    with pytest.raises(ValueError, match="step=-1"), runtime.checkpoint(-1):
        pass


def test_without_a_place_to_keep_them_a_script_runs_and_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ERGON_CHECKPOINT_DIR", raising=False)
    monkeypatch.setattr(runtime, "_warned", set())
    for step in range(2):
        with runtime.checkpoint(step) as folder:
            (folder / "model.pt").write_text("model")
        assert not folder.exists()
    assert runtime.latest_checkpoint() is None
    assert capfd.readouterr().err.count("ERGON_CHECKPOINT_DIR is not set") == 1

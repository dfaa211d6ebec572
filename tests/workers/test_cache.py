"""The node's cache: entries are whole or not there, made once, and never taken from under an attempt."""

import multiprocessing
import os
from pathlib import Path

import pytest

from workers.cache import Cache


def cache(root: Path, attempt: str, limit_bytes: int = 1_000) -> Cache:
    (root / "attempts" / attempt).mkdir(parents=True, exist_ok=True)
    return Cache(root / "cache", root / "attempts" / attempt, limit_bytes=limit_bytes)


def writes(size: int):
    return lambda entry: (entry / "data").write_bytes(bytes(size)) and None


def never(entry: Path) -> None:
    raise AssertionError("it is there already")


def entries(root: Path) -> set[str]:
    return {path.parent.name for path in (root / "cache").glob("*/*/made.json")}


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    made = cache(tmp_path, "a1").get("kind", "x", writes(5))
    assert (made / "data").stat().st_size == 5
    assert cache(tmp_path, "a2").get("kind", "x", never) == made


def test_one_that_could_not_be_made_leaves_nothing(tmp_path: Path) -> None:
    def fails(entry: Path) -> None:
        (entry / "half").write_text("x")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        cache(tmp_path, "a1").get("kind", "x", fails)
    made = cache(tmp_path, "a1").get("kind", "x", writes(5))
    assert sorted(path.name for path in made.iterdir()) == ["data", "made.json"]


def test_one_that_a_crash_left_half_made_is_made_anew(tmp_path: Path) -> None:
    half = tmp_path / "cache" / "kind" / "x"
    half.mkdir(parents=True)
    (half / "half").write_text("x")
    made = cache(tmp_path, "a1").get("kind", "x", writes(5))
    assert not (made / "half").exists()


def test_the_least_recently_used_goes_but_never_one_in_use(tmp_path: Path) -> None:
    for age, name in enumerate(("old", "older", "used")):
        made = cache(tmp_path, f"attempt-{name}").get("kind", name, writes(400))
        os.utime(made / "made.json", (1_000 - age, 1_000 - age))
        if name != "used":
            (tmp_path / "attempts" / f"attempt-{name}" / "uses.json").unlink()
    assert entries(tmp_path) <= {"old", "older", "used"}
    cache(tmp_path, "new").get("kind", "new", writes(400))
    assert entries(tmp_path) == {"used", "new"}


def _get(root: Path, attempt: str) -> None:
    def make(entry: Path) -> None:
        with (root / "made").open("a") as file:
            file.write("x")
        (entry / "data").write_text("whole")

    assert (cache(root, attempt).get("kind", "x", make) / "data").read_text() == "whole"


def test_of_several_processes_one_makes_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_get, args=(tmp_path, f"a{number}")) for number in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    assert (tmp_path / "made").read_text() == "x"

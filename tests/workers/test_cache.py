"""The node's cache: entries are whole or not there, made once, and never taken from under an attempt."""

import multiprocessing
import os
from pathlib import Path

import pytest

from protocol.caches import MAX_ENTRIES, Fetch
from workers.cache import Cache, Shelf


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


def test_what_it_holds_is_told_when_it_has_changed(tmp_path: Path) -> None:
    fetch = Fetch(source="service", size_bytes=5, wait_s=0.1, transfer_s=0.2)

    def fetched(entry: Path) -> Fetch:
        (entry / "data").write_bytes(bytes(7))
        return fetch

    shelf = Shelf(tmp_path / "cache")
    shelf.look(1)
    assert shelf.news() == [], "that there is nothing is news too"
    shelf.told()
    assert shelf.news() is None
    cache(tmp_path, "a1").get("datasets", "a" * 32, fetched)
    cache(tmp_path, "a1").get("archives", "b" * 64, writes(3))
    cache(tmp_path, "a1").get("environments", "c" * 32, writes(3))
    os.utime(tmp_path / "cache" / "archives" / ("b" * 64) / "made.json", (1_000, 1_000))
    assert shelf.news() is None, "it looks when something else happens"
    shelf.look(2)
    found = shelf.news()
    assert found is not None
    assert [(one.kind, one.size_bytes, one.fetch) for one in found] == [("datasets", 7, fetch), ("archives", 3, None)]
    assert shelf.news() == found, "until the service has heard it"
    shelf.told()
    shelf.forget()
    assert shelf.news() == found, "a service that was restored hears it again"


def test_of_a_large_cache_those_used_last_are_told_and_none_that_is_no_work_of_ours(tmp_path: Path) -> None:
    for number in range(MAX_ENTRIES + 3):
        made = tmp_path / "cache" / "archives" / f"{number:064x}" / "made.json"
        made.parent.mkdir(parents=True)
        made.write_text('{"bytes": 1}' if number != MAX_ENTRIES + 2 else '{"bytes": "many"}')
        os.utime(made, (1_000 + number, 1_000 + number))
    shelf = Shelf(tmp_path / "cache")
    shelf.look(1)
    assert [int(one.key, 16) for one in shelf.news() or ()] == [*range(MAX_ENTRIES + 1, 2, -1)]

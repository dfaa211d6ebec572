"""Outputs on their way to the service: once, in spite of failures, and never more than the folder holds."""

import io
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from archives.limits import OUTPUT, Limits
from archives.unpack import unpack
from workers import outputs as module
from workers.outputs import Outputs
from workers.transfer import TransferFailed, TransferRefused


class Store:
    """Takes uploads as the service does; `errors` come first."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.uploads: list[tuple[str, int, bytes, str]] = []

    def upload(self, attempt: str, member: int, archive: Path, digest: str) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.uploads.append((attempt, member, archive.read_bytes(), digest))


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def settle(store: Store, tmp_path: Path) -> Callable[[], str]:
    """Collects the output of the run in `tmp_path` with a fresh agent; what the user should know of it."""

    def settle() -> str:
        done = threading.Event()
        outputs = Outputs(store, done.set, random.Random(0))  # pyright: ignore[reportArgumentType]
        outputs.start()
        outputs.collect("a1", 3, tmp_path)
        if outputs.note("a1") is None:
            assert done.wait(30)
        note = outputs.note("a1")
        assert note is not None
        return note

    (tmp_path / "output").mkdir()
    return settle


def test_what_was_written_is_stored_once(store: Store, settle: Callable[[], str], tmp_path: Path) -> None:
    (tmp_path / "output" / "model").write_text("weights")
    assert settle() == ""
    assert settle() == ""
    [(attempt, member, data, _)] = store.uploads
    assert (attempt, member) == ("a1", 3)
    (tmp_path / "back").mkdir()
    assert unpack(io.BytesIO(data), tmp_path / "back", OUTPUT) == ["model"]
    assert not (tmp_path / "output.tar.gz").exists()


def test_nothing_written_is_nothing_stored(store: Store, settle: Callable[[], str]) -> None:
    assert settle() == ""
    assert store.uploads == []


def test_a_service_that_does_not_answer_is_asked_again(store: Store, settle: Callable[[], str], tmp_path: Path) -> None:
    (tmp_path / "output" / "model").write_text("weights")
    store.errors = [TransferFailed("away"), TransferFailed("away")]
    assert settle() == ""
    assert len(store.uploads) == 1


@pytest.mark.parametrize("error", [TransferRefused("no such attempt"), RuntimeError("bug")])
def test_a_refusal_ends_it_with_a_note(
    store: Store, settle: Callable[[], str], tmp_path: Path, error: Exception
) -> None:
    (tmp_path / "output" / "model").write_text("weights")
    store.errors = [error]
    assert settle().startswith("its output was not stored")


def test_more_than_the_limit_is_not_stored_and_says_so(
    store: Store, settle: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OUTPUT", Limits(entries=9, packed_bytes=1 << 20, unpacked_bytes=1_000))
    (tmp_path / "output" / "model").write_bytes(bytes(2_000))
    note = settle()
    assert "the limit is 1000 bytes; the largest are: model (2 KiB)" in note
    assert store.uploads == []
    assert not (tmp_path / "output.tar.gz").exists()


def test_links_are_never_followed(store: Store, settle: Callable[[], str], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "output" / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "output" / "pipe")
    assert settle() == (
        f"left out of its output: link is a link that leads out of the directory, to {tmp_path}/secret; "
        "pipe is neither a file nor a folder nor a link"
    )
    assert b"secret" not in store.uploads[0][2]


def test_a_folder_that_became_a_link_is_not_packed(store: Store, settle: Callable[[], str], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("secret")
    (tmp_path / "output").rmdir()
    (tmp_path / "output").symlink_to(tmp_path / "elsewhere")
    assert settle().startswith("its output was not stored")
    assert store.uploads == []

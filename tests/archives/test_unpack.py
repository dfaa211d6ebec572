"""Archives that mean harm: nothing is written, inside or outside."""

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from archives.limits import ArchiveError, Limits
from archives.unpack import unpack

SMALL = Limits(entries=100, packed_bytes=1 << 20, unpacked_bytes=1 << 16)


def entry(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    record = tarfile.TarInfo(name)
    record.size = len(data)
    for field, value in fields.items():
        setattr(record, field, value)
    return record, data


def archive(*entries: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for record, data in entries:
            tar.addfile(record, io.BytesIO(data))
    return buffer


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "canary").write_text("alive")
    (tmp_path / "to").mkdir()
    return tmp_path / "to"


HOSTILE = {
    "goes up": ([entry("../canary", b"x")], "no plain relative path"),
    "goes up inside": ([entry("a/../../canary", b"x")], "no plain relative path"),
    "absolute": ([entry("/tmp/canary", b"x")], "no plain relative path"),
    "dot": ([entry("./x", b"x")], "no plain relative path"),
    "absolute link": ([entry("l", type=tarfile.SYMTYPE, linkname="/etc")], "leads out"),
    "link up": ([entry("l", type=tarfile.SYMTYPE, linkname="../canary")], "leads out"),
    "through a link": (
        [entry("d", type=tarfile.DIRTYPE), entry("l", type=tarfile.SYMTYPE, linkname="d"), entry("l/x", b"x")],
        "below l, which is no folder",
    ),
    "below a file": ([entry("f", b"1"), entry("f/x", b"x")], "below f, which is no folder"),
    "twice": ([entry("f", b"1"), entry("f", b"2")], "twice"),
    "link then file": ([entry("f", type=tarfile.SYMTYPE, linkname="g"), entry("f", b"2")], "twice"),
    "hard link": ([entry("f", type=tarfile.LNKTYPE, linkname="../canary")], "neither a file nor a folder"),
    "device": ([entry("f", type=tarfile.CHRTYPE, devmajor=1, devminor=3)], "neither a file nor a folder"),
    "pipe": ([entry("f", type=tarfile.FIFOTYPE)], "neither a file nor a folder"),
    "sparse": ([entry("f", type=tarfile.GNUTYPE_SPARSE)], "neither a file nor a folder|damaged"),
    "too many": ([entry(f"f{number}") for number in range(101)], "more than 100 entries"),
    "bomb": ([entry("f", bytes(70_000))], "unpacks to more than 64 KiB"),
    "bomb in pieces": ([entry(f"f{number}", bytes(30_000)) for number in range(3)], "unpacks to more than 64 KiB"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_writes_nothing(target: Path, case: str) -> None:
    entries, says = HOSTILE[case]
    with pytest.raises(ArchiveError, match=says):
        unpack(archive(entry("first", b"1"), *entries), target, SMALL)
    assert list(target.iterdir()) == []
    assert (target.parent / "canary").read_text() == "alive"


def test_a_hundred_thousand_entries_are_refused(target: Path) -> None:
    blocks = (entry(f"d{number}")[0].tobuf(tarfile.USTAR_FORMAT) for number in range(100_000))
    many = io.BytesIO(gzip.compress(b"".join(blocks), 1))
    with pytest.raises(ArchiveError, match="more than 10000 entries"):
        unpack(many, target, Limits(entries=10_000, packed_bytes=1 << 20, unpacked_bytes=1 << 20))
    assert list(target.iterdir()) == []


def test_a_header_larger_than_everything_is_not_read(target: Path) -> None:
    """A pax header is read into memory whole: 256 MiB of it in 256 KiB."""
    header = tarfile.TarInfo("h")
    header.type, header.size = tarfile.XHDTYPE, 256 << 20
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as stream:
        stream.write(header.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(256):
            stream.write(bytes(1 << 20))
    with pytest.raises(ArchiveError, match="more than its limit"):
        unpack(buffer, target, SMALL)


@pytest.mark.parametrize(
    "harm", [lambda data: data[:-20], lambda data: b"no archive", lambda data: data[:20] + b"x" * 50]
)
def test_a_damaged_archive_says_so(target: Path, harm: Callable[[bytes], bytes]) -> None:
    data = harm(archive(entry("f", os.urandom(5_000))).getvalue())
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(io.BytesIO(data), target, SMALL)
    assert list(target.iterdir()) == []


def test_links_that_were_there_are_never_followed(target: Path) -> None:
    (target / "d").symlink_to(target.parent)
    with pytest.raises(ArchiveError, match="d on the way to d/canary is there already and is no folder"):
        unpack(archive(entry("d/canary", b"x")), target, SMALL, overwrite=True)
    (target / "d").unlink()
    (target / "f").symlink_to(target.parent / "canary")
    unpack(archive(entry("f", b"new")), target, SMALL, overwrite=True)
    assert not (target / "f").is_symlink()
    assert (target / "f").read_bytes() == b"new"
    assert (target.parent / "canary").read_text() == "alive"


def test_nothing_is_overwritten_unless_allowed(target: Path) -> None:
    (target / "b").write_text("mine")
    both = archive(entry("a", b"new"), entry("b", b"new"))
    with pytest.raises(ArchiveError, match="b is there already"):
        unpack(both, target, SMALL)
    assert [path.name for path in target.iterdir()] == ["b"]
    assert unpack(both, target, SMALL, overwrite=True) == ["a", "b"]
    assert (target / "b").read_text() == "new"
    (target / "b").unlink()
    (target / "b").mkdir()
    with pytest.raises(ArchiveError, match="b is a folder there"):
        unpack(both, target, SMALL, overwrite=True)


def test_modes_are_only_executable_or_not(target: Path) -> None:
    unpack(archive(entry("f", b"1", mode=0o6777), entry("g", b"1", mode=0o444)), target, SMALL)
    assert [oct((target / name).stat().st_mode & 0o7777) for name in "fg"] == ["0o755", "0o644"]

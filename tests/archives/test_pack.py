"""What is packed, what is refused, and that packing and unpacking give the same tree."""

import io
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archives.limits import ArchiveError, Limits
from archives.pack import Packed, link_stays_inside, pack
from archives.unpack import unpack

ROOMY = Limits(entries=1_000, packed_bytes=1 << 20, unpacked_bytes=1 << 22)


def packed(folder: Path, limits: Limits = ROOMY, *, strict: bool = True, without: str = "") -> tuple[Packed, bytes]:
    target = io.BytesIO()
    facts = pack(folder, target, limits, ignored=lambda path, _: path == without, strict=strict)
    return facts, target.getvalue()


def tree(folder: Path) -> dict[str, object]:
    """Every path with what it is: content and whether it may be executed, target of a link, None for a folder."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = None
        else:
            found[name] = (path.read_bytes(), bool(path.stat().st_mode & 0o100))
    return found


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
TREES = st.recursive(
    st.tuples(st.binary(max_size=200), st.booleans()),
    lambda below: st.dictionaries(NAMES, below, max_size=4),
    max_leaves=12,
).filter(lambda found: isinstance(found, dict))


def build(folder: Path, wanted: dict) -> None:
    folder.mkdir()
    for name, content in wanted.items():
        if isinstance(content, dict):
            build(folder / name, content)
        else:
            (folder / name).write_bytes(content[0])
            (folder / name).chmod(0o755 if content[1] else 0o644)


@given(wanted=TREES)
def test_what_is_unpacked_is_what_was_packed(tmp_path_factory: pytest.TempPathFactory, wanted: dict) -> None:
    root = tmp_path_factory.mktemp("tree")
    build(root / "from", wanted)
    _, data = packed(root / "from")
    (root / "to").mkdir()
    unpack(io.BytesIO(data), root / "to", ROOMY)
    assert tree(root / "to") == tree(root / "from")


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two")):
        build(tmp_path / name, {"b": (b"1", False), "a": {"c": (b"2", True)}})
        os.utime(tmp_path / name / "b", (number, number))
    first, second = packed(tmp_path / "one"), packed(tmp_path / "two")
    assert first == second
    (tmp_path / "two" / "b").write_bytes(b"x")
    assert packed(tmp_path / "two")[0].digest != first[0].digest


@pytest.mark.parametrize(
    ("path", "target", "stays"),
    [
        ("a", "b", True),
        ("a", "./b/c", True),
        ("d/a", "../b", True),
        ("d/a", "../../b", False),
        ("a", "../b", False),
        ("a", "/etc/passwd", False),
        ("d/a", "c/../../../x", False),
        ("d/a", "c/../x", False),
        ("a", "", False),
    ],
)
def test_where_a_link_may_lead(path: str, target: str, stays: bool) -> None:
    assert link_stays_inside(path, target) is stays


def test_links_inside_are_kept_and_not_followed(tmp_path: Path) -> None:
    build(tmp_path / "from", {"data": {"x": (b"1", False)}})
    (tmp_path / "from" / "latest").symlink_to("data")
    facts, data = packed(tmp_path / "from")
    assert facts.entries == 3
    (tmp_path / "to").mkdir()
    unpack(io.BytesIO(data), tmp_path / "to", ROOMY)
    assert os.readlink(tmp_path / "to" / "latest") == "data"


def test_what_cannot_be_kept_is_refused_or_named(tmp_path: Path) -> None:
    folder = tmp_path / "from"
    build(folder, {"x": (b"1", False)})
    (folder / "out").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "socket"))
    with pytest.raises(ArchiveError, match="out is a link that leads out of the directory, to /etc/passwd"):
        packed(folder)
    (folder / "out").unlink()
    with pytest.raises(ArchiveError, match="pipe is neither a file nor a folder"):
        packed(folder)
    (folder / "out").symlink_to("../y")
    facts, _ = packed(folder, strict=False)
    assert [line.split()[0] for line in facts.skipped] == ["out", "pipe", "socket"]
    assert facts.entries == 1


def test_what_is_ignored_is_not_even_looked_at(tmp_path: Path) -> None:
    build(tmp_path / "from", {"x": (b"1", False), "big": {"y": (b"2" * 100, False)}})
    os.mkfifo(tmp_path / "from" / "big" / "pipe")
    facts, _ = packed(tmp_path / "from", Limits(entries=1, packed_bytes=1 << 20, unpacked_bytes=50), without="big")
    assert facts.entries == 1


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(entries=3, packed_bytes=1 << 20, unpacked_bytes=1 << 20), r"more than 3 files.* data \(3\)"),
        (Limits(entries=9, packed_bytes=1 << 20, unpacked_bytes=2_000), r"the largest are: big.bin \(2.9 KiB\)"),
        (Limits(entries=9, packed_bytes=2_000, unpacked_bytes=1 << 20), r"when packed; .* big.bin \(2.9 KiB\), data/a"),
    ],
)
def test_a_limit_names_what_is_large(tmp_path: Path, limits: Limits, says: str) -> None:
    build(tmp_path / "from", {"big.bin": (os.urandom(3_000), False), "data": dict.fromkeys("abc", (b"1", False))})
    with pytest.raises(ArchiveError, match=says):
        packed(tmp_path / "from", limits)

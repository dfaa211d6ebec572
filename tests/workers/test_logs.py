"""Shipping of output: every byte once and in order, whatever calls are lost."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.sync import MAX_CHUNK_BYTES
from workers.logs import MAX_LINE_BYTES, MAX_SYNC_BYTES, Shipper, whole_lines


class Store:
    """What the service keeps of one attempt: a chunk is stored if it joins what is there, without gap or overlap."""

    def __init__(self):
        self.streams = {}

    def take(self, chunks):
        for chunk in chunks:
            stream = self.streams.setdefault(f"{chunk.rank}/{chunk.stream}", bytearray())
            if chunk.offset == len(stream):
                stream += chunk.data

    def offsets(self):
        return {name: len(data) for name, data in self.streams.items()}


def ship(shipper, folder, store, ranks=(0,)):
    """Calls until nothing is left; the number of calls."""
    calls = 0
    shipper.follow("a1", folder, ranks, store.offsets())
    while chunks := shipper.collect():
        assert calls < 1_000, "it ships the same again and again"
        store.take(chunks)
        shipper.follow("a1", folder, ranks, store.offsets())
        calls += 1
    return calls


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.tuples(
            st.binary(max_size=40) | st.sampled_from([b"x" * 300_000, b"line\n" * 30_000]),
            st.sampled_from(["0/stdout", "0/stderr", "1/stdout"]),
            st.sampled_from(["answered", "answer lost", "call lost", "agent restarted"]),
        ),
        max_size=12,
    )
)
def test_stored_exactly_once_whatever_is_lost(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("logs")
    store, shipper, written = Store(), Shipper(), {}
    shipper.follow("a1", folder, [0, 1], {})
    for data, name, fate in steps:
        rank, _slash, stream = name.partition("/")
        with open(folder / f"rank-{rank}.{stream}", "ab") as file:
            file.write(data)
        written[name] = written.get(name, b"") + data
        chunks = shipper.collect()
        assert all(len(chunk.data) <= MAX_CHUNK_BYTES for chunk in chunks)
        assert sum(len(chunk.data) for chunk in chunks) <= MAX_SYNC_BYTES
        if fate == "agent restarted":
            shipper = Shipper()
        if fate != "call lost":
            store.take(chunks)
        if fate in ("answered", "agent restarted"):
            shipper.follow("a1", folder, [0, 1], store.offsets())
        assert all(written[name].startswith(data) for name, data in store.streams.items()), "no gap, no repeat"
    ship(shipper, folder, store, [0, 1])
    assert {name: bytes(data) for name, data in store.streams.items()} == {
        name: data for name, data in written.items() if data
    }
    assert shipper.is_shipped("a1")


def test_a_long_output_goes_in_chunks_within_the_limit_of_a_call(tmp_path):
    data = random.Random(1).randbytes(3 * MAX_SYNC_BYTES + 5)
    (tmp_path / "rank-0.stdout").write_bytes(data)
    store = Store()
    assert ship(Shipper(), tmp_path, store) == 13, "a stream gets one chunk a call"
    assert bytes(store.streams["0/stdout"]) == data


def test_streams_take_turns_when_a_call_is_full(tmp_path):
    ranks = range(12)
    for rank in ranks:
        (tmp_path / f"rank-{rank}.stdout").write_bytes(b"x" * MAX_CHUNK_BYTES)
    store = Store()
    assert ship(Shipper(), tmp_path, store, ranks) == 3
    assert len(store.streams) == 12


def test_many_small_streams_stay_within_the_number_of_chunks(tmp_path):
    ranks = range(400)
    for rank in ranks:
        (tmp_path / f"rank-{rank}.stdout").write_bytes(b"x")
    store = Store()
    assert ship(Shipper(), tmp_path, store, ranks) == 2
    assert len(store.streams) == 400


def test_nothing_is_shipped_before_the_service_said_what_it_has(tmp_path):
    (tmp_path / "rank-0.stdout").write_bytes(b"hello")
    shipper = Shipper()
    assert shipper.collect() == []
    assert not shipper.is_shipped("a1")
    shipper.follow("a1", tmp_path, [0], {"0/stdout": 3})
    [chunk] = shipper.collect()
    assert (chunk.offset, chunk.data) == (3, b"lo")


def test_a_service_that_lost_output_gets_it_again(tmp_path):
    (tmp_path / "rank-0.stdout").write_bytes(b"hello")
    shipper = Shipper()
    shipper.follow("a1", tmp_path, [0], {"0/stdout": 5})
    assert shipper.is_shipped("a1")
    shipper.follow("a1", tmp_path, [0], {"0/stdout": 2})
    assert not shipper.is_shipped("a1")
    assert [chunk.data for chunk in shipper.collect()] == [b"llo"]


def test_a_dropped_attempt_is_not_shipped(tmp_path):
    (tmp_path / "rank-0.stdout").write_bytes(b"hello")
    shipper = Shipper()
    shipper.follow("a1", tmp_path, [0], {})
    shipper.drop("a1")
    assert shipper.collect() == []


# -- progress


def test_progress_waits_for_the_end_of_the_line(tmp_path):
    path = tmp_path / "rank-0.progress"
    path.write_bytes(b'{"step": 1}\n{"st')
    store, shipper = Store(), Shipper()
    ship(shipper, tmp_path, store)
    assert bytes(store.streams["0/progress"]) == b'{"step": 1}\n'
    assert shipper.is_shipped("a1"), "half a line of a killed rank holds nothing up"
    with path.open("ab") as file:
        file.write(b'ep": 2}\n')
    ship(shipper, tmp_path, store)
    assert bytes(store.streams["0/progress"]) == b'{"step": 1}\n{"step": 2}\n'


LONG = b"x" * (MAX_LINE_BYTES + 1)
lines = st.sampled_from([b"", b"a", b'{"step": 1}', LONG[:-1], LONG, LONG * 9])


@settings(max_examples=60)
@given(written=st.lists(lines, max_size=6), cuts=st.lists(st.integers(1, 200_000) | st.just(len(LONG) + 9), max_size=6))
def test_long_lines_become_blanks_and_all_others_arrive_whole(tmp_path_factory, written, cuts):
    folder = tmp_path_factory.mktemp("progress")
    data = b"".join(line + b"\n" for line in written)
    store, shipper = Store(), Shipper()
    path = folder / "rank-0.progress"
    path.touch()
    for cut in [*cuts, len(data)]:
        with path.open("ab") as file:
            file.write(data[path.stat().st_size : path.stat().st_size + cut])
        ship(shipper, folder, store)
    expected = [b" " * len(line) if len(line) > MAX_LINE_BYTES else line for line in written]
    assert bytes(store.streams.get("0/progress", b"")) == b"".join(line + b"\n" for line in expected)


def test_the_rest_of_a_long_line_is_blank_too_although_it_is_short(tmp_path):
    path = tmp_path / "rank-0.progress"
    store, shipper = Store(), Shipper()
    for piece in (LONG, b'{"step": 1}', b"\n", b'{"step": 2}\n'):
        with path.open("ab") as file:
            file.write(piece)
        ship(shipper, tmp_path, store)
    assert bytes(store.streams["0/progress"]).split() == [b'{"step":', b"2}"]


@pytest.mark.parametrize(
    ("data", "inside", "shipped"),
    [
        (b"", False, b""),
        (b"abc", False, b""),
        (b"abc\nde", False, b"abc\n"),
        (b"tail\nabc\nde", True, b"    \nabc\n"),
        (b"tail", True, b"    "),
        (b"\nabc\n", True, b"\nabc\n"),
    ],
)
def test_whole_lines(data, inside, shipped):
    assert whole_lines(data, inside=inside) == shipped

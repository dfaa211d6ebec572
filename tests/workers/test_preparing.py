"""A supervisor whose attempt needs something first: it prepares, and only then starts the ranks."""

import json
import os

import pytest

from tests.workers.test_supervisor import ATTEMPT, member, now_s, shell  # noqa: F401

ENV = {"PATH": os.environ["PATH"], "ERGON_ATTEMPT": ATTEMPT}


def preparing(script):
    return {"argv": ["/bin/sh", "-c", script], "env": ENV}


def says(record):
    return f"echo '{json.dumps(record)}' > ../prepared.json"


@pytest.fixture
def make(member):  # noqa: F811
    return lambda script, argv=("sh", "-c", "echo $A in $(pwd)"), **changes: member(
        list(argv), prepare=preparing(script), **changes
    )


def test_the_ranks_start_with_what_was_found_out(make):
    one = make(
        f"echo building >&2; echo more; {says({'argv': ['sh', '-c', 'echo $A; ls'], 'env': {'A': 'b'}})}; > code"
    )
    assert one.start().end()["reason"] == "completed"
    assert one.text("rank-0.stdout") == "b\ncode\n"
    assert one.text("rank-0.stderr") == "building\nmore\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (f"{says({'fault': 'no such wheel'})}; exit 1", "no such wheel"),
        ("exit 7", "its preparation ended with code 7; its standard error tells more"),
        ("kill -9 $$", "its preparation ended with code -9; its standard error tells more"),
    ],
)
def test_a_preparation_that_fails_starts_nothing(make, script, message):
    one = make(script)
    record = one.start().end()
    assert (record["reason"], record["message"], record["exit_code"]) == ("start_failed", message, None)
    assert not (one.folder / "started.json").exists()
    assert not (one.folder / "rank-0.stdout").exists()


def test_a_stop_ends_the_preparation_and_all_it_started(make, tmp_path):
    os.mkfifo(tmp_path / "up")
    one = make(f"setsid sleep 1000 & echo up > {tmp_path}/up; sleep 1000").start()
    (tmp_path / "up").read_text()
    record = one.stop().end()
    assert record["reason"] == "cancelled"
    assert not (one.folder / "started.json").exists()


def test_the_lease_ends_it_too(make):
    assert make("sleep 1000", fence_at_s=now_s() + 0.3).start().end()["reason"] == "fenced"


def test_the_time_limit_counts_from_the_ranks(make):
    ready = says({"argv": ["sh", "-c", "sleep 1000"], "env": {}})
    one = make(f"sleep 0.6; {ready}", time_limit_s=0.3).start()
    assert one.end()["reason"] == "time_limit"
    assert (one.folder / "started.json").exists()

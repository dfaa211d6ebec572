"""Limits that the kernel keeps: memory and processes of one member."""

import os
import sys
from pathlib import Path

import pytest

from tests.workers.test_supervisor import Member, shell
from workers.limits import limit_folders

MIB = 1 << 20


@pytest.fixture
def limited(tmp_path):
    """Starts a member with limits."""
    folders = limit_folders(f"limits-{os.getpid()}")
    if folders.keys() != {"memory", "pids"}:
        pytest.skip("no v1 controllers `memory` and `pids` for this process")
    made = []

    def start(argv, memory_bytes=64 * MIB):
        values = {"limits": folders, "memory_bytes": memory_bytes, "memory_message": "ask for more"}
        made.append(Member(tmp_path, argv, **values))
        return made[-1].start()

    yield start
    for one in made:
        one.close()
    assert not [path for path in folders.values() if os.path.exists(path)]


def take(mebibytes):
    return [sys.executable, "-c", f"print(len(bytearray({mebibytes} << 20)))"]


def test_who_takes_more_memory_than_it_may_is_ended_for_that(limited):
    end = limited(take(200)).end()
    assert (end["reason"], end["exit_code"]) == ("out_of_memory", -9)
    assert end["message"].endswith("; ask for more")


def test_a_rank_that_fails_because_its_child_had_no_memory_is_out_of_memory(limited):
    end = limited(shell(f"{sys.executable} -c 'bytearray(200 << 20)' || exit 5")).end()
    assert (end["reason"], end["exit_code"]) == ("out_of_memory", 5)


@pytest.mark.parametrize("memory_bytes", [0, 512 * MIB])
def test_who_stays_within_completes(limited, memory_bytes):
    assert limited(take(100), memory_bytes).end()["reason"] == "completed"


def test_a_failure_with_memory_to_spare_is_a_failure(limited):
    assert limited(shell("exit 3")).end()["reason"] == "failed"


def test_ranks_are_limited_and_their_supervisor_is_not(limited):
    one = limited(["sleep", "1000"]).wait_started()
    for name, folder in limit_folders(f"limits-{os.getpid()}").items():
        inside = {int(line) for line in Path(folder, "cgroup.procs").read_text().split()}
        assert inside, name
        assert one.process.pid not in inside
    assert Path(limit_folders(f"limits-{os.getpid()}")["pids"], "pids.max").read_text() == "32768\n"
    one.stop().end()

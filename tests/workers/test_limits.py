"""Limits that the kernel keeps: memory and processes of one member."""

import os
import sys
from pathlib import Path

import pytest

from protocol.states import EndReason
from tests.workers import builders
from tests.workers.test_supervisor import Member, shell
from workers.cgroups import Groups, own_group
from workers.limits import Limits, find_limits, limit_folders

MIB = 1 << 20
A1 = f"limits-{os.getpid()}"
needs_limits = pytest.mark.skipif(
    set(find_limits(None)) != {"memory", "pids"}, reason="no v1 controllers `memory` and `pids` for this process"
)


@pytest.fixture(params=[True, False], ids=["v2", "v1"])
def limited(request, tmp_path):
    """Starts a member with limits, of both kinds of controllers as far as this process may have them."""
    own = own_group(unified=True)
    groups = Groups(own, A1, unified=True) if own and request.param else None
    folders = limit_folders(A1, groups)
    inside = {folder.startswith(f"{own}/") for folder in folders.values()}
    if set(find_limits(groups)) != {"memory", "pids"} or inside != {request.param}:
        pytest.skip("no such controllers `memory` and `pids` for this process")
    made = []

    def start(argv, memory_bytes=64 * MIB):
        values = {"limits": folders, "memory_bytes": memory_bytes, "memory_message": "ask for more"}
        made.append(Member(tmp_path, argv, **values))
        return made[-1].start()

    start.folders = folders
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
    for name, folder in limited.folders.items():
        inside = {int(line) for line in Path(folder, "cgroup.procs").read_text().split()}
        assert inside, name
        assert one.process.pid not in inside
    assert Path(limited.folders["pids"], "pids.max").read_text() == "32768\n"
    one.stop().end()


# The controllers are with v1 wherever these tests have run, and one controller is never with both: what v2 alone needs
# is tried on plain files, which take what a kernel would. That v2 passes a controller on was tried by hand (hugetlb).


@pytest.fixture
def unified(tmp_path):
    """Files as v2 has them: the group of one attempt, and the two above it."""
    path = tmp_path / "ergon-key" / A1
    path.mkdir(parents=True)
    for folder in (tmp_path, path.parent, path):
        (folder / "cgroup.controllers").write_text("cpu memory pids\n")
        (folder / "cgroup.subtree_control").touch()
    for name in ("memory.max", "memory.swap.max", "pids.max"):
        (path / name).touch()
    (path / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 1\noom_kill 0\noom_group_kill 0\n")
    return path


@pytest.mark.parametrize(
    ("controller", "files"),
    [("memory", {"memory.max": str(64 * MIB), "memory.swap.max": "0"}), ("pids", {"pids.max": "32768"})],
)
def test_v2_limits_the_group_itself_once_those_above_pass_the_controller_on(unified, controller, files):
    limits = Limits({controller: str(unified)}, 64 * MIB)
    limits.make()
    assert limits.kept() == [controller]
    assert {name: (unified / name).read_text() for name in files} == files
    for above in unified.parents[:2]:
        assert (above / "cgroup.subtree_control").read_text() == f"+{controller}"


def test_v2_counts_who_was_killed_for_want_of_memory(unified):
    limits = Limits({"memory": str(unified)}, 0)
    limits.make()
    assert not limits.was_memory_short()
    assert (unified / "memory.max").read_text() == "", "asked for nothing, limited to nothing"
    (unified / "memory.events").write_text("oom 3\noom_kill 1\n")
    assert limits.was_memory_short()


def test_v2_without_the_file_of_a_limit_limits_nothing_and_says_so(unified, capsys):
    (unified / "memory.max").unlink()
    limits = Limits({"memory": str(unified), "pids": str(unified)}, MIB)
    limits.make()
    assert limits.kept() == ["pids"]
    assert f"no limit of memory in {unified}" in capsys.readouterr().err
    assert not limits.was_memory_short()


# -- the whole agent


@needs_limits
def test_an_agent_tells_what_is_limited_and_ends_who_takes_too_much(agent, service):
    one = agent("--memory", str(1 << 30)).wait_ready()
    service.grant(builders.assignment(A1, command=take(200), memory_bytes=64 * MIB))
    report = service.wait_forgotten(A1)
    assert (report.reason, report.exit_code) == (EndReason.OUT_OF_MEMORY, -9)
    assert report.message.endswith("it may use 64 MiB; submit it with more `memory_bytes_per_node` (--memory)")
    assert service.limits == [["memory", "processes"]]
    assert one.terminate()[0] == 0
    assert not [path for path in limit_folders(A1, None).values() if os.path.exists(path)]


def test_a_service_of_before_is_not_told_what_is_limited(agent, service):
    service.set(knows_limits=False)
    agent().wait_ready()
    service.wait_syncs(2)
    assert service.limits == []

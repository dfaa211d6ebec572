"""Control groups of the kernel, both kinds: what is inside dies, wherever it hides, and nothing else does."""

import builtins
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workers.test_supervisor import LEAVES, Member, shell
from workers import files
from workers.cgroups import SUBGROUP, NoGroups, find_groups, own_group


@pytest.fixture
def group(groups):
    made = groups.group("a1")
    made.make()
    return made


def start_inside(group, *command):
    """A process that is in the group before it runs `command`."""
    return subprocess.Popen(["sh", "-c", f'echo 0 > {group.path}/cgroup.procs; exec "$@"', "sh", *command])


def wait_empty(group):
    """As the supervisor does it."""
    while not group.is_empty():
        group.kill()
        os.sched_yield()


def test_whatever_is_inside_dies_and_nothing_else(group, tmp_path):
    os.mkfifo(tmp_path / "alive")
    outside = subprocess.Popen(["sleep", "1000"])
    script = f"exec 3> {tmp_path}/alive; (env -i setsid sleep 1000 &) ; (trap '' TERM HUP; sleep 1000) & kill -STOP $$"
    inside = start_inside(group, "sh", "-c", script)
    with open(tmp_path / "alive", "rb") as alive:
        assert not group.is_empty()
        wait_empty(group)
        assert inside.wait() == -signal.SIGKILL
        assert alive.read() == b"", "whoever inherited the pipe is gone"
    assert outside.poll() is None
    outside.kill()
    outside.wait()


def test_groups_that_its_processes_made_die_and_go_with_it(group):
    script = f"mkdir -p {group.path}/deep/er; echo 0 > {group.path}/deep/er/cgroup.procs; echo in; exec sleep 1000"
    inside = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
    assert inside.stdout.readline() == b"in\n"
    assert not group.is_empty()
    group.remove()
    assert os.path.exists(group.path), "one that is not empty stays"
    wait_empty(group)
    inside.wait()
    inside.stdout.close()
    group.remove()
    assert not os.path.exists(group.path)


def test_a_group_that_does_not_exist_is_empty(groups):
    absent = groups.group("never")
    absent.kill()
    absent.remove()
    assert absent.is_empty()
    assert groups.attempts() == []
    assert groups.every_group("never") == []


def test_a_group_that_another_process_removes_at_that_moment_is_empty(group, monkeypatch):
    """Supervisor and agent may be emptying the same group: its files are open, then it is gone."""

    def removed_once_it_is_open(opener, path, *args, **options):
        file = opener(path, *args, **options)
        if str(path).startswith(group.path):
            group.remove()
        return file

    for module, name in ((builtins, "open"), (os, "open")):
        monkeypatch.setattr(module, name, functools.partial(removed_once_it_is_open, getattr(module, name)))
    group.kill()
    assert not os.path.exists(group.path), "or this test shows nothing"
    group.make()
    assert group.is_empty()
    assert not os.path.exists(group.path), "or this test shows nothing"


def test_a_group_is_found_by_its_attempt_whichever_agent_made_it(groups, group):
    assert groups.attempts() == ["a1"]
    assert [found.path for found in groups.every_group("a1")] == [group.path]
    assert groups.every_group("a") == groups.every_group("*") == []


def test_the_groups_of_an_agent_are_known_by_its_state_folder(tmp_path):
    try:
        found = find_groups(str(tmp_path))
    except NoGroups:
        pytest.skip("no control groups for this process")
    again, other = find_groups(str(tmp_path)), find_groups("/")
    assert found.group("a1").path == again.group("a1").path != other.group("a1").path
    assert found.attempts() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_have_groups_is_told_why():
    script = (
        "from workers.cgroups import NoGroups, find_groups\n"
        "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: find_groups('/')\n"
        "except NoGroups as reason: print(reason)"
    )
    said = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True)
    assert "denied" in said.stdout or "mounted" in said.stdout


@pytest.mark.parametrize("leave", LEAVES)
def test_a_supervisor_leaves_nothing_in_its_group(groups, tmp_path, leave):
    group = groups.group(f"leaves-{os.getpid()}")
    one = Member(tmp_path, shell(f"{leave}\nexit 0"), group=group.path).start()
    record = one.end()
    one.close()
    assert (record["reason"], record["clean"]) == ("completed", True)
    assert not os.path.exists(group.path)


def test_a_supervisor_kills_what_is_in_its_group_though_it_is_not_below_it(groups, tmp_path):
    group = groups.group(f"strange-{os.getpid()}")
    os.mkfifo(tmp_path / "go")
    one = Member(tmp_path, shell(f"read line < {tmp_path}/go"), group=group.path).start().wait_started()
    stranger = start_inside(group, "sleep", "1000")
    while str(stranger.pid) not in Path(group.path, "cgroup.procs").read_text().split():
        os.sched_yield()
    (tmp_path / "go").write_text("\n")
    assert one.end()["reason"] == "completed"
    one.close()
    assert stranger.wait(timeout=60) == -signal.SIGKILL
    assert not os.path.exists(group.path)


def test_ranks_are_in_the_group_and_their_supervisor_is_not(groups, tmp_path):
    group = groups.group(f"ranks-{os.getpid()}")
    one = Member(tmp_path, ["sleep", "1000"], ranks=2, group=group.path).start().wait_started()
    ranks = files.read_record(str(one.folder / "started.json"))["pids"]
    with open(f"{group.path}/cgroup.procs") as inside:
        assert sorted(int(line) for line in inside) == sorted(ranks)
    one.stop().end()
    one.close()


def test_a_group_that_cannot_be_made_keeps_nothing_from_running(tmp_path):
    one = Member(tmp_path, ["true"], group="/proc/no-such/group").start()
    assert one.end()["reason"] == "completed"
    one.close()


def test_an_agent_in_a_group_of_its_own_makes_others_beside_it(tmp_path):
    """Below a group with processes v2 limits nothing: neither agent nor supervisor may be in the one above."""
    own = own_group(unified=True)
    if own is None or not os.access(own, os.W_OK):
        pytest.skip("no such control groups for this process")
    above = f"{own}/test-{os.getpid()}"
    os.makedirs(f"{above}/{SUBGROUP}")
    code = (
        f"import sys; sys.path.insert(0, {os.getcwd()!r}); from workers.cgroups import *\n"
        f"groups = find_groups({str(tmp_path)!r}); group = groups.group('a1'); group.make()\n"
        "where = lambda: own_group(unified=True)\n"
        "with group.inside(): print(where())\n"
        "print(where()); group.remove()"
    )
    try:
        enter = ["sh", "-c", f'echo 0 > {above}/{SUBGROUP}/cgroup.procs; exec "$@"', "sh"]
        told = subprocess.run([*enter, sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    finally:
        os.rmdir(f"{above}/{SUBGROUP}")
        os.rmdir(above)
    inside, after = told.split()
    assert inside.startswith(f"{above}/ergon-")
    assert inside.endswith("/a1")
    assert after == f"{above}/{SUBGROUP}"

"""Ranks that live and do nothing: noticed in time, asked where they hang, and ended."""

import os
import signal
import sys

import pytest

from tests.workers.test_supervisor import FAR_S, Member, shell
from workers import files, procfs, runs
from workers.stalls import Silence

SHORT_S = 0.3


@pytest.fixture
def member(tmp_path):
    """As in `test_supervisor`, with less patience for a rank that is stopped."""
    made = []

    def make(argv, *, stopped_limit_s=SHORT_S, **changes):
        less = f"from workers import stalls; stalls.STOPPED_LIMIT_S = {stopped_limit_s}; supervisor.main("
        code = runs.SUPERVISOR.replace("supervisor.main(", less)
        made.append(Member(tmp_path, argv, code=code, **changes))
        return made[-1]

    yield make
    for item in made:
        item.close()


def wait_quiet(one, *, quiet=True):
    """Until the supervisor says so. What is on disk is looked at again whenever its bell has rung."""
    while (one.folder / "quiet.json").exists() != quiet:
        one.wait_bell()


# -- stopped by a signal


def test_a_rank_that_somebody_stops_ends_the_member(member):
    one = member(["sleep", "1000"], ranks=2).start().wait_started()
    first, second = files.read_record(str(one.folder / "started.json"))["pids"]
    os.kill(second, signal.SIGSTOP)
    record = one.end()
    assert (record["reason"], record["message"]) == (
        "stalled",
        f"rank 1 was stopped by a signal and did not go on for {SHORT_S:g} s",
    )
    assert procfs.read_process(first) is None


def test_a_rank_that_goes_on_in_time_is_left_alone(member, tmp_path):
    os.mkfifo(tmp_path / "go")
    one = member(shell(f"read line < {tmp_path}/go; sleep 1.2; exit 0"), stopped_limit_s=1.0).start().wait_started()
    [pid] = files.read_record(str(one.folder / "started.json"))["pids"]
    os.kill(pid, signal.SIGSTOP)
    while procfs.read_process(pid).state != "T":
        os.sched_yield()
    os.kill(pid, signal.SIGCONT)
    (tmp_path / "go").write_text("\n")
    assert one.end()["reason"] == "completed"


# -- silent


def test_silence_is_told_and_so_is_its_end(member, tmp_path):
    os.mkfifo(tmp_path / "go")
    script = f"read line < {tmp_path}/go; until [ -e {tmp_path}/hush ]; do echo again; sleep 0.05; done; sleep 1000"
    one = member(shell(script), stall_timeout_s=SHORT_S).start()
    wait_quiet(one)
    (tmp_path / "go").write_text("\n")
    wait_quiet(one, quiet=False)
    (tmp_path / "hush").touch()
    wait_quiet(one)
    record = one.stop().end()
    assert (record["reason"], record["message"]) == (
        "cancelled",
        f"nothing was written for {SHORT_S:g} s; where it hung is in its stderr",
    )
    assert "(sleep) is in state S, waiting for" in one.text("rank-0.stderr")


def test_a_rank_that_uses_the_runtime_tells_where_every_thread_hangs(member, tmp_path):
    os.mkfifo(tmp_path / "up")
    script = (
        "import threading; from ergon import runtime\n"
        "def hang(): threading.Event().wait()\n"
        "threading.Thread(target=hang, daemon=True).start()\n"
        f"open({str(tmp_path / 'up')!r}, 'w').close(); hang()"
    )
    env = {"ERGON_DUMP_SIGNAL": "47", "PYTHONPATH": str(runs.ROOT)}
    one = member([sys.executable, "-c", script], stall_timeout_s=SHORT_S, env=env).start()
    (tmp_path / "up").read_bytes()
    wait_quiet(one)
    one.stop().end()
    assert one.text("rank-0.stderr").count(" in hang") == 2


def test_without_a_limit_nobody_is_silent(member):
    one = member(shell("sleep 0.5")).start()
    assert one.end()["message"] == ""
    assert not (one.folder / "quiet.json").exists()


@pytest.mark.parametrize(("at_s", "too_long"), [(9.9, False), (10.0, True), (FAR_S, True)])
def test_silence_is_too_long_from_its_limit_on(at_s, too_long):
    silence = Silence(10.0, [], 0.0)
    assert (silence.due_s(), silence.is_too_long(at_s)) == (10.0, too_long)
    silence.hear(at_s)
    assert not silence.is_too_long(at_s + 9.9)


def test_progress_breaks_the_silence(tmp_path):
    path = tmp_path / "rank-0.progress"
    silence = Silence(10.0, [str(path)], 0.0)
    path.write_text("{}\n")
    assert not silence.is_too_long(12.0)
    assert silence.due_s() == 22.0
    assert silence.is_too_long(22.0)

"""Real supervisors with real ranks: every way a member can end, and that nothing of it is left."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workers import files, procfs
from workers.runs import SUPERVISOR

FAR_S = 1e12
ATTEMPT = f"member-{os.getpid()}"
"""Ranks are known by it on the whole machine, and tests may run side by side there."""


class Member:
    """An attempt's folder and the supervisor that runs it."""

    def __init__(
        self, root: Path, argv, *, attempt=ATTEMPT, ranks=1, env=None, fence_at_s=FAR_S, code=SUPERVISOR, **changes
    ):
        """`code` is what the supervisor runs; `changes` are of the launch record."""
        self.folder = root / attempt
        (self.folder / "work").mkdir(parents=True)
        self.attempt = attempt
        self.lease = root / "lease.json"
        self.set_lease(fence_at_s)
        os.mkfifo(root / "bell")
        self.bell = os.open(root / "bell", os.O_RDWR | os.O_NONBLOCK)
        launch = {
            "argv": argv,
            "env": {"PATH": os.environ["PATH"], "ERGON_ATTEMPT": attempt} | (env or {}),
            "ranks": [
                {"rank": rank, "env": {"RANK": str(rank), "ERGON_PROGRESS": str(self.folder / f"rank-{rank}.progress")}}
                for rank in range(ranks)
            ],
            "time_limit_s": None,
            "stop_grace_s": 30,
            "cap_bytes": 1 << 20,
            "bell": str(root / "bell"),
            "lease": str(self.lease),
        }
        files.write_record(str(self.folder / "launch.json"), launch | changes)
        self.code = code
        self.process = None

    def set_lease(self, fence_at_s, grace_s=0.0):
        files.write_record(str(self.lease), {"fence_at_s": fence_at_s, "grace_s": grace_s})

    def start(self):
        command = [sys.executable, "-I", "-S", "-c", self.code, str(self.folder)]
        self.process = subprocess.Popen(command, env={}, start_new_session=True)
        return self

    def wait_started(self):
        self._wait_for("started.json")
        return self

    def stop(self, reason="cancelled", grace_s=30.0):
        record = {"at_s": 0, "grace_s": grace_s, "reason": reason, "message": ""}
        files.write_record(str(self.folder / "stop.json"), record)
        self.process.send_signal(signal.SIGTERM)
        return self

    def end(self):
        """Wait for the end; the exit record."""
        assert self.process.wait(timeout=60) == 0
        record = files.read_record(str(self.folder / "exit.json"))
        assert procfs.pids_with_variable(f"ERGON_ATTEMPT={self.attempt}".encode()) == []
        assert record["clean"]
        return record

    def text(self, name):
        return (self.folder / name).read_text()

    def close(self):
        os.close(self.bell)
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in procfs.pids_with_variable(f"ERGON_ATTEMPT={self.attempt}".encode()):
            os.kill(pid, signal.SIGKILL)

    def _wait_for(self, name):
        """The bell rings when a record is written."""
        while not (self.folder / name).exists():
            self.wait_bell()

    def wait_bell(self):
        select.select([self.bell], [], [])
        os.read(self.bell, 4096)


@pytest.fixture
def member(tmp_path):
    made = []

    def make(argv, **changes):
        made.append(Member(tmp_path, argv, **changes))
        return made[-1]

    yield make
    for item in made:
        item.close()


def shell(script):
    return ["sh", "-c", script]


def now_s():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_member_that_completes(member):
    script = "echo out $RANK; echo err $RANK >&2; pwd; cat"
    one = member(shell(script), ranks=2).start()
    record = one.end()
    assert (record["reason"], record["exit_code"]) == ("completed", 0)
    for rank in range(2):
        assert one.text(f"rank-{rank}.stdout") == f"out {rank}\n{one.folder}/work\n"
        assert one.text(f"rank-{rank}.stderr") == f"err {rank}\n"


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("exit 3", 3, "rank 0 exited with code 3"),
        ("kill -SEGV $$", -signal.SIGSEGV, "rank 0 was ended by SIGSEGV, which Ergon did not send"),
        ("kill -KILL $$", -signal.SIGKILL, "memory"),
    ],
)
def test_a_rank_that_fails(member, script, code, message):
    record = member(shell(script)).start().end()
    assert (record["reason"], record["exit_code"]) == ("failed", code)
    assert message in record["message"]


def test_the_rank_that_fails_first_stops_the_others_and_is_the_one_that_is_told(member):
    one = member(shell('if [ "$RANK" = 1 ]; then exit 7; fi; exec sleep 1000'), ranks=3).start()
    record = one.end()
    assert (record["reason"], record["exit_code"]) == ("failed", 7)
    assert record["message"] == "rank 1 exited with code 7"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["no-such-program"], "no program `no-such-program` on the node's PATH"),
        (["/no/such/file"], "`/no/such/file` does not exist"),
        (["/etc/passwd"], "may not be executed"),
        (["./script"], "`./script` does not exist"),
    ],
)
def test_a_program_that_cannot_be_started(member, argv, message):
    record = member(argv, ranks=2).start().end()
    assert (record["reason"], record["exit_code"]) == ("start_failed", None)
    assert message in record["message"]


def test_a_script_without_an_interpreter_cannot_be_started(member, tmp_path):
    script = tmp_path / "script"
    script.write_text("echo hello")
    script.chmod(0o755)
    record = member([str(script)]).start().end()
    assert record["reason"] == "start_failed"
    assert "interpreter" in record["message"]


def test_the_program_is_looked_up_on_the_path_of_the_job(member, tmp_path):
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho mine\n")
    tool.chmod(0o755)
    one = member(["tool"], env={"PATH": f"/nowhere:{tmp_path}"}).start()
    assert one.end()["reason"] == "completed"
    assert one.text("rank-0.stdout") == "mine\n"


def test_the_time_limit(member):
    record = member(["sleep", "1000"], time_limit_s=0.2).start().end()
    assert record["reason"] == "time_limit"
    assert "0.2 s" in record["message"]


def test_a_polite_stop_lets_the_ranks_finish(member, tmp_path):
    os.mkfifo(tmp_path / "up")
    script = f"trap 'echo saved; exit 0' TERM; echo up > {tmp_path}/up; while :; do sleep 0.01; done"
    one = member(shell(script)).start()
    assert (tmp_path / "up").read_text() == "up\n"
    record = one.stop().end()
    assert (record["reason"], record["exit_code"]) == ("cancelled", 0)
    assert one.text("rank-0.stdout") == "saved\n"


def test_a_rank_that_ignores_the_polite_stop_is_killed(member, tmp_path):
    os.mkfifo(tmp_path / "up")
    one = member(shell(f"trap '' TERM; echo up > {tmp_path}/up; while :; do sleep 1000; done")).start()
    assert (tmp_path / "up").read_text() == "up\n"
    record = one.stop(grace_s=0.1).end()
    assert (record["reason"], record["exit_code"]) == ("cancelled", -signal.SIGKILL)


def test_a_stopped_rank_can_still_react(member):
    one = member(shell("trap 'exit 9' TERM; kill -STOP $$")).start().wait_started()
    pid = files.read_record(str(one.folder / "started.json"))["pids"][0]
    while procfs.read_process(pid).state != "T":
        os.sched_yield()
    assert one.stop().end()["exit_code"] == 9


LEAVES = [
    "setsid sleep 1000 &",
    "(setsid sh -c 'trap \"\" TERM HUP; sleep 1000 & sleep 1000' &) ; sleep 0.1",
    "env -i setsid sleep 1000 &",
]


@pytest.mark.parametrize("leave", LEAVES)
def test_what_a_rank_leaves_behind_is_killed(member, tmp_path, leave):
    os.mkfifo(tmp_path / "alive")
    reader = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    one = member(shell(f"exec 3> {tmp_path}/alive; {leave}\nexit 0")).start()
    record = one.end()
    assert record["reason"] == "completed"
    assert os.read(reader, 1) == b"", "whoever inherited the pipe is gone"
    os.close(reader)


def test_output_beyond_the_cap_is_counted_and_said(member):
    cap, size = 100_000, 5_000_000
    one = member(shell(f"head -c {size} /dev/zero | tr '\\0' x; echo short >&2"), cap_bytes=cap).start()
    assert one.end()["reason"] == "completed"
    kept, note = one.text("rank-0.stdout").split("\n", 1)
    assert kept == "x" * cap
    assert note == f"[ergon] {size - cap} bytes of rank-0.stdout were dropped here: the limit is {cap} bytes a stream\n"
    assert one.text("rank-0.stderr") == "short\n"


def test_output_on_a_full_disk_does_not_end_the_job(member):
    one = member(shell("head -c 300000 /dev/zero; exit 4"))
    (one.folder / "rank-0.stdout").symlink_to("/dev/full")
    record = one.start().end()
    assert (record["reason"], record["exit_code"]) == ("failed", 4)


FILL = "head -c 20000000 /dev/zero > {}; echo filled; sleep 1000"


@pytest.mark.parametrize("place", ["here", "$ERGON_OUTPUT/here", "sub/folder"])
def test_a_script_that_fills_its_disk_quota_is_ended_and_what_it_wrote_is_still_there(member, tmp_path, place):
    (tmp_path / ATTEMPT / "output").mkdir(parents=True)
    env = {"ERGON_OUTPUT": str(tmp_path / ATTEMPT / "output")}
    script = f"mkdir sub; trap '' TERM; {FILL.format(place)}"
    one = member(shell(script), env=env, disk={"bytes": 10_000_000, "message": "too much"}).start()
    record = one.end()
    assert (record["reason"], record["message"], record["exit_code"]) == ("disk_quota", "too much", -signal.SIGKILL)
    assert one.text("rank-0.stdout") == "filled\n"
    assert sum(path.stat().st_size for path in one.folder.rglob("*") if path.is_file()) > 20_000_000


def test_the_end_of_the_lease_stops_the_ranks_without_an_agent(member):
    record = member(["sleep", "1000"], fence_at_s=now_s() + 0.3).start().end()
    assert record["reason"] == "fenced"


def test_ranks_that_may_outlast_the_lease_do(member):
    one = member(["sleep", "1000"], fence_at_s=now_s() + 0.3, outlasts_lease=True, time_limit_s=1.0).start()
    assert one.end()["reason"] == "time_limit"


def test_a_lease_that_is_renewed_goes_on(member):
    one = member(["sleep", "1000"], fence_at_s=now_s() + 1.5).start()
    one.wait_started().set_lease(now_s() + 2.0)
    assert one.end()["reason"] == "fenced"
    assert now_s() >= files.read_record(str(one.lease))["fence_at_s"]


def test_without_a_lease_nothing_starts(member):
    one = member(["sleep", "1000"])
    one.lease.unlink()
    assert one.start().end()["reason"] == "fenced"
    assert not (one.folder / "started.json").exists()


def test_the_end_of_the_lease_cuts_the_patience_of_a_stop(member, tmp_path):
    os.mkfifo(tmp_path / "up")
    script = f"trap '' TERM; echo up > {tmp_path}/up; while :; do sleep 1000; done"
    one = member(shell(script), fence_at_s=now_s() + 1.5).start()
    assert (tmp_path / "up").read_text() == "up\n"
    record = one.stop(grace_s=1000).end()
    assert (record["reason"], record["exit_code"]) == ("cancelled", -signal.SIGKILL)


def test_a_stop_from_before_the_start_starts_nothing(member):
    one = member(shell("echo started"))
    files.write_record(
        str(one.folder / "stop.json"), {"at_s": 0, "grace_s": 1, "reason": "fenced", "message": "too late"}
    )
    record = one.start().end()
    assert (record["reason"], record["message"], record["exit_code"]) == ("fenced", "too late", None)
    assert not (one.folder / "started.json").exists()


def test_a_claimed_attempt_is_not_started_again(member):
    one = member(shell("echo started"))
    assert files.create_record(str(one.folder / "claim.json"), {"pid": 0, "start": 0})
    assert one.start().process.wait(timeout=60) == 0
    assert not (one.folder / "exit.json").exists()
    assert not (one.folder / "rank-0.stdout").exists()


def test_cpu_time_of_all_processes_is_in_the_exit_record(member):
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    one = member(shell(f"for i in 1 2; do {sys.executable} -I -S -c '{burn}'; done")).start()
    assert 0.6 <= one.end()["cpu_s"] < 3


def test_ranks_do_not_inherit_the_supervisors_signals(member):
    one = member(["grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"]).start()
    one.end()
    masks = dict(line.split(":") for line in one.text("rank-0.stdout").splitlines())
    # Signals 32 and 33 belong to the C library, which ignores them in every process it spawns.
    assert {name: int(mask, 16) & 0x7FFF_FFFF for name, mask in masks.items()} == {"SigBlk": 0, "SigIgn": 0}

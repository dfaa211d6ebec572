"""Agents and supervisors killed at every point where it could matter: nothing starts twice, nothing of what a job wrote
is lost or repeated."""

import os
import subprocess

import pytest

from protocol.states import AttemptState, EndReason
from tests.workers import builders

pytestmark = pytest.mark.system

A1 = f"crash-{os.getpid()}"
"""Ranks are known by it on the whole machine, and tests may run side by side there."""

DIE = "import os, signal, subprocess\ndie = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
SPARED, UNKNOWN = EndReason.COMPLETED, EndReason.UNKNOWN_START


def in_supervisor(patch):
    """Code for the agent that makes its supervisors run `patch` first."""
    return (
        "from workers import runs\n"
        f"runs.SUPERVISOR = runs.SUPERVISOR.replace('supervisor.main(', {DIE + patch!r} + 'supervisor.main(')"
    )


JOURNAL = "from workers.journal import Journal\ncreate = Journal.create\n"
SYNC = "from workers.exchange import Exchange\nsync = Exchange.sync\n"
AGENT_POINTS = {
    "before the journal": (JOURNAL + "Journal.create = lambda *a: die()", SPARED, 1),
    "after the journal": (JOURNAL + "Journal.create = lambda *a: (create(*a), die())", UNKNOWN, 0),
    "after the fork": (
        "from workers import runs\nfork = subprocess.Popen\nsubprocess.Popen = lambda *a, **k: (fork(*a, **k), die())",
        SPARED,
        1,
    ),
    "before a report": (SYNC + "Exchange.sync = lambda me, what: die() if what.members else sync(me, what)", SPARED, 1),
    "before the answer to a report is heard": (
        SYNC + "Exchange.sync = lambda me, what: (sync(me, what), die() if what.members else None)[0]",
        SPARED,
        1,
    ),
}
RECORD = "from workers import files\ncreate, write = files.create_record, files.write_record\n"
SUPERVISOR_POINTS = {
    "before the claim": (RECORD + "files.create_record = lambda *a: die()\n", 0),
    "after the claim": (RECORD + "files.create_record = lambda *a: (create(*a), die())\n", 0),
    "after the exec": ("spawn = os.posix_spawn\nos.posix_spawn = lambda *a, **k: (spawn(*a, **k), die())\n", 1),
    "before the end is on record": (
        RECORD
        + "files.write_record = lambda path, *a, **k: die() if path.endswith('exit.json') else write(path, *a, **k)\n",
        1,
    ),
}


def starts(tmp_path):
    """How often the rank of A1 was started."""
    path = tmp_path / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def grant(service, tmp_path):
    service.grant(builders.assignment(A1, command=["sh", "-c", f"echo start >> {tmp_path}/starts"]))


def in_starter(patch):
    """Code for the agent that has a small starter ready from the first, which runs `patch` before it serves."""
    begin = f"{DIE}{patch}\nstarter.WARM_MODULES = ('json',)\nstarter.main("
    return (
        "from workers import starters\n"
        f"starters.CODE = starters.CODE.replace('starter.main(', {begin!r})\n"
        "class Warm(starters.Starters):\n"
        "    def __init__(self, most):\n"
        "        super().__init__(most)\n"
        "        self.warm(('ann', '1'))\n"
        "        first = self._held['ann', '1']\n"
        "        first._is_ready = first._hear(60.0) == starters.READY\n"
        "from workers import __main__ as whole\nwhole.Starters = Warm\n"
    )


ANSWER = "send = socket.socket.send\nsocket.socket.send = lambda me, data: die() if data[0] == 123 else send(me, data)"
STARTER_POINTS = {
    "agent: after the fork": (
        "ask = starters.Starter.supervise\nstarters.Starter.supervise = lambda *a: (ask(*a), die())",
        "",
        (SPARED, ["forked"]),
    ),
    "starter: before the fork": ("", "os.fork = die", (SPARED, ["executed"])),
    "starter: instead of the fork it stops": (
        "",
        "os.fork = lambda: os.kill(os.getpid(), signal.SIGSTOP)",
        (SPARED, ["executed"]),
    ),
    "starter: after the fork": ("", f"import socket\n{ANSWER}", (SPARED, None)),
    "supervisor: before the claim": ("", SUPERVISOR_POINTS["before the claim"][0], (UNKNOWN, [])),
    "supervisor: after the claim": ("", SUPERVISOR_POINTS["after the claim"][0], (UNKNOWN, [])),
    "supervisor: after the fork": (
        "",
        "fork = starter.Image.fork\nstarter.Image.fork = lambda *a: (fork(*a), die())",
        (UNKNOWN, None),
    ),
    "supervisor: before the end is on record": (
        "",
        SUPERVISOR_POINTS["before the end is on record"][0],
        (UNKNOWN, ["forked"]),
    ),
}


@pytest.mark.parametrize(("patch", "starter", "expected"), STARTER_POINTS.values(), ids=STARTER_POINTS)
def test_nothing_starts_twice_where_ranks_are_forked(service, agent, tmp_path, patch, starter, expected):
    script = tmp_path / "train.py"
    how = "'forked' if 'starter.main' in open('/proc/self/cmdline').read() else 'executed'"
    script.write_text(f"open({str(tmp_path / 'starts')!r}, 'a').write({how} + '\\n')")
    service.grant(builders.assignment(A1, command=["python", str(script)]))
    first = agent(patch=in_starter(starter) + DIE + patch)
    if patch:
        assert first.process.wait(timeout=60) == -9
        agent().wait_ready()
    report = service.wait_forgotten(A1)
    path = tmp_path / "starts"
    started = path.read_text().split() if path.exists() else []
    assert (report.reason, report.clean) == (expected[0], True)
    assert len(started) <= 1 if expected[1] is None else started == expected[1]


@pytest.mark.parametrize(("patch", "reason", "expected"), AGENT_POINTS.values(), ids=AGENT_POINTS)
def test_an_agent_that_dies_starts_nothing_twice(service, agent, tmp_path, patch, reason, expected):
    grant(service, tmp_path)
    first = agent(patch=DIE + patch)
    assert first.process.wait(timeout=60) == -9
    agent().wait_ready()
    report = service.wait_forgotten(A1)
    assert (report.reason, report.clean, starts(tmp_path)) == (reason, True, expected)


@pytest.mark.parametrize(("patch", "most"), SUPERVISOR_POINTS.values(), ids=SUPERVISOR_POINTS)
def test_a_supervisor_that_dies_starts_nothing_twice(service, agent, tmp_path, patch, most):
    grant(service, tmp_path)
    agent(patch=in_supervisor(patch)).wait_ready()
    report = service.wait_forgotten(A1)
    assert (report.reason, report.clean) == (UNKNOWN, True)
    assert starts(tmp_path) <= most


def test_an_agent_that_is_killed_again_and_again_loses_and_repeats_nothing(service, agent, tmp_path):
    """Every time while output is under way, and more is written before the next agent is there."""
    kills, lines = 5, 20_000
    os.mkfifo(tmp_path / "go")
    script = (
        f"echo start >> {tmp_path}/starts; exec 3<> {tmp_path}/go; last=0; while [ $last -lt {kills * lines} ]; do "
        f"seq $((last + 1)) $((last + {lines})); last=$((last + {lines})); read line <&3; done"
    )
    service.grant(builders.assignment(A1, command=["sh", "-c", script]))
    one = agent().wait_ready()
    service.wait_state(A1, AttemptState.RUNNING)
    supervisor = one.supervisor(A1)
    for number in range(kills):
        service.wait(lambda block=number: len(service.streams[A1, 0, "stdout"]) > block * 6 * lines)
        one.kill()
        (tmp_path / "go").write_text("\n")
        one = agent().wait_ready()
        assert one.supervisor(A1) == supervisor
    assert service.wait_forgotten(A1).reason == EndReason.COMPLETED
    assert service.text(A1) == "".join(f"{number}\n" for number in range(1, kills * lines + 1))
    assert starts(tmp_path) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_job_that_prints_more_than_the_disk_holds_ends_as_it_would(service, agent, tmp_path):
    size = 20_000_000
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", state], check=True)
    try:
        script = f"head -c {size} /dev/zero | tr '\\0' x"
        service.grant(builders.assignment(A1, command=["sh", "-c", script]))
        agent().wait_ready()
        report = service.wait_forgotten(A1)
        assert (report.reason, report.exit_code, report.clean) == (EndReason.COMPLETED, 0, True)
        kept, note = service.text(A1).split("\n", 1)
        assert set(kept) == {"x"}
        assert f"{size - len(kept)} bytes of rank-0.stdout were dropped here: the disk of the node is almost" in note
        service.wait(lambda: not list((state / "attempts").iterdir()))
    finally:
        subprocess.run(["umount", "--lazy", state], check=True)

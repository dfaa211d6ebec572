"""Children of ours with small programs in their place: ready, dying, deaf to signals, and none of them left behind."""

import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from ergon.cli.processes import Child, Family, ProcessFailed, leave_on_signals

READY_S = 30.0

READY = "import json, time; print(json.dumps({'ready': 'x', 'url': 'http://127.0.0.1:1'}), flush=True); time.sleep(600)"
DIES = "import sys; print('first line', file=sys.stderr); print('the reason', file=sys.stderr); sys.exit(7)"
DIES_AFTER_READY = "import os; os.write(1, b'{\"ready\": 1}\\n'); os.kill(os.getpid(), 9)"
SILENT = "import time; time.sleep(600)"


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    with Family(environment=os.environ, folder=tmp_path, logs=tmp_path, grace_s=READY_S) as family:
        yield family


def start(family: Family, code: str, name: str = "child") -> Child:
    [child] = family.start({name: [sys.executable, "-c", code]})
    return child


def is_gone(pid: int) -> bool:
    """No such process, or only its entry in the table, which init has yet to remove."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_the_ready_line_is_handed_over(family: Family) -> None:
    assert start(family, READY).wait_ready(READY_S) == {"ready": "x", "url": "http://127.0.0.1:1"}
    family.check()


def test_a_ready_line_may_come_in_parts(family: Family) -> None:
    """The second part is written only once the child has seen that the first was read, so both reads really happen."""
    code = """
        import fcntl, os, struct, termios
        os.write(1, b'{"rea')
        while struct.unpack("i", fcntl.ioctl(1, termios.FIONREAD, b"0000"))[0]:
            pass
        os.write(1, b'dy": "x"}\\nmore')
    """
    assert start(family, textwrap.dedent(code)).wait_ready(READY_S) == {"ready": "x"}


def test_a_child_that_dies_first_is_reported_with_the_end_of_its_log(family: Family, tmp_path: Path) -> None:
    child = start(family, DIES)
    with pytest.raises(ProcessFailed, match=r"child ended with code 7; its log is .*child\.log") as caught:
        child.wait_ready(READY_S)
    assert caught.value.details == ("first line", "the reason")
    assert caught.value.exit_code == 1
    assert (tmp_path / "child.log").read_text() == "first line\nthe reason\n"


def test_only_the_end_of_a_long_log_is_shown(family: Family) -> None:
    child = start(family, "import sys; [print(n, file=sys.stderr) for n in range(100_000)]; sys.exit(1)")
    with pytest.raises(ProcessFailed) as caught:
        child.wait_ready(READY_S)
    assert caught.value.details == tuple(str(n) for n in range(99_990, 100_000))


@pytest.mark.parametrize("said", ["hello", "{}", "[1]", '{"read": 1}'])
def test_anything_else_than_a_ready_line_is_an_error(family: Family, said: str) -> None:
    with pytest.raises(ProcessFailed, match="should say that it is ready"):
        start(family, f"print({said!r}, flush=True); {SILENT}").wait_ready(READY_S)


def test_a_silent_child_is_not_waited_for_for_ever(family: Family) -> None:
    with pytest.raises(ProcessFailed, match=r"was not ready after 0\.01 s"):
        start(family, SILENT).wait_ready(0.01)


def test_the_former_log_is_kept(family: Family, tmp_path: Path) -> None:
    (tmp_path / "child.log").write_text("before")
    start(family, READY).wait_ready(READY_S)
    assert (tmp_path / "child.log").read_text() == ""
    assert (tmp_path / "child.log.1").read_text() == "before"


def test_a_child_runs_in_a_session_of_its_own_in_the_folder_given(family: Family, tmp_path: Path) -> None:
    code = "import json, os, time; "
    code += "print(json.dumps({'ready': 1, 'cwd': os.getcwd(), 'session': os.getsid(0)}), flush=True); time.sleep(600)"
    child = start(family, code)
    assert child.wait_ready(READY_S) == {"ready": 1, "cwd": str(tmp_path), "session": child.pid}


def test_leaving_stops_the_last_started_first(tmp_path: Path) -> None:
    order = tmp_path / "order"
    code = """
        import signal, sys, time
        def stop(number, frame):
            open({order!r}, "a").write({name!r} + "\\n")
            sys.exit(0)
        signal.signal(signal.SIGTERM, stop)
        print('{{"ready": 1}}', flush=True)
        time.sleep(600)
    """
    with Family(environment=os.environ, folder=tmp_path, logs=tmp_path, grace_s=READY_S) as family:
        for name in ("database", "api", "agent"):
            start(family, textwrap.dedent(code).format(order=str(order), name=name), name).wait_ready(READY_S)
    assert order.read_text().split() == ["agent", "api", "database"]


@pytest.mark.parametrize("error", [ProcessFailed("x", Path("x.log")), KeyboardInterrupt(), SystemExit(143)])
def test_nothing_is_left_whatever_ends_the_block(tmp_path: Path, error: BaseException) -> None:
    pids: list[int] = []

    def two_children_and_an_end() -> None:
        with Family(environment=os.environ, folder=tmp_path, logs=tmp_path, grace_s=READY_S) as family:
            for name in ("one", "two"):
                child = start(family, READY, name)
                child.wait_ready(READY_S)
                pids.append(child.pid)
            raise error

    with pytest.raises(type(error)):
        two_children_and_an_end()
    assert len(pids) == 2
    assert all(is_gone(pid) for pid in pids)


GRANDCHILD = f"""
import json, os, subprocess, sys
grandchild = subprocess.Popen([sys.executable, "-c", {SILENT!r}])
print(json.dumps({{"ready": 1, "grandchild": grandchild.pid}}), flush=True)
"""


@pytest.mark.parametrize(
    ("rest", "grace_s"),
    [
        (f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SILENT}", 0.05),
        (SILENT, READY_S),
        ("os.kill(os.getpid(), 9)", READY_S),
    ],
    ids=["deaf", "polite", "dead already"],
)
def test_what_a_child_started_in_its_group_does_not_outlive_it(tmp_path: Path, rest: str, grace_s: float) -> None:
    with Family(environment=os.environ, folder=tmp_path, logs=tmp_path, grace_s=grace_s) as family:
        child = start(family, GRANDCHILD + rest)
        grandchild = int(str(child.wait_ready(READY_S)["grandchild"]))
        watched = os.pidfd_open(grandchild)
    ended = select.select([watched], [], [], READY_S)[0]
    os.close(watched)
    assert ended
    assert is_gone(child.pid)


def test_waiting_ends_when_a_child_dies(family: Family) -> None:
    start(family, READY, "one").wait_ready(READY_S)
    start(family, DIES_AFTER_READY, "two").wait_ready(READY_S)
    with pytest.raises(ProcessFailed, match="two was killed by SIGKILL"):
        family.wait_for_a_death()
    with pytest.raises(ProcessFailed, match="two"):
        family.check()


SUPERVISOR = """
import os, sys
from pathlib import Path
from ergon.cli.processes import Family, leave_on_signals
folder = Path(sys.argv[1])
with leave_on_signals(), Family(environment=os.environ, folder=folder, logs=folder, grace_s=30.0) as family:
    [child] = family.start({"child": [sys.executable, "-c", sys.argv[2]]})
    child.wait_ready(30.0)
    print(child.pid, flush=True)
    family.wait_for_a_death()
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, -2), (signal.SIGKILL, -9)]
)
def test_no_child_survives_its_supervisor(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path), READY], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as supervisor:
        assert supervisor.stdout is not None
        child = int(supervisor.stdout.readline())
        watched = os.pidfd_open(child)
        supervisor.send_signal(number)
        assert supervisor.wait(READY_S) == code
    # Readable once the child has ended, be it a moment after its supervisor.
    ended = select.select([watched], [], [], READY_S)[0]
    os.close(watched)
    assert ended


def test_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with leave_on_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before

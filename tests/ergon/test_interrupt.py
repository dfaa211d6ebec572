"""Ctrl-C in every command: exit code 130, no traceback, nothing half-done, and the user is told what goes on."""

import contextlib
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from ergon.cli.main import app
from protocol.batch import BatchItem, BatchView
from protocol.jobs import OutputList, OutputView
from protocol.states import JobState
from tests.ergon.builders import NOON, a_job, a_piece
from tests.ergon.http_service import HttpService, http_service

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

COMMAND = [sys.executable, "-c", "import sys; from ergon.cli.main import main; sys.exit(main())"]

ASKS_THE_SERVICE = {
    "submit": "--no-ship -- true",
    "fetch": "j1",
    "jobs": "",
    "hold": "j1",
    "release": "j1",
    "resubmit": "j1",
    "preempt": "j1",
    "priority": "5 j1",
    "show": "j1",
    "logs": "j1",
    "cancel": "j1",
    "nodes": "",
    "report": "",
    "plans": "",
    "alarms": "",
    "node cordon": "n1",
    "node uncordon": "n1",
    "node drain": "n1",
    "node confirm-down": "n1",
    "node on": "n1",
    "node off": "n1",
    "users": "",
    "user add": "bob",
    "user role": "bob admin",
    "token new": "",
    "token list": "",
    "token revoke": "token-1",
    "join-token new": "",
    "agent": "--server {url} --join-token ergon_join_x --state-dir state",
    "doctor": "",
}
"""Arguments with which a command asks the service something and waits for the answer.

All wait in the same place, so every third of them is interrupted.
"""

STARTS_PROCESSES = {"up": "--port 0 --data-dir {data} --json", "demo": ""}
AT_ONCE = {"schema"}
"""Commands that do not wait for anything."""
BECOME_THE_SERVICE = {"backup", "restore"}
"""Commands that go on as a process of the service: what Ctrl-C does there is not shown here."""


def commands() -> set[str]:
    """Every command that is registered, with the group it is in."""

    def below(command: object, words: tuple[str, ...]) -> Iterator[str]:
        parts = getattr(command, "commands", None)
        if parts is None:
            yield " ".join(words)
        else:
            for name, part in parts.items():
                yield from below(part, (*words, name))

    return set(below(typer.main.get_command(app), ()))


def test_no_command_is_forgotten_here() -> None:
    assert commands() == ASKS_THE_SERVICE.keys() | STARTS_PROCESSES.keys() | AT_ONCE | BECOME_THE_SERVICE


@pytest.fixture
def silence() -> Iterator[tuple[str, socket.socket]]:
    """A service that takes calls and never answers: its address, and its socket."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60.0)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", listening


@pytest.fixture
def service() -> Iterator[HttpService]:
    with http_service() as service:
        yield service


@contextlib.contextmanager
def ergon(words: str, folder: Path, url: str = "") -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ERGON_")}
    environment |= {"XDG_CONFIG_HOME": str(folder / "config"), "TMPDIR": str(folder / "tmp")}
    environment |= {"ERGON_SERVER": url, "ERGON_TOKEN": "secret"} if url else {}
    (folder / "tmp").mkdir(exist_ok=True)
    (folder / "work").mkdir(exist_ok=True)
    with subprocess.Popen(
        [*COMMAND, *shlex.split(words)],
        cwd=folder / "work",
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def interrupt(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C; what the command said on standard error, which is no traceback."""
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "ergon: interrupted"
    return said


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("command", sorted(ASKS_THE_SERVICE)[::3])
def test_while_it_waits_for_an_answer(command: str, silence: tuple[str, socket.socket], tmp_path: Path) -> None:
    url, listening = silence
    words = f"{command} {ASKS_THE_SERVICE[command].format(url=url)}"
    with ergon(words, tmp_path, url) as process:
        caller, _ = listening.accept()
        assert caller.recv(1)
        said = interrupt(process)
        caller.close()
    if command == "submit":
        assert "it may have been submitted; `ergon jobs` tells" in said
    # Only the credential that the service may have taken in stays: starting again with the same token goes on with it.
    assert files(tmp_path / "work") == (["state", "state/token.pending"] if command == "agent" else [])


def wait_until_asked(service: HttpService, path: str) -> None:
    while not any(asked.path.startswith(path) for asked in service.asked):
        os.sched_yield()


GOES_ON = "the job goes on; see it with `ergon logs -f j1`, end it with `ergon cancel j1`"


@pytest.mark.parametrize(
    "words", ["submit --no-ship --wait -- true", "submit --no-ship --follow -- true", "logs -f j1"]
)
def test_while_it_waits_for_a_job_the_job_goes_on_and_the_user_is_told(
    words: str, service: HttpService, tmp_path: Path
) -> None:
    service.hold = threading.Event()
    service.answer("POST /v1/jobs", a_job(), status=201)
    service.answer("GET /v1/jobs/j1", a_job(state=JobState.RUNNING))
    service.lines("GET /v1/jobs/j1/logs", a_piece("hello\n"))
    with ergon(words, tmp_path, service.url) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == ("hello\n" if words.startswith("logs") else "j1\n")
        if "--follow" in words:
            assert process.stdout.readline() == "hello\n"
        wait_until_asked(service, "/v1/jobs/j1")
        assert GOES_ON in interrupt(process).splitlines()
    assert {asked.method for asked in service.asked if asked.path != "/v1/jobs"} == {"GET"}, "it cancels nothing"


def test_while_it_waits_for_the_jobs_of_a_file_they_go_on(service: HttpService, tmp_path: Path) -> None:
    (tmp_path / "jobs.yaml").write_text("command: [echo, hi]\n")
    service.answer("POST /v1/jobs/batch", BatchView(items=[BatchItem(id="j1")]), status=201)
    service.answer("GET /v1/jobs/j1", a_job(state=JobState.RUNNING))
    with ergon(f"submit --no-ship --wait -f {tmp_path / 'jobs.yaml'}", tmp_path, service.url) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "j1\n"
        wait_until_asked(service, "/v1/jobs/j1")
        assert "the jobs go on; `ergon jobs` shows them, `ergon cancel` ends them" in interrupt(process).splitlines()


def test_in_the_middle_of_an_upload_nothing_is_submitted(silence: tuple[str, socket.socket], tmp_path: Path) -> None:
    url, listening = silence
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "weights").write_bytes(os.urandom(20 << 20))
    with ergon("submit -- python train.py", tmp_path, url) as process:
        caller, _ = listening.accept()
        assert caller.recv(65_536).startswith(b"HEAD /v1/archives/")
        caller.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        assert caller.recv(65_536).startswith(b"PUT /v1/archives/")
        said = interrupt(process)
        caller.close()
    assert "submitted" not in said
    assert files(tmp_path / "work") == ["weights"]


def test_in_the_middle_of_a_download_no_file_is_there(silence: tuple[str, socket.socket], tmp_path: Path) -> None:
    url, listening = silence
    stored = OutputView(epoch=1, member=0, node="n1", size_bytes=1 << 30, sha256="0" * 64, stored_at=NOON)
    answers = [
        a_job(state=JobState.SUCCEEDED, node="n1").model_dump_json(),
        OutputList(items=[stored]).model_dump_json(),
    ]
    with ergon("fetch j1", tmp_path, url) as process:
        caller, _ = listening.accept()
        for body in answers:
            caller.recv(65_536)
            caller.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        caller.recv(65_536)
        caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n" + b"x" * (3 << 20))
        interrupt(process)
        caller.close()
    assert files(tmp_path / "work") == []
    assert files(tmp_path / "tmp") == []


@pytest.mark.parametrize("command", sorted(STARTS_PROCESSES))
def test_while_a_cluster_starts_nothing_of_it_is_left(command: str, tmp_path: Path) -> None:
    words = f"{command} {STARTS_PROCESSES[command]}".format(data=tmp_path / "data")
    with ergon(words, tmp_path) as process:
        stream = process.stderr if command == "up" else process.stdout
        assert stream is not None
        assert "starting a cluster in" in stream.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (started := children.read_text().split()):
            assert process.poll() is None
        watched = [os.pidfd_open(int(pid)) for pid in started]
        interrupt(process)
    for child in watched:
        assert select.select([child], [], [], 30.0)[0]
        os.close(child)
    if command == "demo":
        assert files(tmp_path / "tmp") == []

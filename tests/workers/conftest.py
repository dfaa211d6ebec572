"""A fake service on a real socket, and agents as real processes against it."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from tests.workers.fake_service import FakeService
from workers import files, procfs
from workers.cgroups import Groups, NoGroups, find_groups, own_group


@pytest.fixture
def service():
    fake = FakeService()
    yield fake
    fake.close()


class AgentProcess:
    """An agent of node n1. Its log is in `log`, its state in `state`."""

    def __init__(self, service, root, number, *options, state=None, name="n1", token=None, patch=None):
        """`patch` is code that is run before the agent, to hurt it at a chosen place."""
        self.state = state or root / "state"
        self.state.mkdir(exist_ok=True)
        self.groups = groups_of(self.state)
        token_file = root / f"token-{number}"
        token_file.write_text(f"{token or service.token}\n")
        self.log = root / f"agent-{number}.log"
        patched = ["-c", f"import sys\n{patch}\nfrom workers.__main__ import main\nsys.exit(main(sys.argv[1:]))"]
        command = [
            sys.executable,
            "-P",
            *(patched if patch else ["-m", "workers"]),
            "--server",
            service.address,
            "--name",
            name,
        ]
        command += ["--token-file", str(token_file), "--state-dir", str(self.state), "--cpu-slots", "2"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ERGON_")}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *options], cwd=root, env=environment, stdout=subprocess.PIPE, stderr=log
            )

    def wait_ready(self):
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        assert json.loads(line) == {"ready": "agent", "node": "n1"}
        return self

    def wait_exit(self):
        """The exit code and what it said on stderr."""
        return self.process.wait(timeout=60), self.log.read_text()

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)
        return self.wait_exit()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def supervisor(self, attempt):
        """The number of the attempt's supervisor."""
        return files.read_record(str(self.state / "attempts" / attempt / "claim.json"))["pid"]

    def close(self):
        if self.process.poll() is None:
            self.kill()
        self.process.stdout.close()
        for claim in self.state.glob("attempts/*/claim.json"):
            # What a killed agent left may be ending meanwhile, or be a claim that it had not written to its end.
            record = files.read_record(str(claim))
            if record and record["pid"]:
                procfs.send_signal(record["pid"], record["start"], signal.SIGKILL)
            for pid in procfs.pids_with_variable(f"ERGON_ATTEMPT={claim.parent.name}".encode()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        clear(self.groups)


def groups_of(state):
    """The control groups of the agent with this state folder, if it may have any."""
    try:
        return find_groups(str(state))
    except NoGroups:
        return None


def clear(groups):
    """Kill whatever is in the groups, and delete them."""
    for attempt in groups.attempts() if groups else ():
        group = groups.group(attempt)
        while not group.is_empty():
            group.kill()
        group.remove()


@pytest.fixture(params=[True, False], ids=["v2", "v1"])
def groups(request, tmp_path):
    """Control groups of both kinds, below the one of the tests."""
    own = own_group(unified=request.param)
    if own is None or not os.access(own, os.W_OK):
        pytest.skip("no such control groups for this process")
    made = Groups(own, f"test-{os.getpid()}", unified=request.param)
    yield made
    clear(made)


@pytest.fixture
def agent(service, tmp_path):
    """Starts agents, with options of the command line."""
    started = []

    def start(*options, **changes):
        started.append(AgentProcess(service, tmp_path, len(started), *options, **changes))
        return started[-1]

    yield start
    for process in started:
        process.close()


class Gate:
    """A FIFO by which a test holds a rank: the rank says it is up, then waits to be let through.

    A rank that opens `alive` for writing keeps it open in everything it starts, so that the end of that file tells
    that all of it is gone.
    """

    def __init__(self, root, name):
        self.up, self.go, self.alive = (root / f"{name}.{part}" for part in ("up", "go", "alive"))
        for path in (self.up, self.go, self.alive):
            os.mkfifo(path)

    def script(self, then="exit 0"):
        return ["sh", "-c", f"exec 3> {self.alive}; echo $$ $RANK > {self.up}; read line < {self.go}; {then}"]

    def wait_up(self):
        """Until the rank runs; the process id of its shell."""
        self._alive = os.open(self.alive, os.O_RDONLY)
        return int(self.up.read_text().split()[0])

    def open(self):
        """Let the rank go on."""
        self.go.write_text("\n")

    def wait_gone(self):
        """Until no process of the rank is left."""
        assert os.read(self._alive, 1) == b""
        os.close(self._alive)


@pytest.fixture
def gate(tmp_path):
    return lambda name="gate": Gate(tmp_path, name)

"""Two API replicas and two cycle processes on one database; a leader that is killed or frozen while it solves."""

import array
import contextlib
import fcntl
import os
import re
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import Engine, text

from ergon.cli.processes import Child, Family
from service.db import connect
from service.postgres import url_of
from tests.freezing import freeze, frozen, thaw

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

READY_S = 120.0
LATE = re.compile(r"the plan is dropped: .*term|not committed: .*")
"""The two ways in which a plan can end that comes too late; only the first is the term's."""


def python(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "service", *arguments]


def agent_command(url: str, token_file: Path, state: Path) -> list[str]:
    words = ("--server", url, "--name", "n1", "--token-file", str(token_file), "--state-dir", str(state))
    return [sys.executable, "-P", "-m", "workers", *words, "--cpu-slots", "0-3", "--stop-attempts-on-exit"]


class Service:
    """One database, two APIs, two cycles, and one node."""

    def __init__(self, family: Family) -> None:
        self._family = family
        [database] = family.start({"database": python("database")})
        database.wait_ready(READY_S)
        apis = family.start({"api-1": python("api"), "api-2": python("api")})
        self.urls = [str(api.wait_ready(READY_S)["url"]) for api in apis]
        self.apis = apis
        self.cycles: dict[int, Child] = {}
        self.user = {"Authorization": f"Bearer {self.token('user', 'alice')}"}
        token_file = family.folder / "node-token"
        token_file.write_text(self.token("node", "n1"))
        [agent] = family.start({"agent": agent_command(self.urls[1], token_file, family.folder / "n1")})
        agent.wait_ready(READY_S)

    def token(self, *arguments: str) -> str:
        command = python("token", *arguments)
        done = subprocess.run(
            command, env=dict(self._family.environment), cwd="/", check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def start_cycle(self) -> None:
        name = f"cycle-{len(self.cycles) + 1}"
        [cycle] = self._family.start({name: python("cycle")})
        cycle.wait_ready(READY_S)
        self.cycles[cycle.pid] = cycle

    def submit(self, url: str, key: str) -> httpx.Response:
        body = {"command": ["true"], "device_kinds": ["cpu"]}
        return httpx.post(f"{url}/v1/jobs", json=body, headers=self.user | {"Idempotency-Key": key}, timeout=60)

    def job(self, url: str, job: str) -> dict:
        return httpx.get(f"{url}/v1/jobs/{job}", headers=self.user, timeout=60).json()


@pytest.fixture(scope="module")
def service(short_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = short_dir / "replicas"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ERGON_")}
    environment |= {"ERGON_DATA_DIR": str(folder), "ERGON_PORT": "0", "ERGON_TICK_S": "3600"}
    logs = tmp_path_factory.mktemp("log")
    with Family(environment=environment, folder=logs, logs=logs, grace_s=45.0) as family:
        made = Service(family)
        made.start_cycle()
        made.start_cycle()
        yield made


@pytest.fixture
def engine(service: Service) -> Iterator[Engine]:
    engine = connect(url_of(Path(service._family.environment["ERGON_DATA_DIR"])), pool_size=2)
    yield engine
    engine.dispose()


def leader(engine: Engine) -> tuple[int, int]:
    """Process id and term, once there is one."""
    while True:
        with engine.connect() as tx:
            row = tx.execute(text("SELECT holder, term FROM leadership WHERE holder <> ''")).one_or_none()
        if row:
            return int(row.holder.rpartition(":")[2]), row.term


def solver_of(cycle: int) -> psutil.Process:
    [solver] = [child for child in psutil.Process(cycle).children() if "service.cycle.solver_child" in child.cmdline()]
    return solver


def asked(solver: psutil.Process) -> bool:
    """Whether something was written to it that it has yet to read."""
    waiting = array.array("i", [0])
    with open(f"/proc/{solver.pid}/fd/0", "rb", buffering=0) as pipe:
        fcntl.ioctl(pipe, termios.FIONREAD, waiting)
    return waiting[0] > 0


def in_the_middle_of_a_solve(service: Service, engine: Engine, key: str) -> tuple[int, int, psutil.Process, str]:
    """The leader's pid and term, its solver, which is frozen with a job before it, and that job."""
    pid, term = leader(engine)
    solver = solver_of(pid)
    freeze(solver.pid)
    job = service.submit(service.urls[0], key).json()["id"]
    while not asked(solver):
        service.cycles[pid].check()
    return pid, term, solver, job


def wait_until_granted(service: Service, job: str) -> dict:
    while not (view := service.job(service.urls[1], job))["attempts"]:
        pass
    return view


def test_replicas_of_the_api_give_one_answer_to_one_key_and_one_is_enough(service: Service) -> None:
    first, second = service.urls
    made = service.submit(first, "one")
    again = service.submit(second, "one")
    assert (made.status_code, again.status_code) == (201, 200)
    assert made.json()["id"] == again.json()["id"]
    with frozen(service.apis[0].pid):
        assert service.submit(second, "one").json()["id"] == made.json()["id"]
    assert service.job(first, made.json()["id"])["id"] == made.json()["id"]


def test_the_plan_of_a_leader_that_was_frozen_in_the_middle_of_a_solve_is_refused(
    service: Service, engine: Engine
) -> None:
    pid, term, solver, job = in_the_middle_of_a_solve(service, engine, "frozen")
    with frozen(pid):
        started = time.monotonic()
        view = wait_until_granted(service, job)
        print(f"placed by the next leader {time.monotonic() - started:.1f} s after the first one froze")
        successor, next_term = leader(engine)
        assert (successor in service.cycles, successor != pid, next_term) == (True, True, term + 1)
        assert [attempt["epoch"] for attempt in view["attempts"]] == [1]
    thaw([solver])
    while not (end := LATE.search(service.cycles[pid].log.read_text())):
        service.cycles[pid].check()
    assert end[0].startswith("the plan is dropped")
    assert leader(engine) == (successor, term + 1)
    assert [attempt["epoch"] for attempt in service.job(service.urls[0], job)["attempts"]] == [1]


def test_a_leader_that_is_killed_in_the_middle_of_a_solve_is_followed(service: Service, engine: Engine) -> None:
    pid, term, solver, job = in_the_middle_of_a_solve(service, engine, "killed")
    os.kill(pid, 9)
    started = time.monotonic()
    try:
        view = wait_until_granted(service, job)
        print(f"placed by the next leader {time.monotonic() - started:.1f} s after the first one was killed")
    finally:
        thaw([solver])
    assert leader(engine)[1] == term + 1
    assert [attempt["epoch"] for attempt in view["attempts"]] == [1]
    with contextlib.suppress(psutil.NoSuchProcess):
        solver.wait(60)  # nobody asks it any more

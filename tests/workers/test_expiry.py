"""Checkpoints of jobs that ended long ago go from a shared folder, and nothing else does."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from workers import expiry
from workers.expiry import DOOMED, Expiry
from workers.transfer import Transfer

LONG_AGO, RUNNING, UNKNOWN = "job-0000000000001", "job-0000000000002", "job-0000000000003"


@pytest.fixture
def shared(tmp_path):
    folder = tmp_path / "shared"
    for job in (LONG_AGO, RUNNING, UNKNOWN):
        for step in (10, 20):
            rank = folder / job / f"epoch-1-step-{step}" / "rank-0"
            rank.mkdir(parents=True)
            (rank / "model.pt").write_text(job)
    return folder


@pytest.fixture
def transfer(service):
    """Makes one for a token."""
    made = []

    def make(token):
        made.append(Transfer({"server": service.address, "token": token, "ca": None}))
        return made[-1]

    yield make
    for one in made:
        one._client.close()


@pytest.fixture
def swept(service, shared, transfer):
    service.expired = {LONG_AGO}
    return Expiry(shared, transfer(service.token), random.Random(1))


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def test_what_the_service_names_goes_and_all_else_stays(swept, shared):
    swept.sweep()
    assert names(shared) == {RUNNING, UNKNOWN}
    assert len(list(shared.rglob("model.pt"))) == 4


def test_nothing_goes_that_is_no_folder_of_a_job_whatever_the_service_says(service, swept, shared):
    others = {"data", "JOB-1", "job-", ".expired-data", ".job-1", "job-x.tar"}
    for name in others:
        (shared / name).mkdir()
    service.expired |= others | {"..", "job-../.."}
    swept.sweep()
    assert names(shared) == {RUNNING, UNKNOWN} | others
    asked = {job for _path, body in service.bodies for job in body["jobs"]}
    assert asked == {LONG_AGO, RUNNING, UNKNOWN}


def test_a_link_in_place_of_a_folder_or_in_it_leads_nowhere(service, swept, shared, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (shared / LONG_AGO / "link").symlink_to(outside)
    linked = "job-0000000000009"
    (shared / linked).symlink_to(outside)
    service.expired.add(linked)
    swept.sweep()
    assert names(shared) == {RUNNING, UNKNOWN}
    assert (outside / "precious").exists()


DELETER = """
import os, random, shutil, signal, sys
from pathlib import Path
from workers.expiry import Expiry
from workers.transfer import Transfer

if sys.argv[3] == "dies":
    shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
transfer = Transfer({"server": sys.argv[2], "token": "secret", "ca": None})
Expiry(Path(sys.argv[1]), transfer, random.Random()).sweep()
"""


def deleter(service, shared, how="lives"):
    return subprocess.Popen([sys.executable, "-P", "-c", DELETER, str(shared), service.address, how])


def test_what_an_agent_that_was_killed_left_in_the_middle_the_next_one_finishes(service, swept, shared):
    assert deleter(service, shared, "dies").wait(60) == -signal.SIGKILL
    assert names(shared) == {RUNNING, UNKNOWN, f"{DOOMED}{LONG_AGO}"}
    service.expired = set()
    swept.sweep()
    assert names(shared) == {RUNNING, UNKNOWN}


def test_agents_of_many_nodes_may_do_it_at_once(service, shared):
    for number in range(200):
        job = f"job-{number:03d}"
        (shared / job / "epoch-1-step-1" / "rank-0").mkdir(parents=True)
        service.expired.add(job)
    assert [one.wait(60) for one in [deleter(service, shared) for _ in range(3)]] == [0, 0, 0]
    assert names(shared) == {LONG_AGO, RUNNING, UNKNOWN}


def test_without_an_answer_nothing_goes(service, swept, shared, transfer):
    service.set(down=True)
    swept.sweep()
    service.set(down=False)
    Expiry(shared, transfer("revoked"), random.Random(1)).sweep()
    assert names(shared) == {LONG_AGO, RUNNING, UNKNOWN}
    Expiry(shared / "gone", transfer(service.token), random.Random(1)).sweep()


def test_more_folders_than_fit_one_question_are_asked_about_in_turn(service, swept, shared, monkeypatch):
    monkeypatch.setattr(expiry, "MAX_FOLDERS", 2)
    swept.sweep()
    assert [len(body["jobs"]) for _path, body in service.bodies] == [2, 1]
    assert names(shared) == {RUNNING, UNKNOWN}


@pytest.mark.system
def test_the_agent_of_a_node_with_a_shared_folder_looks_by_itself(service, agent, shared):
    service.expired = {LONG_AGO}
    often = "from workers import expiry\nexpiry.EVERY_S = 0.2"
    agent("--checkpoint-dir", str(shared), patch=often).wait_ready()
    service.wait(lambda: names(shared) == {RUNNING, UNKNOWN})

"""No space left on the disk of the database: real processes on a small file system."""

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from ergon.cli.processes import Family
from tests.tmpfs import SmallDisk, needs_root, small_disk

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(180),
    needs_root,
]
READY_S = 120.0


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    with small_disk(160) as disk:
        yield disk


@pytest.fixture
def service(disk: SmallDisk, tmp_path: Path) -> Iterator[httpx.Client]:
    """Database and API with their data on the small disk, their logs in `tmp_path`; the client is a user's."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ERGON_")}
    environment |= {"ERGON_DATA_DIR": str(disk.folder / "data"), "ERGON_PORT": "0"}
    python = [sys.executable, "-P", "-m", "service"]
    with Family(environment=environment, folder=tmp_path, logs=tmp_path, grace_s=45.0) as family:
        [database] = family.start({"database": [*python, "database"]})
        database.wait_ready(READY_S)
        [api] = family.start({"api": [*python, "api"]})
        url = str(api.wait_ready(READY_S)["url"])
        token = subprocess.run(
            [*python, "token", "user", "ann"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60.0, trust_env=False) as client:
            yield client


def submit(service: httpx.Client, kilobytes: int = 0) -> httpx.Response:
    """Submit a job that takes so much room in the database, however well that packs."""
    return service.post("/v1/jobs", json={"command": ["true"], "env": {"A": secrets.token_hex(500 * kilobytes)}})


def submit_until(service: httpx.Client, done: Callable[[httpx.Response], bool], kilobytes: int) -> list[str]:
    """Submit jobs until an answer is as it should be; the ids of those that were taken."""
    taken: list[str] = []
    while True:
        answer = submit(service, kilobytes)
        assert answer.status_code in (201, 503), answer.text
        if answer.status_code == 201:
            taken.append(answer.json()["id"])
        else:
            assert answer.json()["type"] == "urn:ergon:unavailable"
            assert answer.headers["Retry-After"] == "1"
        if done(answer):
            return taken


def test_a_full_disk_of_the_database_loses_nothing_taken_and_is_over_when_there_is_room(
    service: httpx.Client, disk: SmallDisk, tmp_path: Path
) -> None:
    disk.fill(leave=14 << 20)  # enough for a while, too little for the next 16 MiB of PostgreSQL's log
    taken = submit_until(service, lambda answer: answer.status_code == 503, kilobytes=100)
    assert taken
    assert service.get("/livez").status_code == 200
    log = tmp_path / "database.log"
    taken += submit_until(service, lambda _: "PostgreSQL does not start" in log.read_text(), kilobytes=100)
    assert service.get("/readyz").status_code == 503
    disk.make_room()
    taken += submit_until(service, lambda answer: answer.status_code == 201, kilobytes=0)
    found = [service.get(f"/v1/jobs/{job}").status_code for job in taken]
    assert found == [200] * len(taken)
    page = service.get("/v1/jobs", params={"limit": 500}).json()
    assert {job["id"] for job in page["items"]} == set(taken), "nothing is there that was not acknowledged"

"""Ranks in containers on two real nodes, through a real podman."""

import json
from pathlib import Path

import pytest

from ergon.client import Client
from tests import podman
from tests.system.jobs import newest, words_of

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

GANG = """
import json, os, pathlib, socket, sys
from ergon import runtime

rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if rank == 0:
    with socket.create_server(place) as server:
        total = 0
        for _ in range(size - 1):
            peer, _ = server.accept()
            total += int(peer.makefile().readline())
else:
    while True:
        try:
            peer = socket.create_connection(place)
            break
        except ConnectionRefusedError:
            pass
    peer.sendall(f"{rank + 41}\\n".encode())
    total = 0
runtime.report(step=1, loss=0.5)
data = pathlib.Path(os.environ["ERGON_DATASET_NUMBERS"])
try:
    data.write_text("spoiled")
    writable = True
except OSError:
    writable = False
import mine
facts = {
    "total": total, "data": data.read_text(), "writable": writable, "mine": mine.NAME, "secret": os.environ["SECRET"],
    "path": os.environ["PATH"], "argv": sys.argv[1:], "pythonpath": os.environ["PYTHONPATH"].split(":")[0],
    "outside": os.path.exists("/etc/debian_version"), "pid": os.getpid(), "job": os.environ["ERGON_JOB_ID"],
}
(pathlib.Path(os.environ["ERGON_OUTPUT"]) / "facts.json").write_text(json.dumps(facts))
print("rank", rank, "total", total)
"""


def test_a_gang_of_two_containers(
    ergon, carol: Client, containers: podman.Setup, container_image: str, tmp_path: Path
) -> None:
    (tmp_path / "code" / "train.py").write_text(GANG)
    (tmp_path / "code" / "mine.py").write_text("NAME = 'shipped'\n")
    (tmp_path / "numbers.txt").write_text("42")
    options = ["--image", container_image, "--nodes", "2", "--kind", "cpu", "--memory", "256MiB", "--cores", "1"]
    options += ["--dataset", f"numbers={tmp_path / 'numbers.txt'}", "--env", "SECRET=two\nlines"]
    options += ["--env", "PATH=/nowhere:/usr/local/bin", "--env", "CONTAINERS_CONF=/not/for/podman"]
    status, _, err = ergon("submit", *options, "--wait", "--", "python", "train.py", "--lr", "0.1")
    job = newest(carol)
    said = words_of(carol, job)
    assert status == 0, f"{err}\n{job.reason}\n{said}"
    assert sorted(said.splitlines()) == ["rank 0 total 42", "rank 1 total 0"]
    assert (tmp_path / "numbers.txt").read_text() == "42"
    assert job.progress is not None
    assert job.progress.metrics == {"loss": 0.5}
    assert ergon("fetch", job.id, "-o", str(tmp_path / "back"))[0] == 0
    facts = json.loads((tmp_path / "back" / "member-0" / "facts.json").read_text())
    assert facts.pop("pid") < 100
    assert facts == {
        "total": 42,
        "data": "42",
        "writable": False,
        "mine": "shipped",
        "secret": "two\nlines",
        "path": "/nowhere:/usr/local/bin",
        "argv": ["--lr", "0.1"],
        "pythonpath": "/opt/of-the-image",
        "outside": False,
        "job": job.id,
    }

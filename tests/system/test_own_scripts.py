"""A user's own directory on two real nodes, from `ergon submit` to `ergon fetch`."""

import zipfile
from pathlib import Path

import pytest

from ergon.client import Client
from protocol.states import EndReason, JobState
from tests.system.jobs import newest, words_of

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

TRAIN = """
import os, pathlib, sys
import torch, torch.distributed as dist
import scheduler

dist.init_process_group("gloo")
total = torch.tensor([float(os.environ["RANK"]) + 1])
dist.all_reduce(total)
out = pathlib.Path(os.environ["ERGON_OUTPUT"])
(out / "checkpoints").mkdir()
(out / "checkpoints" / "model.txt").write_text(f"{scheduler.NAME} {total.item():g} {sys.argv[1:]}")
(out / "latest").symlink_to("checkpoints")
(out / "leak").symlink_to("/etc/passwd")
data = pathlib.Path(os.environ["ERGON_DATASET_NUMBERS"]).read_text()
print("data", data, "rank", os.environ["RANK"], pathlib.Path("ignored.bin").exists())
dist.destroy_process_group()
"""


def test_a_directory_runs_on_two_nodes_and_its_output_comes_back(ergon, carol: Client, tmp_path: Path) -> None:
    code = tmp_path / "code"
    (code / "train.py").write_text(TRAIN)
    (code / "scheduler.py").write_text("NAME = 'mine'\n")
    (code / ".gitignore").write_text("*.bin\n")
    (code / "ignored.bin").write_bytes(bytes(1_000))
    (tmp_path / "numbers.txt").write_text("42")
    data = f"numbers={tmp_path / 'numbers.txt'}"
    status, out, err = ergon(
        "submit",
        "--nodes",
        "2",
        "--kind",
        "cpu",
        "--dataset",
        data,
        "--wait",
        "--",
        "python",
        "train.py",
        "--lr",
        "0.1",
    )
    job = newest(carol)
    assert status == 0, err + words_of(carol, job)
    assert out.split()[0] == job.id
    assert ": 3 files, " in err
    assert sorted(words_of(carol, job).split("\n")[:2]) == ["data 42 rank 0 False", "data 42 rank 1 False"]
    assert "leak is a link that leads out" in (job.attempts[-1].members[0].message or "")

    assert ergon("fetch", job.id, "-o", str(tmp_path / "back"))[0] == 0
    for member in ("member-0", "member-1"):
        folder = tmp_path / "back" / member
        assert (folder / "latest" / "model.txt").read_text() == "mine 3 ['--lr', '0.1']"
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "latest"]
    status, out, err = ergon("fetch", job.id, "-o", str(tmp_path / "back"))
    assert (status, out) == (2, "")
    assert "is there already" in err
    assert ergon("fetch", job.id, "-o", str(tmp_path / "back"), "--force")[0] == 0


def test_output_of_a_script_that_fails_is_kept_too(ergon, carol: Client, tmp_path: Path) -> None:
    script = "import os; open(os.environ['ERGON_OUTPUT'] + '/partial', 'w').write('half'); raise SystemExit(3)"
    assert ergon("submit", "--kind", "cpu", "--wait", "--", "python", "-c", script)[0] == 1
    job = newest(carol)
    assert (job.exit_code, job.attempts[-1].reason) == (3, EndReason.FAILED)
    status, out, _ = ergon("fetch", job.id)
    assert (status, out) == (0, f"{job.id}/partial\n")
    assert (tmp_path / "code" / job.id / "partial").read_text() == "half"


def tiny_wheel(folder: Path) -> str:
    """A package of one module, as a wheel; its file name."""
    name = "tiny_ergon_test-1.0-py3-none-any.whl"
    facts = "tiny_ergon_test-1.0.dist-info"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr("tiny_ergon_test.py", "ANSWER = 42\n")
        wheel.writestr(f"{facts}/METADATA", "Metadata-Version: 2.1\nName: tiny-ergon-test\nVersion: 1.0\n")
        wheel.writestr(f"{facts}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{facts}/RECORD", "")
    return name


def test_requirements_are_installed_once_beside_what_the_node_has(ergon, carol: Client, tmp_path: Path) -> None:
    wheel = tiny_wheel(tmp_path / "code")
    (tmp_path / "code" / "requirements.txt").write_text(f"--no-index\n./{wheel}\n")
    script = "import tiny_ergon_test, torch, sys; print(tiny_ergon_test.ANSWER, sys.prefix)"
    submit = ("submit", "--kind", "cpu", "--requirements", "requirements.txt", "--wait", "--", "python", "-c", script)
    words: list[str] = []
    for _ in range(2):
        status, _, err = ergon(*submit)
        words.append(words_of(carol, newest(carol)))
        assert status == 0, err + words[-1]
    assert "Successfully installed tiny" in words[0]
    assert [line.split()[0] for line in words[1].splitlines() if "/environments/" in line] == ["42"]


def start_failure(ergon, carol: Client, *options: str) -> str:
    """What a job is told that could not start."""
    assert ergon("submit", "--kind", "cpu", "--wait", *options)[0] == 1
    job = newest(carol)
    assert (job.state, job.attempts[-1].reason) == (JobState.FAILED, EndReason.START_FAILED)
    return job.reason or ""


def test_what_cannot_be_prepared_says_so(ergon, carol: Client, tmp_path: Path) -> None:
    (tmp_path / "code" / "bad.txt").write_text("--no-index\nno-such-package-anywhere\n")
    reason = start_failure(ergon, carol, "--requirements", "bad.txt", "--", "python", "-c", "1")
    assert "No matching distribution found for no-such-package-anywhere" in reason
    reason = start_failure(ergon, carol, "--dataset", "d=/nonexistent/place", "--", "true")
    assert "dataset d: there is no /nonexistent/place on this node" in reason
    reason = start_failure(ergon, carol, "--dataset", "d=http://127.0.0.1:9/x", "--", "true")
    assert "dataset d: http://127.0.0.1:9/x cannot be fetched" in reason
    reason = start_failure(ergon, carol, "--python", "no-such-python", "--", "python", "-c", "1")
    assert "no program `no-such-python`" in reason


def test_what_cannot_be_shipped_is_not_submitted(ergon, tmp_path: Path) -> None:
    (tmp_path / "code" / "out").symlink_to("/etc/passwd")
    status, out, err = ergon("submit", "--", "python", "x.py")
    assert (status, out) == (2, "")
    assert "out is a link that leads out of the directory, to /etc/passwd" in err
    assert ergon("submit", "--dir", "nowhere", "--", "true")[0] == 2
    status, _, err = ergon("submit", "--no-ship", "--requirements", "r.txt", "--", "python", "x.py")
    assert (status, "nothing is shipped" in err) == (2, True)
    (tmp_path / "code" / "out").unlink()
    status, _, err = ergon("submit", "--requirements", "r.txt", "--", "python", "x.py")
    assert (status, "holds no such file" in err) == (2, True)

"""What the agent tells of checkpoints, and that neither it nor the service ever reads what is in them."""

import ast
import os
import pickle
import sys
from pathlib import Path

import pytest

from protocol.jobs import CheckpointMark
from protocol.states import EndReason
from tests.workers.builders import assignment
from workers.launch import launch_record

ROOT = Path(__file__).parents[2]

SAVE = """
import os, pathlib, pickle, sys
from ergon import runtime

class Canary:
    def __reduce__(self):
        return os.system, (f"touch {sys.argv[1]}",)

def save(step):
    with runtime.checkpoint(step) as folder:
        for name in ("model.pt", ".metadata", "state.pkl"):
            (folder / name).write_bytes(pickle.dumps(Canary()))

print(runtime.latest_checkpoint(), flush=True)
"""
STEPS = """
for step in (10, 20, 30):
    save(step)
(pathlib.Path(os.environ["ERGON_CHECKPOINT_DIR"]) / "epoch-2-step-99").mkdir()
(pathlib.Path(os.environ["ERGON_CHECKPOINT_DIR"]) / "epoch-1-step-50").symlink_to("/etc")
"""


def mark(epoch, step):
    return CheckpointMark(epoch=epoch, step=step)


@pytest.fixture
def shared(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


@pytest.mark.system
def test_what_is_complete_is_told_and_never_read(service, agent, gate, shared, tmp_path):
    attempt, canary, held = f"saves-{os.getpid()}", tmp_path / "canary", gate()
    script = SAVE + STEPS + f"os.execvp('sh', {held.script()!r})"
    command = [sys.executable, "-P", "-c", script, str(canary)]
    service.grant(assignment(attempt, command=command, env={"PYTHONPATH": str(ROOT)}))
    one = agent("--checkpoint-dir", str(shared)).wait_ready()
    held.wait_up()
    service.wait(lambda: [report for report in service.reports[attempt] if report.checkpoint == 30])
    held.open()
    end = service.wait_forgotten(attempt)
    assert (end.reason, end.checkpoint) == (EndReason.COMPLETED, 30)
    assert all(report.checkpoint in (None, 10, 20, 30) for report in service.reports[attempt])
    assert service.text(attempt) == "None\n"

    again = f"{attempt}-again"
    command = [sys.executable, "-P", "-c", SAVE + "save(40)", str(canary)]
    values = {"command": command, "env": {"PYTHONPATH": str(ROOT)}, "job": f"job-of-{attempt}", "epoch": 2}
    service.grant(assignment(again, checkpoint=mark(1, 20), **values))
    end = service.wait_forgotten(again)
    assert (end.reason, end.checkpoint) == (EndReason.COMPLETED, 40), "one that comes with the end is told with it"
    assert service.text(again) == f"{shared}/job-of-{attempt}/epoch-1-step-20\n"
    assert one.terminate()[0] == 0
    assert not canary.exists()
    pickle.loads(next(shared.rglob("model.pt")).read_bytes())
    assert canary.exists(), "it would have been created by whoever had read it"


@pytest.mark.system
def test_a_checkpoint_that_lacks_a_rank_is_not_told(service, agent, shared, tmp_path):
    attempt = f"torn-{os.getpid()}"
    script = SAVE + "save(10)\nif os.environ['RANK'] == '0': save(20)"
    command = [sys.executable, "-P", "-c", script, str(tmp_path / "canary")]
    service.grant(assignment(attempt, ranks=2, command=command, env={"PYTHONPATH": str(ROOT)}))
    agent("--checkpoint-dir", str(shared)).wait_ready()
    assert service.wait_forgotten(attempt).checkpoint == 10


@pytest.mark.system
def test_a_folder_that_cannot_be_used_is_refused_at_the_start(agent, tmp_path):
    code, said = agent("--checkpoint-dir", str(tmp_path / "nowhere")).wait_exit()
    assert (code, "--checkpoint-dir" in said) == (2, True)


@pytest.mark.parametrize(("latest", "expected"), [(None, "0/0"), (mark(2, 30), "2/30")])
def test_ranks_learn_where_to_save_and_where_to_go_on(latest, expected):
    def variables(checkpoints, **more):
        wanted = assignment(job="j1", members=2, ranks=2, checkpoint=latest, env={"ERGON_CHECKPOINT_LATEST": "9/9"})
        return launch_record(
            wanted,
            folder=Path("/state/a1"),
            python="/py",
            interface="lo",
            rendezvous="127.0.0.1:20000",
            environment={},
            checkpoints=checkpoints,
            **more,
        )

    launch = variables(Path("/shared"))
    assert launch["env"]["ERGON_CHECKPOINT_DIR"] == "/shared/j1"
    assert launch["env"]["ERGON_CHECKPOINT_LATEST"] == expected
    assert launch["checkpoints"] == {"folder": "/shared/j1", "world_size": 4}
    assert variables(None)["checkpoints"] is None
    assert "ERGON_CHECKPOINT_DIR" not in variables(None)["env"]
    assert launch["prepare"] is None
    own = variables(None, stores=True)
    assert own["checkpoints"] == {"folder": "/state/a1/checkpoints", "world_size": 4, "local": [0, 2]}
    assert (own["env"]["ERGON_CHECKPOINT_DIR"], own["env"]["ERGON_CHECKPOINT_LOCAL"]) == ("/state/a1/checkpoints", "1")


def test_what_the_service_holds_is_fetched_before_the_ranks_start():
    def prepared(stores, **latest):
        return launch_record(
            assignment(checkpoint=CheckpointMark(epoch=2, step=30, **latest)),
            folder=Path("/state/a1"),
            python="/py",
            interface="lo",
            rendezvous="127.0.0.1:20000",
            environment={},
            stores=stores,
        )["prepare"]

    assert prepared(True, stored=True)["checkpoint"] == [2, 30]
    assert prepared(True) is prepared(False, stored=True) is None


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_nothing_that_could_unpickle_is_imported_by_service_and_agent():
    files = [*ROOT.glob("service/**/*.py"), *ROOT.glob("workers/*.py"), ROOT / "ergon/checkpoints.py"]
    assert len(files) > 50
    unsafe = {"pickle", "shelve", "marshal", "dill", "joblib", "cloudpickle", "torch", "numpy"}
    assert {str(path): names for path in files if (names := imported(path) & unsafe)} == {}

"""Recipes that are killed or asked to stop go on from their checkpoint, to exactly the result of an unbroken run."""

import signal
from pathlib import Path

import pytest

from ergon.checkpoints import marks
from tests.training import gang
from training.saving import STOPPED

# Of each recipe: its words, how a line of progress begins, after which a rank is told to stop or killed, and what it
# prints at the end that follows from all of its state.
RECIPES = {
    "digits-mlp": (["digits-mlp", "epochs=6", "hidden=16"], "epoch 2/", "loss"),
    "linear-regression": (["linear-regression", "steps=1000", "noise=3"], "step 400/", "loss"),
}


def variables(folder: Path, epoch: int) -> dict[str, str]:
    return {"ERGON_CHECKPOINT_DIR": str(folder / "saved"), "ERGON_EPOCH": str(epoch)}


def break_off(words: list[str], folder: Path, line: str, number: signal.Signals) -> list[int]:
    """Send every rank the signal once rank 0 has printed a line that begins so; the exit codes."""
    with gang.started(words, world_size=2, folder=folder, attempt=variables(folder, 1)) as ranks:
        assert ranks[0].stdout is not None
        for said in ranks[0].stdout:
            if said.startswith(line):
                break
        for rank in ranks:
            rank.send_signal(number)
        for rank in ranks:
            rank.communicate()
        return [rank.returncode for rank in ranks]


@pytest.mark.parametrize(("recipe", "number"), [("digits-mlp", signal.SIGTERM), ("linear-regression", signal.SIGKILL)])
def test_a_broken_run_ends_as_an_unbroken_one(tmp_path: Path, recipe: str, number: signal.Signals) -> None:
    words, line, metric = RECIPES[recipe]
    folders = [tmp_path / name for name in ("whole", "broken")]
    for folder in folders:
        folder.mkdir()
    whole = gang.run(words, world_size=2, folder=folders[0])
    assert [rank.code for rank in whole] == [0, 0]

    codes = break_off(words, folders[1], line, number)
    (folders[1] / "0.jsonl").rename(tmp_path / "before.jsonl")
    before = gang.progress(tmp_path / "before.jsonl")
    saved = [mark.step for mark in marks(folders[1] / "saved")]
    if number == signal.SIGTERM:
        assert codes == [STOPPED, STOPPED]
        assert saved[0] == before[-1]["step"], "nothing that was told is lost"
    again = gang.run(words, world_size=2, folder=folders[1], attempt=variables(folders[1], 2))
    assert [(rank.code, rank.stderr) for rank in again] == [(0, "")] * 2
    assert again[0].stdout.startswith("going on from epoch-1-step-")
    assert again[0].stdout.splitlines()[-1] == whole[0].stdout.splitlines()[-1]
    expected = {told["step"]: told["metrics"] for told in whole[0].progress}
    found = {told["step"]: told["metrics"] for told in again[0].progress}
    assert found
    assert found == {step: metrics for step, metrics in expected.items() if step in found}, "bit for bit"
    assert metric in found[max(found)]  # pyright: ignore[reportOperatorIssue]
    assert max(found) == max(expected)

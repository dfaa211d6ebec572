"""`softmax`: it reads digits, follows gradient descent in closed form on any number of ranks, and takes tables."""

from pathlib import Path

import pytest
import torch

from ergon.checkpoints import marks
from tests.training import gang
from training.__main__ import main
from training.classifying import load
from training.examples import shuffled
from training.recipes.softmax import Options


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "ERGON_PROGRESS", "ERGON_CHECKPOINT_DIR"):
        monkeypatch.delenv(name, raising=False)


def by_hand(options: Options) -> list[float]:
    """The oracle: mean loss of each epoch by the closed form of the gradient, with momentum, L1 and L2, in float64."""
    data = load(options).training
    inputs = torch.cat([data.inputs.double(), torch.ones(len(data), 1, dtype=torch.float64)], dim=1)
    weights = torch.zeros(inputs.shape[1], 10, dtype=torch.float64)
    velocity = torch.zeros_like(weights)
    losses: list[float] = []
    for epoch in range(1, options.epochs + 1):
        total = 0.0
        for batch in shuffled(len(data), options.batch_size, seed=options.seed, epoch=epoch):
            log_probabilities = (inputs[batch] @ weights).log_softmax(dim=1)
            total -= log_probabilities[range(len(batch)), data.targets[batch]].sum().item()
            residual = log_probabilities.exp() - torch.eye(10, dtype=torch.float64)[data.targets[batch]]
            gradient = inputs[batch].T @ residual / len(batch) + options.l1 * weights.sign() + options.l2 * weights
            velocity = options.momentum * velocity + gradient
            weights = weights - options.learning_rate * velocity
        losses.append(total / len(data))
    return losses


def test_two_ranks_in_parts_follow_the_closed_form(tmp_path: Path) -> None:
    # Batches of 100 and a last one of 38, in three parts each, over two ranks: shares differ.
    words = ["softmax", "epochs=8", "batch_size=100", "accumulate=3", "l2=0.01", "min_accuracy=0.95"]
    exits = gang.run(words, world_size=2, folder=tmp_path)
    assert [(rank.code, rank.stderr) for rank in exits] == [(0, "")] * 2
    told = [line["metrics"]["loss"] for line in exits[0].progress]  # type: ignore[index]
    assert told == pytest.approx(by_hand(Options(epochs=8, batch_size=100, l2=0.01)), rel=1e-5)


def test_an_l1_penalty_follows_the_closed_form_and_leaves_fewer_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERGON_PROGRESS", str(tmp_path / "told"))
    assert main(["softmax", "epochs=4", "l1=0.003"]) == 0
    told = [line["metrics"]["loss"] for line in gang.progress(tmp_path / "told")]  # type: ignore[index]
    # The sign of a weight near 0 differs between float32 and float64, and with it the step.
    assert told == pytest.approx(by_hand(Options(epochs=4, l1=0.003)), rel=1e-3)


def test_a_table_of_the_users_is_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    points = torch.randn(300, 2)
    kinds = ["left" if x + y < 0 else "right" for x, y in points.tolist()]
    path = tmp_path / "points.csv"
    rows = [f"{x},{kind},{y}\n" for (x, y), kind in zip(points.tolist(), kinds, strict=True)]
    path.write_text("x,kind,y\n" + "".join(rows))
    assert main(["softmax", f"data={path}", "label=kind", "min_accuracy=0.95"]) == 0
    assert "validation accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ("x,y\n1,0\n2,1\n", [], "2 rows are too few"),
        ("y\na\nb\n", [], "has no column beside 'y'"),
        ("x,y\n1,0\n2,7\n", ["classes=3"], "line 3, column 'y': label '7' is not within 0 to 2"),
        ("x,y\n1,0\nmany,1\n", [], "line 3, column 'x': 'many' is not a finite number"),
        ("x,y\n1,0\n2,1\n", ["label=z"], "option label='z'"),
        ("x,y\n1,0\n", ["optimizer=adan"], "option optimizer='adan': did you mean adam? expected sgd or adam or adamw"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_code_2(
    content: str, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.csv"
    path.write_text(content)
    assert main(["softmax", f"data={path}", *words]) == 2
    said = capsys.readouterr().err
    assert (message in said, said.count("\n")) == (True, 1)


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERGON_CHECKPOINT_DIR", str(tmp_path / "saved"))
    monkeypatch.setenv("ERGON_EPOCH", "1")
    # Squares at a rate far too high grow by a factor every step until float32 is at its end, in the second epoch.
    words = ["softmax", "loss=mse", "learning_rate=0.35", "momentum=0", "batch_size=64"]
    assert main(words) == 1
    said = capsys.readouterr().err
    kept = marks(tmp_path / "saved")
    assert kept
    assert f"the checkpoint of step {kept[0].step} is kept; lower learning_rate=0.35" in said
    step = int(said.removeprefix("step ").partition(":")[0])
    assert kept[0].step < step <= kept[0].step + 23

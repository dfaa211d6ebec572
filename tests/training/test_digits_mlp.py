"""`digits-mlp`: however many ranks train, they train the same network, and it learns to read."""

import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from protocol.progress import ProgressLine
from tests.training import gang
from training.__main__ import main
from training.classifying import load
from training.examples import shuffled
from training.recipes.digits_mlp import Options

TOLERANCE = 1e-5
"""Relative. Float32 sums in another order came out 4e-7 apart at most after the 230 steps here."""


def alone(options: Options) -> list[tuple[float, float, float]]:
    """The oracle: the same network on the same batches in one process, without DDP. Loss, val_loss, accuracy."""
    data = load(options)
    training, validation = data.training, data.validation
    torch.manual_seed(options.seed)
    network = nn.Sequential(nn.Linear(64, options.hidden), nn.ReLU(), nn.Linear(options.hidden, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=options.learning_rate, momentum=options.momentum)
    scores: list[tuple[float, float, float]] = []
    for epoch in range(1, options.epochs + 1):
        total = 0.0
        for batch in shuffled(len(training.targets), options.batch_size, seed=options.seed, epoch=epoch):
            loss = cross_entropy(network(training.inputs[batch]), training.targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        with torch.no_grad():
            logits = network(validation.inputs)
            val_loss = cross_entropy(logits, validation.targets).item()
            accuracy = (logits.argmax(dim=1) == validation.targets).double().mean().item()
        scores.append((total / len(training.targets), val_loss, accuracy))
    return scores


def assert_same_trajectory(progress: list[dict[str, object]], scores: list[tuple[float, float, float]]) -> None:
    lines = [ProgressLine.model_validate(line) for line in progress]
    told = [(line.metrics["loss"], line.metrics["val_loss"], line.metrics["accuracy"]) for line in lines]
    assert len(told) == len(scores)
    for epoch, (ours, theirs) in enumerate(zip(told, scores, strict=True), start=1):
        assert ours == pytest.approx(theirs, rel=TOLERANCE), f"epoch {epoch}"


def test_two_ranks_read_digits_and_follow_the_single_process(tmp_path: Path) -> None:
    exits = gang.run(["digits-mlp", "min_accuracy=0.95"], world_size=2, folder=tmp_path)
    assert [(rank.code, rank.stderr) for rank in exits] == [(0, "")] * 2
    assert_same_trajectory(exits[0].progress, alone(Options()))

    last = ProgressLine.model_validate(exits[0].progress[-1])
    assert (last.epoch, last.total_epochs, last.step, last.total_steps) == (10, 10, 230, 230)
    assert last.metrics["accuracy"] >= 0.95
    assert exits[0].stdout.splitlines()[-1] == f"validation accuracy {last.metrics['accuracy']:.4f}, world size 2"
    # The other rank leaves the talking to rank 0.
    assert (exits[1].stdout, exits[1].progress) == ("", [])


def test_shares_of_unequal_size_and_empty_ones_change_nothing(tmp_path: Path) -> None:
    # 1438 training images: batches of 479, which three ranks share unequally, and a last one of a single image.
    words = ["batch_size=479", "epochs=6", "seed=5"]
    assert len(shuffled(1438, 479, seed=5, epoch=1)[-1]) == 1
    exits = gang.run(["digits-mlp", *words], world_size=3, folder=tmp_path)
    assert [(rank.code, rank.stderr) for rank in exits] == [(0, "")] * 3
    assert_same_trajectory(exits[0].progress, alone(Options(batch_size=479, epochs=6, seed=5)))


def test_a_rank_that_dies_ends_the_others(tmp_path: Path) -> None:
    with gang.started(["digits-mlp", "epochs=100000"], world_size=2, folder=tmp_path) as ranks:
        assert ranks[0].stdout is not None
        assert ranks[0].stdout.readline().startswith("epoch 1/100000")
        os.kill(ranks[1].pid, signal.SIGKILL)
        _, stderr = ranks[0].communicate()
    assert ranks[0].returncode not in (0, None)
    assert "Error" in stderr


def test_the_split_is_complete_and_depends_on_the_seed_alone() -> None:
    data = load(Options(seed=3))
    training, validation = data.training, data.validation
    again, other = load(Options(seed=3)).training, load(Options(seed=4)).training
    assert (len(training.inputs), len(validation.inputs)) == (1438, 359)
    assert torch.equal(training.inputs, again.inputs)
    assert not torch.equal(training.inputs, other.inputs)
    counts = torch.bincount(torch.cat([training.targets, validation.targets]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as scikit-learn documents them
    spread = training.inputs.std(dim=0)
    assert training.inputs.mean(dim=0).abs().max() < 1e-5
    assert torch.all(((spread - 1).abs() < 1e-4) | (spread == 0))


def test_every_epoch_visits_every_image_once_in_another_order() -> None:
    orders = [torch.cat(shuffled(1000, 64, seed=0, epoch=epoch)).tolist() for epoch in range(1, 6)]
    assert all(sorted(order) == list(range(1000)) for order in orders)
    assert all(one != next_one for one, next_one in pairwise(orders))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["epochs=1", "hidden=1", "min_accuracy=0.99"], "is below min_accuracy=0.99"),
        (["learning_rate=10", "momentum=0.999"], "lower learning_rate=10.0"),
    ],
)
def test_a_result_that_misses_the_mark_is_exit_code_1(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert main(["digits-mlp", *words]) == 1
    assert message in capsys.readouterr().err

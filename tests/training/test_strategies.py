"""Strategies: each follows the losses of one rank alone, and goes on from what any other has saved."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.training import gang
from training.__main__ import main
from training.errors import InputError
from training.objectives import loss_of
from training.ranks import Ranks
from training.strategies import strategy_of
from training.strategies.parameter_server import divided
from training.strategies.strategy import StrategyOptions
from training.transformer import Transformer

WORDS = ["digits-mlp", "epochs=2", "batch_size=100", "hidden=24", "optimizer=adamw", "learning_rate=0.003", "l2=0.01"]
WORDS += ["accumulate=2"]
STEPS = 15
"""Of each epoch."""

TOLERANCE = 1e-4
"""Relative. Float32 sums in another order, and Adam's division by small roots, came out 1e-6 apart at most."""

GANGS = {
    "ddp": (3, ["strategy=ddp"]),
    "fsdp": (2, ["strategy=fsdp"]),
    "parameter-server": (5, ["strategy=parameter-server", "servers=2"]),
}


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "ERGON_CHECKPOINT_DIR"):
        monkeypatch.delenv(name, raising=False)
    yield
    if dist.is_initialized():  # where a recipe refuses, its process is about to end
        dist.destroy_process_group()


def told(exits: list[gang.Exit]) -> list[dict[str, float]]:
    assert [(rank.code, rank.stderr) for rank in exits] == [(0, "")] * len(exits)
    return [line["metrics"] for line in exits[0].progress]  # type: ignore[misc]


def close(expected: list[dict[str, float]]) -> list[object]:
    return [pytest.approx(metrics, rel=TOLERANCE) for metrics in expected]


def test_all_follow_one_rank_and_go_on_from_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERGON_PROGRESS", str(tmp_path / "alone"))
    assert main(WORDS) == 0
    alone: list[dict[str, float]] = [line["metrics"] for line in gang.progress(tmp_path / "alone")]  # type: ignore[misc]

    def run(name: str, saved_by: str | None = None) -> list[dict[str, float]]:
        """All rounds on the gang `name`, or the last one alone, after what `saved_by` had saved before it."""
        world_size, words = GANGS[name]
        folder = tmp_path / f"{name} after {saved_by}"
        attempt = {"ERGON_CHECKPOINT_DIR": str(folder / "saved"), "ERGON_EPOCH": "1"}
        if saved_by:
            shutil.copytree(tmp_path / f"{saved_by} after None" / "saved", folder / "saved")
            attempt |= {"ERGON_EPOCH": "2", "ERGON_CHECKPOINT_LATEST": f"1/{STEPS}"}
        folder.mkdir(exist_ok=True)
        return told(gang.run([*WORDS, *words], world_size=world_size, folder=folder, attempt=attempt))

    for name in ("fsdp", "parameter-server"):
        whole = run(name)
        assert whole == close(alone)
        assert run(name, name) == whole[1:], "bit for bit"
    for name, saved_by in (("ddp", "fsdp"), ("fsdp", "parameter-server"), ("parameter-server", "fsdp")):
        assert run(name, saved_by) == close(alone[1:])


def test_asynchronous_servers_come_to_the_same_accuracy(tmp_path: Path) -> None:
    words = ["digits-mlp", "strategy=parameter-server", "asynchronous=1", "servers=2", "min_accuracy=0.95"]
    last = told(gang.run(words, world_size=5, folder=tmp_path))[-1]
    assert last["accuracy"] >= 0.95


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["strategy=parameter-server", "servers=2"], "at least one rank that computes are 3 ranks, but the gang has 1"),
        (
            ["strategy=fspd"],
            "option strategy='fspd': did you mean fsdp? expected ddp or fsdp or parameter-server or pipeline or tensor",
        ),
        (["strategy=tensor"], "strategy=tensor: only the model of lm can be divided so; use ddp or fsdp"),
        (["strategy=pipeline"], "strategy=pipeline: only the model of lm can be divided so; use ddp or fsdp"),
        (["stages=2"], "option stages=2 goes with strategy=pipeline, not ddp"),
        (["microbatches=2", "strategy=fsdp"], "option microbatches=2 goes with strategy=pipeline, not fsdp"),
        (["tensor_ranks=2"], "option tensor_ranks=2 goes with strategy=tensor, not ddp"),
        (["servers=2"], "option servers=2 goes with strategy=parameter-server, not ddp"),
        (["asynchronous=1", "strategy=fsdp"], "option asynchronous=1 goes with strategy=parameter-server, not fsdp"),
    ],
)
def test_what_a_strategy_cannot_do_is_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["softmax", *words]) == 2
    said = capsys.readouterr().err
    assert (message in said, said.count("\n")) == (True, 1)


def test_more_servers_than_tensors_are_refused() -> None:
    ranks = Ranks(rank=0, world_size=9, device=torch.device("cpu"))
    options = StrategyOptions(strategy="parameter-server", servers=3)
    with pytest.raises(InputError, match="servers=3: the model has only 2 tensors"):
        strategy_of(nn.Linear(4, 2), loss_of(options), options, ranks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            StrategyOptions(stages=4),
            "stages=4: the gang's 6 ranks do not divide by it; ask for another number of nodes",
        ),
        (StrategyOptions(microbatches=5), "microbatches=5: pipeline_schedule=1f1b needs one for each of the 6 stages"),
        (StrategyOptions(stages=3), "layers=2: too few for 3 stages of strategy=pipeline; with stages=2 or fewer"),
        (StrategyOptions(), "layers=2: too few for 6 stages of strategy=pipeline"),
    ],
)
def test_stages_that_the_gang_or_the_model_has_not_are_refused(options: StrategyOptions, message: str) -> None:
    network = Transformer(vocabulary=9, context=8, width=16, heads=2, layers=2, dropout=0.0)
    ranks = Ranks(rank=0, world_size=6, device=torch.device("cpu"))
    with pytest.raises(InputError, match=message):
        strategy_of(network, loss_of(options), replace(options, strategy="pipeline"), ranks)


def test_servers_hold_about_as_much_each() -> None:
    parameters = [nn.Parameter(torch.zeros(size)) for size in (5, 90, 40, 1, 50)]
    shares = divided(parameters, 2)
    assert [[each.numel() for each in share] for share in shares] == [[90, 5], [50, 40, 1]]


def test_a_checkpoint_of_another_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ERGON_CHECKPOINT_DIR", str(tmp_path))
    assert main(["softmax", "epochs=1"]) == 0
    capsys.readouterr()
    assert main(["digits-mlp", "epochs=1"]) == 2
    said = capsys.readouterr().err
    assert "digits-mlp: the checkpoint is that of another model or version" in said
    assert "submit the job anew" in said

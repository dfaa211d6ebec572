"""Options that make training faster change neither what is learned, within a tolerance, nor what is saved."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._inductor.exc import InvalidCxxCompiler

from tests.training import gang
from training.__main__ import main
from training.communication import covered
from training.errors import InputError
from training.objectives import loss_of
from training.ranks import Ranks
from training.speed import operations, peak_of
from training.strategies import strategy_of
from training.strategies.strategy import StrategyOptions
from training.transformer import Transformer

DIGITS = ["digits-mlp", "epochs=3", "hidden=24", "optimizer=adamw", "learning_rate=0.003"]
STEPS = 23
"""Of each epoch."""

BFLOAT16_TOLERANCE = 0.03
"""Relative, of mean losses. Its numbers have 8 bits; losses of these runs came out 1 % apart at most."""


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "ERGON_CHECKPOINT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs a recipe in this process, as one rank; gives what it told."""
    runs = iter(range(100))

    def run(*words: str) -> list[dict[str, float]]:
        path = tmp_path / f"told-{next(runs)}"
        monkeypatch.setenv("ERGON_PROGRESS", str(path))
        assert main(list(words)) == 0
        return told(gang.progress(path))

    yield run
    if dist.is_initialized():
        dist.destroy_process_group()


def told(lines: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [line["metrics"] for line in lines]


def dtypes(state: object) -> set[torch.dtype]:
    """Of all tensors in what was saved."""
    if isinstance(state, dict):
        return set().union(*map(dtypes, state.values()))
    return {state.dtype} if torch.is_tensor(state) else set()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_bfloat16_stays_near_float32_saves_float32_and_goes_on_exactly(
    strategy: str, alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*DIGITS, f"strategy={strategy}"]
    exact = alone(*words)
    monkeypatch.setenv("ERGON_CHECKPOINT_DIR", str(tmp_path / "saved"))
    monkeypatch.setenv("ERGON_EPOCH", "1")
    lowered = alone(*words, "precision=bfloat16")
    assert lowered != exact
    for one, other in zip(lowered, exact, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=BFLOAT16_TOLERANCE)
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=BFLOAT16_TOLERANCE)
    saved = torch.load(next((tmp_path / "saved").rglob("state.pt")), weights_only=True)
    assert dtypes(saved["model"]) == {torch.float32}

    monkeypatch.setenv("ERGON_EPOCH", "2")
    monkeypatch.setenv("ERGON_CHECKPOINT_LATEST", f"1/{2 * STEPS}")
    assert alone(*words, "precision=bfloat16") == lowered[2:], "bit for bit"


def test_gangs_whose_ranks_hold_different_weights_compute_in_bfloat16_too(alone: Any, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("abacad" * 500)
    small = ["lm", f"data={text}", "layers=2", "heads=2", "width=32", "context=6", "steps=10", "score_every=5"]
    exact = alone(*small)
    for strategy in ("tensor", "parameter-server", "pipeline"):
        words = [*small, f"strategy={strategy}", "precision=bfloat16"]
        exits = gang.run(words, world_size=2, folder=tmp_path)
        assert [(rank.code, rank.stderr) for rank in exits] == [(0, "")] * 2
        lowered = told(exits[0].progress)[-2:]
        shares = [each["communication_share"] for each in told(gang.told(tmp_path / "0.jsonl"))[-2:]]
        assert all(0.0 < share < 1.0 for share in shares)
        assert lowered != exact
        for one, other in zip(lowered, exact, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=BFLOAT16_TOLERANCE)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_fused_optimisers_go_on_from_what_others_saved_and_back(
    strategy: str, alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERGON_CHECKPOINT_DIR", str(tmp_path / "saved"))
    words = [*DIGITS, f"strategy={strategy}"]
    runs = []
    for epoch, fused, latest in ((1, False, ""), (2, True, f"1/{STEPS}"), (3, False, f"2/{2 * STEPS}")):
        monkeypatch.setattr("training.objectives._fused", lambda first, fused=fused: fused)
        monkeypatch.setenv("ERGON_EPOCH", str(epoch))
        monkeypatch.setenv("ERGON_CHECKPOINT_LATEST", latest)
        runs.append(alone(*words))
    for again in runs[1:]:
        for one, other in zip(again, runs[0][-len(again) :], strict=True):
            assert one == pytest.approx(other, rel=1e-4)


def test_operations_are_six_for_each_weight_and_token_and_those_of_attention() -> None:
    """6 N + 12 L T W a token: Chowdhery et al. 2022, "PaLM", appendix B. Embeddings are looked up, not multiplied."""
    layers, tokens, width, vocabulary = 3, 16, 32, 50
    with torch.device("meta"):
        network = Transformer(vocabulary=vocabulary, context=tokens, width=width, heads=2, layers=layers, dropout=0.0)
    weights = layers * 12 * width**2 + vocabulary * width
    expected = 6 * weights + 12 * layers * tokens * width
    assert operations(network, torch.zeros(2, tokens, dtype=torch.int64)) == 2 * tokens * expected


def test_every_round_tells_how_fast_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("ERGON_PROGRESS", str(tmp_path / "told"))
    assert main(["softmax", "epochs=2"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    for line, metrics in zip(said, told(gang.told(tmp_path / "told")), strict=True):
        assert re.search(r"  [\d.]+ ms/step  \d+ examples/s  \d+ MiB$", line), line
        assert metrics["examples_per_s"] > 0
        assert metrics["step_ms"] > 0
        assert 2**26 < metrics["memory_bytes"] < 2**36
        assert "mfu" not in metrics, "a CPU's peak is not known"
        assert "communication_share" not in metrics, "there is nobody else"


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.5e12),
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GH200 480GB", None),
    ],
)
def test_the_peak_is_that_of_the_device_by_its_name(
    name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
    assert peak_of(torch.device("cuda", 0), "bfloat16") == peak
    assert peak_of(torch.device("cuda", 0), "tf32") == (peak and peak / 2)
    assert peak_of(torch.device("cuda", 0), "float32") is None


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_compiled_networks_learn_the_same_and_save_the_same_names(
    strategy: str, alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text"
    text.write_text("abacad" * 500)
    words = ["lm", f"data={text}", "layers=2", "heads=2", "width=16", "context=6", "steps=4", "score_every=2"]
    words += [f"strategy={strategy}"]
    exact = alone(*words)
    compiled: list[object] = []

    def compiles_nothing(forward: Any) -> Any:
        compiled.append(forward.__self__)
        return forward

    monkeypatch.setattr("torch.compile", compiles_nothing)
    monkeypatch.setenv("ERGON_CHECKPOINT_DIR", str(tmp_path / "saved"))
    assert alone(*words, "compile=yes") == exact
    assert [type(each).__name__.removeprefix("FSDP") for each in compiled] == ["Block"] * 2
    saved = torch.load(next((tmp_path / "saved").rglob("state.pt")), weights_only=True)
    with torch.device("meta"):
        network = Transformer(vocabulary=256, context=6, width=16, heads=2, layers=2, dropout=0.0)
    assert saved["model"]["network"].keys() == network.state_dict().keys()


def test_a_compiler_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fails(forward: object) -> Any:
        def call(*inputs: object) -> object:
            raise InvalidCxxCompiler

        return call

    monkeypatch.setattr("torch.compile", fails)
    assert main(["softmax", "compile=yes"]) == 2
    dist.destroy_process_group()
    said = capsys.readouterr().err
    assert "softmax: option compile=yes: the compiler failed: No working C++ compiler found" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
def test_a_gpu_that_does_not_compute_in_it_is_refused(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    ranks = Ranks(rank=0, world_size=1, device=torch.device("cuda", 0))
    options = StrategyOptions(precision=precision)
    with pytest.raises(InputError, match=f"option precision={precision}: Tesla T4 does not compute in it"):
        strategy_of(nn.Linear(4, 2), loss_of(options), options, ranks)


def test_tf32_needs_a_gpu(capsys: Any) -> None:
    assert main(["softmax", "precision=tf32"]) == 2
    dist.destroy_process_group()
    assert capsys.readouterr().err.startswith("softmax: option precision=tf32: only NVIDIA GPUs compute in it")


def test_spans_that_overlap_count_once() -> None:
    assert covered([]) == 0
    assert covered([(5, 7), (0, 3), (2, 4), (2, 3)]) == 6

"""`lm`: the gang follows one rank, what it learns is more than a bigram knows, and tokens come from any source."""

import gzip
import math
import re
import shutil
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path

import fsspec
import numpy
import pytest
import torch
import torch.distributed as dist

from tests.training import gang
from training.__main__ import main
from training.errors import InputError
from training.tokens import Tokens, Windows, bigram_loss, read_tokens
from training.transformer import Transformer

SMALL = ["layers=2", "heads=2", "width=32", "context=6", "steps=40", "score_every=20", "warmup=5", "windows=30"]
SMALL += ["batch_size=17", "learning_rate=0.01"]
TOLERANCE = 1e-4
"""Relative. Float32 sums in another order came out 1e-6 apart at most after the 40 steps here."""


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "ERGON_PROGRESS", "ERGON_CHECKPOINT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What follows an `a` depends on the letter before it, of which a bigram knows nothing."""
    path = tmp_path_factory.mktemp("data") / "text"
    path.write_text("abacad" * 3_000)
    return path


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[object]]:
    """Where one rank saved, and about what any gang tells."""
    folder = tmp_path_factory.mktemp("alone")
    exits = gang.run(["lm", f"data={text}", *SMALL], world_size=1, folder=folder, attempt=attempt(folder, 1))
    return folder, [pytest.approx(metrics, rel=TOLERANCE) for metrics in told(exits)]


def attempt(folder: Path, epoch: int) -> dict[str, str]:
    """The first attempt, or one that goes on from the first one's score before the last."""
    later = {"ERGON_CHECKPOINT_LATEST": "1/20"} if epoch > 1 else {}
    return {"ERGON_CHECKPOINT_DIR": str(folder / "saved"), "ERGON_EPOCH": str(epoch), **later}


def told(exits: list[gang.Exit]) -> list[dict[str, float]]:
    assert [(rank.code, rank.stderr) for rank in exits] == [(0, "")] * len(exits)
    return [line["metrics"] for line in exits[0].progress]  # type: ignore[misc]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "pipeline", "tensor"])
def test_gangs_follow_one_rank_go_on_exactly_and_know_more_than_a_bigram(
    strategy: str, text: Path, alone: tuple[Path, list[object]], tmp_path: Path
) -> None:
    words = ["lm", f"data={text}", *SMALL, f"strategy={strategy}"]
    first = gang.run(words, world_size=2, folder=tmp_path, attempt=attempt(tmp_path, 1))
    whole = told(first)
    assert whole == alone[1]
    said = re.search(r"held-out loss (\S+), smoothed bigram (\S+) nats", first[0].stdout)
    assert said
    assert float(said[1]) == pytest.approx(whole[-1]["val_loss"], abs=1e-4)
    assert float(said[1]) < 0.8 * float(said[2])

    (tmp_path / "0.jsonl").unlink()
    again = gang.run(words, world_size=2, folder=tmp_path, attempt=attempt(tmp_path, 2))
    assert told(again) == whole[1:], "bit for bit"


@pytest.mark.parametrize("words", [["tensor", "tensor_ranks=2"], ["pipeline", "stages=2", "accumulate=2"]])
def test_two_groups_of_two_go_on_from_what_one_rank_saved(
    words: list[str], text: Path, alone: tuple[Path, list[object]], tmp_path: Path
) -> None:
    saved = shutil.copytree(alone[0], tmp_path / "alone")
    words = ["lm", f"data={text}", *SMALL, f"strategy={words[0]}", *words[1:]]
    exits = gang.run(words, world_size=4, folder=tmp_path, attempt=attempt(saved, 2))
    assert told(exits) == alone[1][1:]


def test_four_ranks_two_and_three_go_on_from_each_other_in_parts(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["lm", f"data={text}", "layers=3", "heads=2", "width=32", "context=6", "steps=12", "score_every=3"]
    monkeypatch.setenv("ERGON_PROGRESS", str(tmp_path / "alone"))
    assert main(words) == 0
    alone = [pytest.approx(line["metrics"], rel=TOLERANCE) for line in gang.progress(tmp_path / "alone")]

    stages = ["strategy=pipeline", "stages=2", "pipeline_schedule=gpipe", "microbatches=1"]
    gangs = [(4, 2, 0, stages), (2, 3, 2, ["strategy=fsdp"]), (3, 4, 3, ["strategy=pipeline"])]
    for epoch, (world_size, every, done, strategy) in enumerate(gangs, 1):
        found = gang.run(
            [*words, *strategy, f"checkpoint_every={every}"],
            world_size=world_size,
            folder=tmp_path,
            attempt={
                "ERGON_CHECKPOINT_DIR": str(tmp_path / "saved"),
                "ERGON_EPOCH": str(epoch),
                "ERGON_CHECKPOINT_LATEST": f"{epoch - 1}/{3 * done}" if done else "",
            },
        )
        assert told(found) == alone[done:]
        (tmp_path / "0.jsonl").unlink()
        saved = tmp_path / "saved" / f"epoch-{epoch}-step-{3 * every}"
        sizes = [sum(file.stat().st_size for file in (saved / f"rank-{rank}").glob("*.distcp")) for rank in range(4)]
        assert all(size < 0.6 * sum(sizes) for size in sizes), "no rank writes all"

    monkeypatch.setenv("ERGON_CHECKPOINT_DIR", str(tmp_path / "saved"))
    capsys.readouterr()
    assert main([*words[:2], "layers=2", *words[3:]]) == 2
    dist.destroy_process_group()
    said = capsys.readouterr().err
    assert "lm: the checkpoint is that of another model or version: 'blocks.2." in said
    assert said.count("\n") == 1


def test_stages_have_each_weight_once_by_its_name_and_compute_what_all_do() -> None:
    def network() -> Transformer:
        torch.manual_seed(0)
        return Transformer(vocabulary=9, context=8, width=16, heads=2, layers=5, dropout=0.0)

    whole, stages = network(), [network() for _ in range(3)]
    for number, stage in enumerate(stages):
        stage.keep_stage(number, 3)
    tokens = torch.randint(9, (2, 8))
    hidden = tokens
    for stage in stages:
        hidden = stage(hidden)
        passed_on = stage.passed_on(tokens)
        assert stage is stages[-1] or (hidden.shape, hidden.dtype) == (passed_on.shape, passed_on.dtype)
    assert torch.equal(hidden, whole(tokens))
    assert sorted(chain.from_iterable(stage.state_dict() for stage in stages)) == sorted(whole.state_dict())


def test_no_token_sees_what_follows() -> None:
    torch.manual_seed(0)
    network = Transformer(vocabulary=9, context=8, width=16, heads=2, layers=2, dropout=0.0)
    tokens = torch.randint(9, (3, 8))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 9
    before, after = network(tokens), network(changed)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-6)


def test_what_does_not_divide_evenly_is_no_tensor_plan() -> None:
    network = Transformer(vocabulary=8, context=8, width=12, heads=6, layers=1, dropout=0.0)
    assert len(network.tensor_plan(2)) == 2 + 6
    with pytest.raises(InputError, match="heads=6: does not divide by the 4 ranks of strategy=tensor"):
        network.tensor_plan(4)
    with pytest.raises(InputError, match="vocabulary=8: does not divide by the 3 ranks"):
        network.tensor_plan(3)


def test_windows_hold_what_follows_as_targets() -> None:
    values = numpy.arange(12, dtype=numpy.uint16)
    windows = Windows(values=values, context=4, stride=3, device=torch.device("cpu"))
    assert len(windows) == 3
    inputs, targets = windows.take(torch.tensor([0, 2]))
    assert inputs.tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]
    assert targets.tolist() == [[1, 2, 3, 4], [7, 8, 9, 10]]
    assert [tuple(each.shape) for each in windows.take(torch.arange(0))] == [(0, 4), (0, 4)]


def test_the_bigram_is_that_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    values = numpy.random.default_rng(2).integers(5, size=300)
    inputs, targets = values[:40], numpy.roll(values, 7)[:40]
    pairs, counts = Counter(pairwise(values.tolist())), Counter(values[:-1].tolist())

    def loss(strength: float) -> float:
        total = 0.0
        for a, b in zip(inputs.tolist(), targets.tolist(), strict=True):
            alone = (counts[b] + 1) / (299 + 5)
            total -= math.log((pairs[a, b] + strength * alone) / (counts[a] + strength))
        return total / 40

    monkeypatch.setattr("training.tokens.CHUNK", 77)
    expected = min(map(loss, (0.1, 1, 10, 100, 1000)))
    assert bigram_loss(Tokens(values=values, vocabulary=5), inputs, targets) == pytest.approx(expected)


def test_tokens_come_from_text_tables_and_mapped_arrays(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("né")
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(b"ab"))
    (tmp_path / "t.csv").write_text("body,n\nab,1\nc,2\n")
    numpy.save(tmp_path / "t.npy", numpy.array([3, 0, 7], dtype=numpy.uint16))
    with fsspec.open("memory://tokens/t.npy", "wb") as file:
        file.write((tmp_path / "t.npy").read_bytes())  # type: ignore[attr-defined]
    for name, values, vocabulary in [
        (tmp_path / "t.txt", list("né".encode()), 256),
        (tmp_path / "t.txt.gz", list(b"ab"), 256),
        (tmp_path / "t.csv", list(b"ab\nc"), 256),
        (tmp_path / "t.npy", [3, 0, 7], 8),
        ("memory://tokens/t.npy", [3, 0, 7], 8),
    ]:
        found = read_tokens(str(name), "body", 0)
        assert (found.values.tolist(), found.vocabulary) == (values, vocabulary), name
    assert isinstance(read_tokens(str(tmp_path / "t.npy"), "", 10).values, numpy.memmap)
    assert len(read_tokens("", "", 0).values) > 5_000_000


@pytest.mark.parametrize(
    ("values", "vocabulary", "message"),
    [
        (numpy.array([1, 2, 9, 3]), 9, "token 9 at 2 is not within 0 to 8"),
        (numpy.array([1, -1]), 0, "token -1 at 1 is not within 0 to 1"),
        (numpy.array([0.5]), 0, "holds float64 (1,); expected whole numbers in one dimension"),
        (numpy.array([[1]]), 0, "holds int64 (1, 1); expected whole numbers in one dimension"),
    ],
)
def test_an_array_that_makes_no_sense_is_named(
    values: numpy.ndarray, vocabulary: int, message: str, tmp_path: Path
) -> None:
    numpy.save(tmp_path / "t.npy", values)
    with pytest.raises(InputError) as refused:
        read_tokens(str(tmp_path / "t.npy"), "", vocabulary)
    assert str(refused.value) == f"data={tmp_path / 't.npy'}: {message}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["width=30", "heads=4"], "option width=30: does not divide by heads=4"),
        (["steps=30", "score_every=20"], "option steps=30: does not divide by score_every=20"),
        (["context=3000"], "a tenth of 18000 tokens is too short for one window of context=3000"),
        (["strategy=tensor", "tensor_ranks=2"], "tensor_ranks=2: the gang's 1 ranks do not divide by it"),
        (["strategy=pipeline", "stages=2"], "stages=2: the gang's 1 ranks do not divide by it; ask for another number"),
        (["strategy=pipeline", "microbatch=2"], "option 'microbatch' is not known; did you mean microbatches?"),
        (["strategy=pipeline", "pipeline_schedule=1f1"], "pipeline_schedule='1f1': did you mean 1f1b?"),
        (["vocabulary=300"], "option vocabulary=300: text is read as bytes, of which there are 256"),
        (["data=/nowhere/t.npy"], "data=/nowhere/t.npy: cannot be read: "),
        (["data=/nowhere/t.txt"], "data=/nowhere/t.txt: cannot be read: "),
        (["data=nowhere://t.txt"], "data=nowhere://t.txt: cannot be read: Protocol not known: nowhere"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_code_2(
    words: list[str], message: str, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = [] if words[0].startswith("data=") else [f"data={text}"]
    code = main(["lm", *source, *words])
    if dist.is_initialized():  # where a recipe refuses, its process is about to end
        dist.destroy_process_group()
    said = capsys.readouterr().err
    assert (code, message in said, said.count("\n")) == (2, True, 1), said


def test_a_loss_above_the_limit_is_exit_code_1(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lm", f"data={text}", *SMALL, "max_loss=0.01"]) == 1
    assert "is above max_loss=0.01" in capsys.readouterr().err

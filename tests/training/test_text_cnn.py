"""`text-cnn`: two ranks follow a single process, texts become the words they hold, and tables of texts are learned."""

import random
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.training import gang
from training.__main__ import main
from training.docstrings import docstrings
from training.examples import shuffled
from training.recipes.text_cnn import Options, TextNetwork, encode, load, pick, words_of

SMALL = {"length": 12, "embedding": 8, "channels": 8, "dropout": 0.0, "epochs": 3, "learning_rate": 0.02, "baseline": 1}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """400 texts of ten words drawn at random, in two classes that differ by pairs of words only."""
    draw = random.Random(1)
    path = tmp_path / "texts.csv"
    lines = ["body,kind"]
    for _ in range(400):
        kind = draw.choice(["calm", "loud"])
        words = [draw.choice(["a", "b", "c", "d"]) for _ in range(10)]
        place = draw.randrange(9)
        words[place : place + 2] = ["not", "good"] if kind == "calm" else ["good", "not"]
        lines.append(f"{' '.join(words)},{kind}")
    path.write_text("\n".join(lines))
    return path


def alone(options: Options) -> list[float]:
    """The oracle: mean loss of each epoch of the same network on the same batches in one process, without DDP."""
    data = load(options)
    vocabulary = words_of(pick(data.texts, data.training), options.least_texts)
    words = encode(data.texts, vocabulary, options.length)[data.training]
    targets = data.targets[data.training]
    torch.manual_seed(options.seed)
    network = TextNetwork(len(vocabulary) + 2, data.classes, options)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=options.l2
    )
    losses = []
    for epoch in range(1, options.epochs + 1):
        total = 0.0
        for batch in shuffled(len(targets), options.batch_size, seed=options.seed, epoch=epoch):
            loss = cross_entropy(network(words[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        losses.append(total / len(targets))
    return losses


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "parameter-server"])
def test_two_ranks_follow_the_single_process_and_are_compared(table: Path, tmp_path: Path, strategy: str) -> None:
    values = {**SMALL, "data": str(table), "text": "body", "label": "kind", "strategy": strategy}
    words = [f"{key}={value}" for key, value in values.items()]
    exits = gang.run(["text-cnn", *words, "min_accuracy=0.9"], world_size=2, folder=tmp_path)
    assert [(rank.code, rank.stderr) for rank in exits] == [(0, "")] * 2
    told = [line["metrics"]["loss"] for line in exits[0].progress]  # type: ignore[index]
    assert told == pytest.approx(alone(Options(**values)), rel=1e-4)  # type: ignore[arg-type]
    assert "TF-IDF with logistic regression " in exits[0].stdout
    assert exits[1].stdout == ""


def test_a_text_is_its_first_words_and_rare_ones_are_alike() -> None:
    vocabulary = words_of(["One two, two", "two ONE!", "three"], least_texts=2)
    assert vocabulary == {"one": 2, "two": 3}
    assert encode(["one two?", "", "two one two one two"], vocabulary, 4).tolist() == [
        [2, 3, 1, 0],
        [0, 0, 0, 0],
        [3, 2, 3, 2],
    ]


def test_docstrings_come_once_each_and_enough_of_each_package(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(docstrings())
    monkeypatch.setattr("training.recipes.text_cnn.docstrings", lambda: iter(found))  # to look through the library once
    assert len(found) > 2000
    assert len({text for text, _ in found}) == len(found)
    data = load(Options())
    assert data.classes >= 8
    assert data.targets.bincount().min() >= 100


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ("text,label\nx,1\n ,2\n", [], "line 3, column 'text': ' ' is no text"),
        ("body,label\nx,1\ny,2\n", [], "option text='text': "),
        ("text,kind\nx,1\ny,2\n", [], "option label='label': "),
        ("text,label\nx,1\ny,2\n", [], "2 rows are too few"),
    ],
)
def test_texts_that_make_no_sense_are_exit_code_2(
    content: str, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.csv"
    path.write_text(content)
    assert main(["text-cnn", f"data={path}", *words]) == 2
    said = capsys.readouterr().err
    assert (message in said, said.count("\n")) == (True, 1)

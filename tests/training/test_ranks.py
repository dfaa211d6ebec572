"""The environment of a rank, and the command that reads it."""

import os
import subprocess
import sys
from itertools import chain

import pytest
import torch

from training.__main__ import main
from training.errors import InputError
from training.ranks import Ranks, joined

GANG = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def _no_gang(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in GANG:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}])
def test_a_gang_of_one_needs_no_meeting_place(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with joined() as ranks:
        assert (ranks.rank, ranks.world_size, ranks.first) == (0, 1, True)
        assert ranks.total(torch.tensor([2.0, 3.0])).tolist() == [2.0, 3.0]
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two must be a whole number"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE=-2 must be a whole number"),
        ({"WORLD_SIZE": "0"}, "RANK=1 does not exist in a gang of WORLD_SIZE=0"),
        ({"RANK": "2"}, "RANK=2 does not exist in a gang of WORLD_SIZE=2"),
        ({"RANK": None}, "RANK= must be a whole number; start the ranks through Ergon or torchrun"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x must be a whole number"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": None}, "MASTER_PORT= must be a whole number"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http must be a whole number"),
    ],
)
def test_an_environment_that_describes_no_gang_is_refused(
    change: dict[str, str | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (GANG | change).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as refused, joined():
        pass
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(("rows", "world_size"), [(7, 3), (2, 3), (0, 2), (6, 1)])
def test_shares_are_disjoint_and_complete(rows: int, world_size: int) -> None:
    shares = [
        Ranks(rank=rank, world_size=world_size, device=torch.device("cpu")).mine(torch.arange(rows)).tolist()
        for rank in range(world_size)
    ]
    assert sorted(chain.from_iterable(shares)) == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no recipe is called ''"),
        (["nonsense"], "no recipe is called 'nonsense'; usage: python -m training {digits-mlp,linear-regression,"),
        (["sofmax"], "no recipe is called 'sofmax'; did you mean softmax? usage"),
        (["digits-mlp", "epoch=3"], "digits-mlp: option 'epoch' is not known; did you mean epochs?"),
        (["digits-mlp", "epochs=none"], "digits-mlp: option epochs='none': expected a whole number, at least 1"),
    ],
)
def test_a_call_that_makes_no_sense_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert (said.startswith(message), said.count("\n")) == (True, 1)


def test_an_unknown_recipe_is_refused_before_torch_is_loaded() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-m", "training", "nonsense"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no recipe is called 'nonsense'" in done.stderr
    assert not any(line.endswith("| torch") for line in map(str.rstrip, done.stderr.splitlines()))


def test_what_happens_at_the_interpreters_end_does_not_change_the_exit_code() -> None:
    script = "import atexit, os, runpy; atexit.register(os.abort); runpy.run_module('training', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, "nonsense"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)

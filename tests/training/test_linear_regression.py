"""`linear-regression`: what the gang descends to is the least-squares solution, and bad data are named."""

import re
from pathlib import Path

import numpy
import pytest

from tests.training import gang
from training.__main__ import main
from training.recipes.linear_regression import Options, Table, draw

HEADER = "age,size,price\n"
ROWS = "1,2,3\n2,5,4\n3,1,1\n4,0,2\n"


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "ERGON_PROGRESS"):
        monkeypatch.delenv(name, raising=False)


def least_squares(table: Table) -> list[float]:
    """The oracle: intercept and slopes by numpy's singular value decomposition, in the table's own units."""
    inputs = table.inputs.numpy()
    with_ones = numpy.column_stack([numpy.ones(len(inputs)), inputs])
    return numpy.linalg.lstsq(with_ones, table.targets.numpy()[:, 0])[0].tolist()


def printed(stdout: str) -> list[float]:
    return [float(value) for value in re.findall(r"^\S+ = (\S+)$", stdout, flags=re.MULTILINE)]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "parameter-server"])
def test_three_ranks_reach_the_least_squares_solution_on_the_path_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    # 2000 rows do not divide by 3, so the ranks' shares differ.
    exits = gang.run(["linear-regression", "noise=3", "seed=7", f"strategy={strategy}"], world_size=3, folder=tmp_path)
    assert [(rank.code, rank.stderr) for rank in exits] == [(0, "")] * 3
    assert printed(exits[0].stdout) == pytest.approx(least_squares(draw(Options(noise=3.0, seed=7))), rel=1e-6)
    assert exits[0].stdout.splitlines()[-1].endswith("world size 3")
    assert exits[1].stdout == exits[2].stdout == ""

    monkeypatch.setenv("ERGON_PROGRESS", str(tmp_path / "alone.jsonl"))
    assert main(["linear-regression", "noise=3", "seed=7"]) == 0
    alone = gang.progress(tmp_path / "alone.jsonl")
    assert [line["step"] for line in exits[0].progress] == [1, *range(10, 201, 10)]
    assert [line["metrics"] for line in exits[0].progress] == [pytest.approx(line["metrics"]) for line in alone]

    last = exits[0].progress[-1]
    assert (last["step"], last["total_steps"]) == (200, 200)
    assert last["metrics"] == {"loss": pytest.approx(9, rel=0.1)}  # the variance of the noise


@pytest.mark.parametrize(
    "words",
    [
        ["rows=10", "features=5", "steps=1000"],  # few rows: badly conditioned
        ["features=1"],
        ["noise=0", "features=20", "rows=500"],
    ],
)
def test_one_rank_reaches_it_too(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["linear-regression", *words]) == 0
    options = {key: float(value) if key == "noise" else int(value) for key, value in (w.split("=") for w in words)}
    solution = least_squares(draw(Options(**options)))  # type: ignore[arg-type]
    assert printed(capsys.readouterr().out) == pytest.approx(solution, rel=1e-4, abs=1e-4)


def test_a_csv_file_is_fitted_in_its_own_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "houses.csv"
    path.write_text(HEADER + "".join(f"{age},{size},{5 + 0.25 * age - 3 * size}\n" for age, size in GRID) + "\n")
    assert main(["linear-regression", f"data={path}"]) == 0
    found = dict(line.split(" = ") for line in capsys.readouterr().out.splitlines() if " = " in line)
    assert list(found) == ["intercept", "age", "size"]
    assert list(map(float, found.values())) == pytest.approx([5, 0.25, -3], rel=1e-6)


GRID = [(age, size) for age in range(100, 110) for size in range(3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 must name the columns"),
        ("price\n1\n", "needs at least two columns"),
        (ROWS, "line 1 must name the columns"),
        (HEADER, "has no rows"),
        (HEADER + ROWS + "5,6\n", "line 6 has 2 columns, the header 3"),
        (HEADER + "\n" + ROWS + "5,many,6\n", "line 7, column 'size': 'many' is not a finite number"),
        (HEADER + "1,nan,6\n", "line 2, column 'size': 'nan' is not a finite number"),
        (HEADER + "1,7,3\n2,7,4\n3,7,1\n", "column 'size' is the same in every row; leave it out"),
        (HEADER + "1,2,3\n2,4,4\n3,6,1\n4,8,9\n", "4 rows do not determine the coefficients"),
        (HEADER + "1,2,3\n2,3,4\n", "2 rows do not determine the coefficients"),
        (HEADER + '1,"2,3\n', "cannot be read: unexpected end"),
        (HEADER + "1,2,\xff\n", "is not in UTF-8"),
    ],
)
def test_data_that_make_no_sense_are_exit_code_2_and_named(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.csv"
    path.write_text(text, encoding="latin-1")
    assert main(["linear-regression", f"data={path}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("linear-regression: ")
    assert (message in said, said.count("\n")) == (True, 1)


def test_a_missing_file_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["linear-regression", "data=/nowhere/at.csv"]) == 2
    assert "data=/nowhere/at.csv: cannot be read" in capsys.readouterr().err


def test_a_fit_outside_the_tolerance_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["linear-regression", "steps=2"]) == 1
    assert "raise steps=2" in capsys.readouterr().err

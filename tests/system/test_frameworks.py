"""The scripts of docs/own-scripts.md for packages that Ergon does not bring: `pip install accelerate lightning`."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from ergon.client import Client
from tests.docs.blocks import ROOT, blocks
from tests.system.jobs import newest, words_of

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


@pytest.mark.parametrize(
    ("package", "expected"),
    [("accelerate", "epoch 5, 2 ranks: loss 0.0000"), ("lightning", "rank 1 of 2: bias ")],
)
def test_scripts_of_other_packages_train_as_one_gang(
    ergon, carol: Client, tmp_path: Path, package: str, expected: str
) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    name = f"with_{package}.py"
    [script] = [block for block in blocks(ROOT / "docs" / "own-scripts.md") if block.file_name == name]
    (tmp_path / "code" / name).write_text(script.text)
    status, _, err = ergon("submit", "--nodes", "2", "--kind", "cpu", "--wait", "--", "python", name)
    job = newest(carol)
    assert status == 0, err + words_of(carol, job)
    assert expected in words_of(carol, job)
    assert job.progress

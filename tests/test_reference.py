"""The references in docs/ say what the code says."""

import pytest

from docs import reference


@pytest.mark.parametrize(
    "path", [reference.FOLDER / "api.md", reference.FOLDER / "commands.md"], ids=lambda path: path.name
)
def test_the_reference_is_the_one_of_the_code(path: reference.Path) -> None:
    assert path.read_text(encoding="utf-8") == reference.pages()[path], "renew it: python -m docs.reference"

"""A database that is not there, or will not have us: every process says so in one line, and ends with 2."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from service.__main__ import main
from service.postgres import EmbeddedPostgres

NOBODY = "postgresql://ergon@127.0.0.1:1/ergon"
"""Nothing listens on port 1."""


@pytest.mark.parametrize("command", [["migrate"], ["api"], ["cycle"], ["token", "user", "alice"]])
def test_a_database_that_is_absent(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ERGON_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("ERGON_DATABASE_URL", NOBODY)
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("service: the database does not answer, see ERGON_DATABASE_URL: connection failed")
    assert "Connection refused" in err
    assert err.count("\n") == 1


def test_a_database_that_refuses_us(
    postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    password = urlsplit(postgres.url).password
    assert password
    monkeypatch.setenv("ERGON_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("ERGON_DATABASE_URL", postgres.url.replace(password, "wrong"))
    assert main(["api"]) == 2
    _, err = capsys.readouterr()
    assert "password authentication failed" in err
    assert password not in err

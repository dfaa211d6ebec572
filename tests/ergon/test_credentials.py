"""Where the server and the token come from, and who may read the file they are kept in."""

import json
import stat
from pathlib import Path

import pytest

from ergon.credentials import Credentials, credentials_path, load, resolve, save
from ergon.errors import NotConfigured

SAVED = Credentials(server="http://saved:1", token="saved-token")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment whose credentials file holds SAVED."""
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    save(SAVED, credentials_path(environment))
    return environment


@pytest.mark.parametrize(
    ("server", "token", "variables", "expected"),
    [
        (None, None, {}, SAVED),
        ("http://arg", "arg-token", {}, Credentials(server="http://arg", token="arg-token")),
        (None, None, {"ERGON_SERVER": "http://env", "ERGON_TOKEN": "t"}, Credentials(server="http://env", token="t")),
        (
            "http://arg",
            None,
            {"ERGON_SERVER": "http://env", "ERGON_TOKEN": "t"},
            Credentials(server="http://arg", token="t"),
        ),
        (None, None, {"ERGON_TOKEN": "t"}, Credentials(server="http://saved:1", token="t")),
        (None, None, {"ERGON_SERVER": "http://saved:1/"}, Credentials(server="http://saved:1/", token="saved-token")),
        (None, None, {"ERGON_SERVER": "http://other"}, Credentials(server="http://other", token=None)),
        ("http://other", None, {}, Credentials(server="http://other", token=None)),
    ],
)
def test_arguments_then_environment_then_file_and_a_token_only_to_its_own_server(
    environment: dict[str, str], server: str | None, token: str | None, variables: dict[str, str], expected: Credentials
) -> None:
    assert resolve(server, token, environment | variables) == expected


def test_nothing_known_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(NotConfigured, match=r"`ergon up`.*ERGON_SERVER"):
        resolve(environment={"XDG_CONFIG_HOME": str(tmp_path)})


def test_the_file_is_for_its_owner_only_also_when_it_replaces_another(environment: dict[str, str]) -> None:
    path = credentials_path(environment)
    path.chmod(0o644)
    save(Credentials(server="http://new", token="new"), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load(path) == Credentials(server="http://new", token="new")
    assert [entry.name for entry in path.parent.iterdir()] == ["credentials.json"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_file_that_others_can_use_is_refused(environment: dict[str, str], mode: int) -> None:
    path = credentials_path(environment)
    path.chmod(mode)
    with pytest.raises(NotConfigured, match=r"chmod 600"):
        resolve(environment=environment)


def test_a_file_that_is_not_needed_is_not_read(environment: dict[str, str]) -> None:
    credentials_path(environment).chmod(0o644)
    assert resolve("http://arg", "t", environment).token == "t"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", json.dumps({"server": "x"}), json.dumps({"server": 1, "token": 2})]
)
def test_a_damaged_file_is_an_error_that_names_it(environment: dict[str, str], text: str) -> None:
    path = credentials_path(environment)
    path.write_text(text)
    with pytest.raises(NotConfigured, match=r"credentials\.json is damaged"):
        resolve(environment=environment)


def test_a_token_is_not_shown() -> None:
    assert "saved-token" not in repr(SAVED)

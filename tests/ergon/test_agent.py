"""`ergon agent`: joins once, remembers, and becomes the agent."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ergon.cli.main import main
from protocol.accounts import JoinRequest, JoinResponse
from protocol.version import PROTOCOL_VERSION
from tests.ergon.http_service import HttpService, http_service

Captured = pytest.CaptureFixture[str]


class Became(BaseException):
    """What the process would have turned into."""

    def __init__(self, path: str, words: list[str], environment: dict[str, str]) -> None:
        super().__init__(path)
        self.words = words
        self.environment = environment


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HttpService]:
    for name in [name for name in os.environ if name.startswith("ERGON_")]:
        monkeypatch.delenv(name)

    def become(path: str, words: list[str], environment: dict[str, str]) -> None:
        raise Became(path, words, environment)

    monkeypatch.setattr("os.execve", become)
    monkeypatch.chdir(tmp_path)
    with http_service() as service:
        service.answer("POST /v1/agent/join", JoinResponse(node="n1"))
        yield service


def started(*words: str) -> Became:
    with pytest.raises(Became) as became:
        main(["agent", *words])
    return became.value


def option(became: Became, name: str) -> str | None:
    words = became.words
    return words[words.index(name) + 1] if name in words else None


def error(capsys: Captured) -> str:
    err = capsys.readouterr().err
    assert err.startswith("ergon: ")
    assert err.count("\n") == 1
    return err


def test_the_first_start_joins_and_later_ones_remember(
    service: HttpService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    monkeypatch.setenv("ERGON_JOIN_TOKEN", "leave")
    first = started("--server", service.url, "--name", "n1", "--state-dir", "state", "--cpu-slots", "0-1")
    [asked] = service.asked
    assert asked.headers["Authorization"] == "Bearer leave"
    credential = (state / "token").read_text()
    digest = hashlib.sha256(credential.encode()).hexdigest()
    expected = JoinRequest(protocol=PROTOCOL_VERSION, node="n1", credential_hash=digest)
    assert JoinRequest.model_validate_json(asked.body) == expected
    assert [path.stat().st_mode & 0o777 for path in sorted(state.iterdir())] == [0o600, 0o600]
    assert credential not in asked.body
    assert first.words[1:4] == ["-P", "-m", "workers"]
    assert (option(first, "--token-file"), option(first, "--cpu-slots")) == (str(state / "token"), "0-1")
    assert "ERGON_JOIN_TOKEN" not in first.environment

    monkeypatch.delenv("ERGON_JOIN_TOKEN")
    again = started("--state-dir", str(state), "--interface", "eth1", "--address", "10.0.0.1", "--disk-per-job", "2GiB")
    assert len(service.asked) == 1
    assert (option(again, "--server"), option(again, "--name")) == (service.url, "n1")
    assert (option(again, "--interface"), option(again, "--address")) == ("eth1", "10.0.0.1")
    assert option(again, "--disk-per-job") == str(2 << 30)
    assert option(started("--state-dir", str(state), "--server", "http://elsewhere"), "--server") == "http://elsewhere"


def test_a_join_whose_answer_was_lost_is_repeated_with_the_same_credential(
    service: HttpService, tmp_path: Path, capsys: Captured
) -> None:
    words = ("--server", service.url, "--name", "n1", "--join-token", "leave", "--state-dir", str(tmp_path / "state"))
    service.answers["POST /v1/agent/join"] = [(200, "cut o")]
    assert main(["agent", *words]) == 3
    assert not (tmp_path / "state" / "token").exists()
    service.answer("POST /v1/agent/join", JoinResponse(node="n1"))
    started(*words)
    assert service.asked[0].body == service.asked[1].body


def test_without_what_it_needs_the_remedy_is_named(service: HttpService, tmp_path: Path, capsys: Captured) -> None:
    state = ("--state-dir", str(tmp_path / "state"))
    assert main(["agent", *state]) == 2
    assert "ergon join-token new" in error(capsys)
    assert main(["agent", *state, "--join-token", "leave"]) == 2
    assert "--server" in error(capsys)
    assert main(["agent", *state, "--join-token", "leave", "--server", service.url, "--name", "no name"]) == 2
    assert "'no name'" in error(capsys)
    service.refuse("POST /v1/agent/join", 409, "join-token-spent", "node 'n7' has joined with this token")
    assert main(["agent", *state, "--join-token", "leave", "--server", service.url, "--name", "n1"]) == 2
    assert "node 'n7' has joined with this token" in error(capsys)
    (tmp_path / "file").touch()
    assert (
        main(["agent", "--state-dir", str(tmp_path / "file" / "x"), "--join-token", "x", "--server", "http://x"]) == 2
    )
    assert "--state-dir" in error(capsys)


def test_a_folder_of_another_node_or_a_damaged_one_is_named(
    service: HttpService, tmp_path: Path, capsys: Captured
) -> None:
    state = tmp_path / "state"
    started("--server", service.url, "--name", "n1", "--join-token", "leave", "--state-dir", str(state))
    capsys.readouterr()
    assert main(["agent", "--state-dir", str(state), "--name", "n2"]) == 2
    assert "belongs to node n1" in error(capsys)
    for damage in ("{", json.dumps({"server": "x"}), "[]"):
        (state / "node.json").write_text(damage)
        assert main(["agent", "--state-dir", str(state)]) == 2
        assert "join anew" in error(capsys)


def test_a_certificate_that_cannot_be_read_is_named(service: HttpService, tmp_path: Path, capsys: Captured) -> None:
    words = ["--server", service.url, "--name", "n1", "--join-token", "leave", "--state-dir", str(tmp_path / "state")]
    assert main(["agent", *words, "--ca", str(tmp_path / "none.crt")]) == 2
    assert "none.crt cannot be used" in error(capsys)
    assert service.asked == []

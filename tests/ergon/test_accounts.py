"""`ergon users`, `user`, `token`, `join-token` and `node`: what is asked of the service, and what is printed."""

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from ergon.cli.main import main
from protocol.accounts import IdentityView, JoinTokenView, NewTokenView, TokenList, TokenView, UserPage, UserView
from protocol.nodes import NodePage
from protocol.states import Role
from tests.ergon.builders import NOON, a_node
from tests.ergon.http_service import HttpService, http_service

Captured = pytest.CaptureFixture[str]

ALICE = UserView(name="alice", role=Role.USER, created_at=NOON, tokens=1)
TOKEN = TokenView(id="token-1", owner="alice", created_at=NOON, ending="wxyz")
NEW = NewTokenView(id="token-2", owner="alice", created_at=NOON, ending="cret", token="ergon_user_secret")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HttpService]:
    for name in [name for name in os.environ if name.startswith("ERGON_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with http_service() as service:
        monkeypatch.setenv("ERGON_SERVER", service.url)
        monkeypatch.setenv("ERGON_TOKEN", "secret")
        service.answer("GET /v1/me", IdentityView(user="alice", role=Role.ADMIN))
        yield service


def test_users_of_all_pages_are_listed(service: HttpService, capsys: Captured) -> None:
    bob = ALICE.model_copy(update={"name": "bob", "tokens": 0})
    service.answer("GET /v1/users", UserPage(items=[ALICE], next="alice"), UserPage(items=[bob]))
    assert main(["users"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["alice", "user", "1"], ["bob", "user", "0"]]
    assert service.asked[1].query == {"cursor": ["alice"]}


def test_a_user_is_added_with_a_role_and_the_next_step_is_named(service: HttpService, capsys: Captured) -> None:
    service.answer("POST /v1/users", UserView(name="ada", role=Role.ADMIN, created_at=NOON, tokens=0))
    assert main(["user", "add", "ada", "--role", "admin"]) == 0
    out, err = capsys.readouterr()
    assert out == "ada (admin)\n"
    assert "ergon token new --user ada" in err
    assert json.loads(service.asked[0].body) == {"name": "ada", "role": "admin"}


def test_a_role_is_changed(service: HttpService, capsys: Captured) -> None:
    service.answer("PATCH /v1/users/alice", ALICE.model_copy(update={"role": Role.ADMIN}))
    assert main(["user", "role", "alice", "admin"]) == 0
    assert capsys.readouterr().out == "alice (admin)\n"
    assert json.loads(service.asked[0].body) == {"role": "admin"}


def test_a_new_token_is_the_only_thing_on_standard_output(service: HttpService, capsys: Captured) -> None:
    service.answer("POST /v1/users/alice/tokens", NEW)
    assert main(["token", "new"]) == 0
    out, err = capsys.readouterr()
    assert out == "ergon_user_secret\n"
    assert "token-2 of alice" in err
    assert "secret" not in err


def test_tokens_are_listed_and_revoked(service: HttpService, capsys: Captured) -> None:
    service.answer("GET /v1/users/bob/tokens", TokenList(items=[TOKEN]))
    service.answer("GET /v1/nodes/n1/tokens", TokenList(items=[]))
    service.answers["DELETE /v1/tokens/token-1"] = [(204, "")]
    assert main(["token", "list", "--user", "bob"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "token-1"
    assert main(["token", "list", "--node", "n1"]) == 0
    assert main(["token", "revoke", "token-1"]) == 0
    assert service.asked[-1].method == "DELETE"
    assert main(["token", "list", "--user", "bob", "--node", "n1"]) == 2


def test_a_join_token_is_asked_for_as_said(service: HttpService, capsys: Captured) -> None:
    service.answer("POST /v1/join-tokens", JoinTokenView(token="ergon_join_x", expires_at=NOON))
    assert main(["join-token", "new"]) == 0
    assert main(["join-token", "new", "--node", "n1", "--valid", "15m", "--replace"]) == 0
    assert capsys.readouterr().out == "ergon_join_x\n" * 2
    assert [json.loads(asked.body) for asked in service.asked] == [
        {},
        {"node": "n1", "valid_s": 900.0, "replace": True},
    ]


def test_what_no_service_would_take_is_named_without_asking_one(service: HttpService, capsys: Captured) -> None:
    for words in (["user", "add", "no name"], ["join-token", "new", "--valid", "30d"], ["token", "revoke", ".."]):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith("ergon: ")
    assert service.asked == []


@pytest.mark.parametrize(
    ("words", "path", "body", "state"),
    [
        (["cordon", "n1"], "cordon", "", "ready, cordoned"),
        (["uncordon", "n1"], "uncordon", "", "ready"),
        (["drain", "n1"], "drain", '{"deadline_s":600.0}', "ready, drains until"),
        (["drain", "n1", "--deadline", "0s"], "drain", '{"deadline_s":0.0}', "ready, drains until"),
    ],
)
def test_a_node_is_taken_out_of_use_and_back(
    service: HttpService, capsys: Captured, words: list[str], path: str, body: str, state: str
) -> None:
    changes = {"cordoned": path != "uncordon", "drain_at": NOON + timedelta(hours=1) if path == "drain" else None}
    node = a_node("n1", holder="job-7").model_copy(update=changes)
    service.answer(f"POST /v1/nodes/n1/{path}", node)
    service.answer("GET /v1/nodes", NodePage(items=[node]))
    assert main(["node", *words]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"n1: {state}")
    assert ("still there: job-7" in err) == (path != "uncordon")
    assert service.asked[0].body == body
    assert main(["nodes"]) == 0
    assert state in capsys.readouterr().out

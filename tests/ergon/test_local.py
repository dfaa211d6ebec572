"""How the local cluster is put together: folders, ports, slots, tokens. Small stand-ins play its processes."""

import json
import os
import socket
import stat
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ergon.cli import local
from ergon.cli.local import LocalCluster, LocalClusterError, LocalSettings, default_data_dir, local_cluster
from ergon.cli.main import main
from ergon.cli.processes import ProcessFailed
from ergon.credentials import Credentials, load
from protocol.states import Role

STAND_IN = textwrap.dedent("""
    import json, os, sys, time
    module, *arguments = sys.argv[1:]
    note = {"arguments": [module, *arguments], "cwd": os.getcwd()}
    note["environment"] = {name: value for name, value in os.environ.items() if name.startswith("ERGON_")}
    with open("calls.jsonl", "a") as file:
        file.write(json.dumps(note) + "\\n")
    if os.path.exists("fail-" + arguments[0]):
        sys.exit("it went wrong")
    if arguments[0] == "token":
        names = arguments[2:] if arguments[1] == "node" else arguments[2:3]
        print(*("token-of-" + name for name in names), sep="\\n")
    elif arguments[0] == "migrate":
        print(json.dumps({"ready": "migrate"}))
    else:
        print(json.dumps({"ready": arguments[0], "url": "http://127.0.0.1:4321"}), flush=True)
        time.sleep(600)
""")


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_python", lambda module, *rest: [sys.executable, "-c", STAND_IN, module, *rest])


def settings(data_dir: Path, *, port: int = 0, environment: Mapping[str, str] = os.environ) -> LocalSettings:
    return LocalSettings(data_dir=data_dir, port=port, agents=2, slots_per_agent=3, environment=environment)


def start_and_stop(chosen: LocalSettings) -> None:
    with local_cluster(chosen):
        pass


def calls(data_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (data_dir / "calls.jsonl").read_text().splitlines()]


def test_everything_starts_in_order_from_the_data_folder(tmp_path: Path) -> None:
    with local_cluster(settings(tmp_path)) as cluster:
        assert cluster.url == "http://127.0.0.1:4321"
        assert cluster.user_token("alice", Role.USER) == "token-of-alice"
        cluster.check()
    made = calls(tmp_path)
    assert {call["cwd"] for call in made} == {str(tmp_path)}
    words = [" ".join(map(str, call["arguments"])) for call in made]
    assert words[0] == "service database"
    assert set(words[1:4]) == {"service api", "service cycle", "service token node node-1 node-2"}
    assert {word.split()[0] for word in words[4:6]} == {"workers"}
    assert words[6] == "service token user alice --role user"


def test_agents_get_slots_of_their_own_and_a_secret_token(tmp_path: Path) -> None:
    start_and_stop(settings(tmp_path))
    agents = [call["arguments"] for call in calls(tmp_path) if call["arguments"][0] == "workers"]
    assert sorted(words[words.index("--cpu-slots") + 1] for words in agents) == ["0-2", "3-5"]
    assert sorted("--no-gpus" in words for words in agents) == [False, True], "a GPU belongs to one node"
    for name in ("node-1", "node-2"):
        token = tmp_path / "agents" / name / "token"
        assert token.read_text().strip() == f"token-of-{name}"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_the_processes_get_our_settings_and_not_the_callers_token(tmp_path: Path) -> None:
    environment = dict(os.environ) | {"ERGON_TOKEN": "secret", "ERGON_SERVER": "http://x", "ERGON_PUE": "1.3"}
    start_and_stop(settings(tmp_path, environment=environment))
    for call in calls(tmp_path):
        expected = {"ERGON_DATA_DIR": str(tmp_path), "ERGON_HOST": "127.0.0.1", "ERGON_PORT": "0", "ERGON_PUE": "1.3"}
        assert call["environment"] == expected


def test_files_are_named_from_where_the_caller_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    start_and_stop(settings(tmp_path / "data", environment=dict(os.environ) | {"ERGON_TLS_CERT": "tls.crt"}))
    [cert] = {call["environment"]["ERGON_TLS_CERT"] for call in calls(tmp_path / "data")}
    assert cert == str(tmp_path / "here" / "tls.crt")


def test_with_a_database_of_the_users_the_migrations_are_applied_instead(tmp_path: Path) -> None:
    environment = dict(os.environ) | {"ERGON_DATABASE_URL": "postgresql://x"}
    start_and_stop(settings(tmp_path, environment=environment))
    words = [call["arguments"] for call in calls(tmp_path)]
    assert words[0] == ["service", "migrate"]
    assert ["service", "database"] not in words


@pytest.mark.parametrize("part", ["database", "api", "cycle", "token"])
def test_a_part_that_fails_is_named_with_its_log(tmp_path: Path, part: str) -> None:
    (tmp_path / f"fail-{part}").touch()
    with pytest.raises(ProcessFailed, match=rf"{part}.* ended with code 1; its log is .*{part}\.log") as caught:
        start_and_stop(settings(tmp_path))
    assert caught.value.details == ("it went wrong",)


def test_a_second_cluster_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(LocalClusterError, match=rf"process {os.getpid()}\) uses {tmp_path}.*--data-dir")
    with local_cluster(settings(tmp_path)), refused:
        start_and_stop(settings(tmp_path))
    start_and_stop(settings(tmp_path))


def test_a_port_that_is_taken_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LocalClusterError, match=rf"port {port} is taken.*--port"):
            start_and_stop(settings(tmp_path, port=port))
    assert not (tmp_path / "calls.jsonl").exists()


def test_a_host_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    environment = dict(os.environ) | {"ERGON_HOST": "192.0.2.1"}
    with pytest.raises(LocalClusterError, match=r"192\.0\.2\.1.*ERGON_HOST"):
        start_and_stop(settings(tmp_path, environment=environment))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalClusterError, match="--data-dir"), local_cluster(settings(tmp_path / "file" / "data")):
        pytest.fail("it started")


def test_the_data_folder_can_be_passed_through_and_its_logs_cannot(tmp_path: Path) -> None:
    start_and_stop(settings(tmp_path / "a" / "data"))
    data_dir = tmp_path / "a" / "data"
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o711
    assert stat.S_IMODE((data_dir / "log").stat().st_mode) == 0o700


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_data_dir({"ERGON_DATA_DIR": "/x"}) == Path("/x")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_data_dir({"XDG_DATA_HOME": "/data"}) == Path("/var/lib/ergon")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_data_dir({"XDG_DATA_HOME": "/data"}) == Path("/data/ergon")
    assert default_data_dir({}) == Path.home() / ".local/share/ergon"


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`ergon up` is interrupted as soon as everything runs."""

    def interrupt(cluster: LocalCluster) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalCluster, "wait_for_a_death", interrupt)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in [name for name in os.environ if name.startswith("ERGON_")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("ctrl_c")
def test_up_says_where_everything_is_and_saves_the_administrators_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", "--data-dir", str(tmp_path / "data"), "--port", "0", "--slots-per-agent", "1"]) == 130
    out, err = capsys.readouterr()
    saved = tmp_path / "config" / "ergon" / "credentials.json"
    for words in (
        "http://127.0.0.1:4321/\n",
        "http://127.0.0.1:4321/docs\n",
        "node-1, node-2 with 1 CPU slot each",
        str(saved),
    ):
        assert words in out
    assert err.splitlines()[-2:] == ["stopping", "ergon: interrupted"]
    assert load(saved) == Credentials(server="http://127.0.0.1:4321", token="token-of-admin")


@pytest.mark.usefixtures("ctrl_c")
def test_up_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--json", "--data-dir", str(tmp_path / "data"), "--port", "0"]) == 130
    assert json.loads(capsys.readouterr().out)["url"] == "http://127.0.0.1:4321"


def test_up_shows_the_end_of_the_log_of_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fail-api").touch()
    assert main(["up", "--data-dir", str(tmp_path), "--port", "0"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == f"ergon: api ended with code 1; its log is {tmp_path / 'log' / 'api.log'}"
    assert lines[2:] == ["  it went wrong"]

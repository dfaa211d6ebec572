"""The `ergon` command from words on a command line to lines and exit codes, against a real HTTP server."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ergon.cli import doctor
from ergon.cli.main import main
from protocol.accounts import IdentityView, ServiceView
from protocol.alarms import AlarmPage, AlarmView
from protocol.caches import LinkView
from protocol.cycles import CyclePage
from protocol.jobs import (
    EventPage,
    JobPage,
    JobSpec,
    JobView,
    MetricPage,
    ProgressView,
    Reason,
    Recipe,
    VerdictView,
)
from protocol.nodes import DeviceView, NodePage, PowerBudgetView
from protocol.states import FINAL_JOB_STATES, DeviceCondition, JobState, Role
from protocol.version import PROTOCOL_VERSION
from tests.ergon.builders import NOON, a_cycle, a_job, a_node, a_piece, a_point, a_report, an_event
from tests.ergon.http_service import HttpService, http_service

Captured = pytest.CaptureFixture[str]

NO_DEVICE = VerdictView(outcome="waiting", reasons=[Reason(code="no_free_device", message="all 4 devices are held")])
TOO_LARGE = VerdictView(
    outcome="impossible", reasons=[Reason(code="too_few_nodes", message="64 nodes asked for, 2 there")]
)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("ERGON_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "code").mkdir()
    monkeypatch.chdir(tmp_path / "code")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpService]:
    with http_service() as service:
        monkeypatch.setenv("ERGON_SERVER", service.url)
        monkeypatch.setenv("ERGON_TOKEN", "secret")
        yield service


def one_error_line(capsys: Captured) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ergon: ")
    assert err.count("\n") == 1
    return err


def submitted(service: HttpService) -> JobSpec:
    return JobSpec.model_validate_json(service.asked[0].body)


def test_submit_runs_in_an_image(service: HttpService, capsys: Captured) -> None:
    service.answer("POST /v1/jobs", a_job(verdict=NO_DEVICE), status=201)
    options = ["--no-ship", "--image", "docker.io/library/python:3.12", "--python", "python3"]
    assert main(["submit", *options, "--", "python", "train.py"]) == 0
    spec = submitted(service)
    assert (spec.image, spec.python) == ("docker.io/library/python:3.12", "python3")
    assert main(["submit", "--no-ship", "--image=--privileged", "--", "python", "train.py"]) == 2
    assert "--image: " in capsys.readouterr().err


def test_submit_turns_every_option_into_the_spec(service: HttpService, capsys: Captured) -> None:
    service.answer("POST /v1/jobs", a_job(verdict=NO_DEVICE), status=201)
    words = "submit --name big --nodes 2 --devices-per-node 4 --kind h100 --kind h200 --ranks-per-node 8 --cores 1.5"
    words += " --memory 4GiB --disk 20GiB --queue team --priority 5 --time-limit 2h --expect 15m --env A=1 --env B=x=y"
    words += " --stall-timeout 9m --may-move --require-feasible --python /opt/py --requirements r.txt --dataset d=/data"
    words += " -- python train.py --nodes 9 -o x"
    Path("r.txt").write_text("numpy\n")
    assert main(words.split()) == 0
    assert submitted(service) == JobSpec(
        name="big",
        command=["python", "train.py", "--nodes", "9", "-o", "x"],
        nodes=2,
        devices_per_node=4,
        device_kinds=["h100", "h200"],
        ranks_per_node=8,
        cpu_cores_per_node=1.5,
        memory_bytes_per_node=4 << 30,
        disk_bytes_per_node=20 << 30,
        queue="team",
        priority=5,
        time_limit_s=7200,
        stall_timeout_s=540,
        expected_run_s=900,
        env={"A": "1", "B": "x=y"},
        may_move=True,
        require_feasible=True,
        code=next(iter(service.archives)),
        python="/opt/py",
        requirements="r.txt",
        datasets={"d": "/data"},
    )
    assert service.asked[0].headers["Authorization"] == "Bearer secret"
    out, err = capsys.readouterr()
    assert out == "j1\n"
    assert re.fullmatch(r"shipped .*/code: 1 files, [0-9]+B\nwaiting: all 4 devices are held\n", err)


def test_the_command_needs_no_dashes_and_keeps_its_own_options(service: HttpService) -> None:
    service.answer("POST /v1/jobs", a_job())
    assert main(["submit", "--no-ship", "--nodes", "2", "python", "train.py", "--name", "mine"]) == 0
    assert submitted(service) == JobSpec(command=["python", "train.py", "--name", "mine"], nodes=2)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("3", 3), ("-0.5", -0.5), ("1e-3", 0.001), ("true", True), ("false", False), ("yes", "yes"), ("", "")],
        *[("null", "null"), ("[1]", "[1]"), ("NaN", "NaN"), ("1e999", "1e999"), ('"q"', '"q"'), ("a=b", "a=b")],
    ],
)
def test_options_of_a_recipe_keep_their_type(service: HttpService, text: str, value: object) -> None:
    service.answer("POST /v1/jobs", a_job())
    assert main(["submit", "--recipe", "digits-mlp", "-o", f"x={text}"]) == 0
    spec = submitted(service)
    assert spec.recipe == Recipe(name="digits-mlp", options={"x": value})  # type: ignore[dict-item]
    assert type(spec.recipe.options["x"]) is type(value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("submit", "give either a command"),
        ("submit --recipe r -- python", "give either a command"),
        ("submit --nodes 0 -- x", "--nodes: "),
        ("submit --nodes -1 -- x", "--nodes: "),
        ("submit --nodes 1000000000 -- x", "--nodes: "),
        (f"submit --nodes {'9' * 5_000} -- x", "--nodes: give a number of nodes"),
        ("submit --nodes two -- x", "--nodes: give a number of nodes"),
        ("submit --devices-per-node -1 -- x", "--devices-per-node: "),
        ("submit --ranks-per-node 0 -- x", "--ranks-per-node: "),
        ("submit --cores 0 -- x", "--cores: "),
        ("submit --cores nan -- x", "--cores: "),
        ("submit --memory 4G -- x", "4GiB"),
        ("submit --memory 99999999TiB -- x", "--memory: "),
        ("submit --time-limit 90 -- x", "'--time-limit'"),
        ("submit --time-limit 0s -- x", "--time-limit: "),
        ("submit --expect 9999999d -- x", "--expect: "),
        ("submit --priority 5000 -- x", "--priority: "),
        ("submit --name a/b -- x", "--name: "),
        ("submit --queue ? -- x", "--queue: "),
        ("submit --kind H100 -- x", "--kind (0): "),
        ("submit --env A -- x", "NAME=VALUE"),
        ("submit --env =1 -- x", "NAME=VALUE"),
        ("submit --env A=1 --env A=2 -- x", "A is given twice"),
        ("submit --env 1A=1 -- x", "--env"),
        ("submit --recipe r -o x", "KEY=VALUE"),
        ("submit -o a=1 -- x", "--recipe"),
        ("submit --recipe a/b", "--recipe (name): "),
        ("submit --follow --json -- x", "--follow and --json"),
        ("submit --nodse 2 -- x", "--nodse"),
        ("jobs --state runing", "runing"),
        ("logs", "JOB"),
        ("logs j1 --rank -1", "'--rank'"),
        ("logs j1 --stream stdboth", "stdboth"),
        ("plans seven", "'CYCLE'"),
        ("report --start yesterday", "2031-05-01"),
        ("report --csv --json", "--csv and --json"),
        ("up --agents 0", "'--agents'"),
        ("up --port 70000", "'--port'"),
        ("bogus", "bogus"),
        ("show ..", "is no id"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2_and_nothing_is_sent(
    service: HttpService, capsys: Captured, words: str, expected: str
) -> None:
    assert main(words.split()) == 2
    assert expected in one_error_line(capsys)
    assert service.asked == []


def test_an_impossible_job_is_accepted_and_says_why(service: HttpService, capsys: Captured) -> None:
    service.answer("POST /v1/jobs", a_job(verdict=TOO_LARGE))
    assert main(["submit", "--no-ship", "--nodes", "64", "--", "x"]) == 0
    out, err = capsys.readouterr()
    assert out == "j1\n"
    assert err == "no present node could run it, so it waits for one that can: 64 nodes asked for, 2 there\n"


def test_an_impossible_job_that_must_be_feasible_is_refused(service: HttpService, capsys: Captured) -> None:
    service.refuse("POST /v1/jobs", 422, "impossible", "64 nodes asked for, 2 there")
    assert main(["submit", "--no-ship", "--may-move", "--require-feasible", "--nodes", "64", "--", "x"]) == 2
    assert one_error_line(capsys) == "ergon: 64 nodes asked for, 2 there\n"


@pytest.mark.parametrize("state", sorted(FINAL_JOB_STATES))
def test_submit_wait_tells_by_its_exit_code_how_the_job_ended(
    service: HttpService, capsys: Captured, state: JobState
) -> None:
    service.answer("POST /v1/jobs", a_job())
    service.answer("GET /v1/jobs/j1", a_job(state=JobState.RUNNING), a_job(state=state, reason="because"))
    assert main(["submit", "--wait", "--", "x"]) == (0 if state is JobState.SUCCEEDED else 1)
    assert f"{state} after 2m 20s: because" in capsys.readouterr().err


def test_submit_wait_json_prints_the_job_as_it_ended(service: HttpService, capsys: Captured) -> None:
    ended = a_job(state=JobState.SUCCEEDED)
    service.answer("POST /v1/jobs", a_job())
    service.answer("GET /v1/jobs/j1", ended)
    assert main(["submit", "--wait", "--json", "--", "x"]) == 0
    assert JobView.model_validate_json(capsys.readouterr().out) == ended


def test_submit_follow_shows_what_the_job_writes(service: HttpService, capsys: Captured) -> None:
    service.answer("POST /v1/jobs", a_job())
    service.lines("GET /v1/jobs/j1/logs", a_piece("hello\n"))
    service.answer("GET /v1/jobs/j1", a_job(state=JobState.FAILED, reason="exit code 3"))
    assert main(["submit", "--follow", "--", "x"]) == 1
    out, err = capsys.readouterr()
    assert out == "j1\nhello\n"
    assert "failed after 2m 20s: exit code 3" in err


def test_jobs_lists_the_newest_and_says_that_there_are_more(service: HttpService, capsys: Captured) -> None:
    jobs = [a_job(f"j{number}", progress=ProgressView(epoch=3, total_epochs=9)) for number in range(25)]
    service.answer("GET /v1/jobs", JobPage(items=jobs))
    assert main(["jobs"]) == 0
    out, err = capsys.readouterr()
    assert [row.split()[0] for row in out.splitlines()] == ["ID", *(f"j{number}" for number in range(20))]
    assert "epoch 3/9" in out
    assert "--all" in err
    assert main(["jobs", "--all"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 26
    assert err == ""


def test_jobs_passes_its_filters_on(service: HttpService) -> None:
    service.answer("GET /v1/jobs", JobPage(items=[]))
    assert main(["jobs", "--state", "queued", "--state", "running", "--user", "bob", "--queue", "team"]) == 0
    assert service.asked[0].query == {
        "state": ["queued", "running"],
        "user": ["bob"],
        "queue": ["team"],
        "folded": ["true"],
        "limit": ["20"],
    }


def test_lists_in_json_are_one_view_a_line(service: HttpService, capsys: Captured) -> None:
    jobs = [a_job("j1"), a_job("j2")]
    service.answer("GET /v1/jobs", JobPage(items=jobs))
    assert main(["jobs", "--json"]) == 0
    assert [JobView.model_validate_json(text) for text in capsys.readouterr().out.splitlines()] == jobs


def test_show_tells_everything(service: HttpService, capsys: Captured) -> None:
    job = a_job(state=JobState.RUNNING, node="node-1", progress=ProgressView(step=5, metrics={"loss": 0.25}))
    service.answer("GET /v1/jobs/j1", job)
    service.answer("GET /v1/jobs/j1/events", EventPage(items=[an_event(n, f"kind-{n}") for n in range(12)]))
    old, new = [a_point(1, 99.0, epoch=0)], [a_point(n, 4.0 - n) for n in range(4)]
    service.answer("GET /v1/jobs/j1/metrics", MetricPage(items=[*old, *new]))
    assert main(["show", "j1"]) == 0
    out = capsys.readouterr().out
    for words in (
        "train",
        "alice",
        "1 node with 1 device each (any kind)",
        "python train.py",
        "node-1: cpu-0: running",
    ):
        assert words in out
    assert "step 5 loss 0.25" in out
    assert "kind-11" in out
    assert "kind-1 " not in out
    assert "         4 |*\n" in out
    assert "99" not in out


def test_show_says_why_a_job_waits(service: HttpService, capsys: Captured) -> None:
    service.answer("GET /v1/jobs/j1", a_job(verdict=NO_DEVICE))
    service.answer("GET /v1/jobs/j1/events", EventPage(items=[]))
    service.answer("GET /v1/jobs/j1/metrics", MetricPage(items=[]))
    assert main(["show", "j1"]) == 0
    out = capsys.readouterr().out
    assert "verdict   waiting\n          all 4 devices are held (no_free_device)\n" in out


def test_show_json_is_the_view(service: HttpService, capsys: Captured) -> None:
    service.answer("GET /v1/jobs/j1", a_job())
    assert main(["show", "j1", "--json"]) == 0
    assert JobView.model_validate_json(capsys.readouterr().out) == a_job()


def test_logs_of_one_rank_come_as_they_were_written(service: HttpService, capsys: Captured) -> None:
    service.answer("GET /v1/jobs/j1", a_job())
    service.lines("GET /v1/jobs/j1/logs", a_piece("a\x1b[1m"), a_piece("b\nc", offset=5))
    assert main(["logs", "j1"]) == 0
    assert capsys.readouterr().out == "a\x1b[1mb\nc"


def test_logs_of_several_ranks_do_not_mix_within_a_line(service: HttpService, capsys: Captured) -> None:
    service.answer("GET /v1/jobs/j1", a_job(spec=JobSpec(command=["x"], nodes=2)))
    pieces = [
        a_piece("one "),
        a_piece("uno ", rank=1),
        a_piece("two\nrest", offset=4),
        a_piece("due\n", rank=1, offset=4),
    ]
    service.lines("GET /v1/jobs/j1/logs", *pieces, a_piece("err\n", stream="stderr"))
    assert main(["logs", "j1"]) == 0
    assert capsys.readouterr().out.splitlines() == ["[0] one two", "[1] uno due", "[0] err", "[0] rest"]


def test_logs_on_a_terminal_cannot_steer_it(
    service: HttpService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.answer("GET /v1/jobs/j1", a_job())
    service.lines("GET /v1/jobs/j1/logs", a_piece("a\x1b[2J\x07b\n"))
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    assert main(["logs", "j1"]) == 0
    assert capsys.readouterr().out == "ab\n"


def test_logs_passes_its_filters_on(service: HttpService) -> None:
    service.answer("GET /v1/jobs/j1", a_job(state=JobState.SUCCEEDED))
    service.lines("GET /v1/jobs/j1/logs")
    assert main(["logs", "j1", "-f", "--rank", "1", "--stream", "stderr"]) == 0
    asked = next(asked for asked in service.asked if asked.path.endswith("/logs"))
    assert asked.query == {"follow": ["true"], "rank": ["1"], "stream": ["stderr"]}


def test_cancel_goes_on_after_a_job_that_cannot_be_cancelled(service: HttpService, capsys: Captured) -> None:
    service.refuse("POST /v1/jobs/j1/cancel", 409, "job-ended", "The job has ended.")
    service.answer("POST /v1/jobs/j2/cancel", a_job("j2", state=JobState.CANCELLED))
    service.answer("POST /v1/jobs/j3/cancel", a_job("j3", state=JobState.RUNNING))
    assert main(["cancel", "j1", "j2", "j3"]) == 2
    out, err = capsys.readouterr()
    assert out == "j2 cancelled\nj3 is being stopped\n"
    assert err == "ergon: j1: The job has ended.\n"


def test_nodes_shows_what_is_held(service: HttpService, capsys: Captured) -> None:
    service.answer("GET /v1/nodes", NodePage(items=[a_node(holder="j1")]))
    assert main(["nodes"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["NODE", "STATE", "DEVICES", "HELD"]
    assert row.split()[:9] == ["node-1", "ready", "2xcpu", "1/2", "2", "8.0GiB", "?", "-", "40"]


def test_nodes_shows_power_budgets_below(service: HttpService, capsys: Captured) -> None:
    budget = PowerBudgetView(name="rack-7", limit_w=22_000.0, planned_w=20_500.0, nodes=4)
    service.answer("GET /v1/nodes", NodePage(items=[a_node()], power_budgets=[budget]))
    assert main(["nodes"]) == 0
    *_, head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["POWER", "BUDGET", "NODES", "DRAW", "W", "LIMIT", "W", "FREE", "W"]
    assert row.split() == ["rack-7", "4", "20500", "22000", "1500"]


def test_nodes_shows_what_they_keep_and_how_fast_they_fetch(service: HttpService, capsys: Captured) -> None:
    link = LinkView(source="service", wait_s=0.036, bytes_per_s=50 << 20, spread=0.3, fetches=2)
    known = {"cache_entries": 1, "cache_bytes": 3 << 20, "links": [link]}
    service.answer("GET /v1/nodes", NodePage(items=[a_node().model_copy(update=known), a_node()]))
    assert main(["nodes", "--links"]) == 0
    head, *rows = (row.split() for row in capsys.readouterr().out.splitlines())
    assert head == ["NODE", "KEEPS", "SOURCE", "FETCHES", "WAIT", "SPEED"]
    assert rows == [["node-1", "3.0MiB", "service", "2", "36ms", "50.0MiB/s"], ["node-1", "0B", "-", "-", "-", "-"]]


@pytest.mark.parametrize(("limits", "shown"), [(["memory", "processes"], "memory, processes"), ([], "-"), (None, "?")])
def test_nodes_shows_what_is_limited(
    service: HttpService, capsys: Captured, limits: list[str] | None, shown: str
) -> None:
    service.answer("GET /v1/nodes", NodePage(items=[a_node().model_copy(update={"limits": limits})]))
    assert main(["nodes"]) == 0
    assert re.split(r"  +", capsys.readouterr().out.splitlines()[1])[6] == shown


def test_nodes_says_which_devices_are_out_of_use_and_why(service: HttpService, capsys: Captured) -> None:
    hot = DeviceView(id="cpu-9", kind="cpu", index=9, memory_bytes=0, condition=DeviceCondition.UNFIT, reason="too hot")
    node = a_node()
    service.answer("GET /v1/nodes", NodePage(items=[node.model_copy(update={"devices": [*node.devices, hot]})]))
    assert main(["nodes"]) == 0
    out, err = capsys.readouterr()
    assert "ready, 1 unfit" in out
    assert err == "node-1: cpu 9 (cpu-9) is unfit: too hot\n"


def test_report_shows_nodes_users_energy_and_the_gap(service: HttpService, capsys: Captured) -> None:
    service.answer("GET /v1/reports/allocation", a_report())
    assert main(["report", "--start", "2031-05-01T12:00Z", "--end", "2031-05-01T15:00+02:00"]) == 0
    out = capsys.readouterr().out
    assert ["node-1", "2", "2.000", "0.500", "1.500", "0.040000", "0.030000", "modelled"] in map(
        str.split, out.splitlines()
    )
    for words in ("node-1", "alice", "0.040000 kWh (modelled)", "0.048000 kWh with a PUE of 1.2", "2.34% at most"):
        assert words in out
    assert service.asked[0].query["format"] == ["json"]
    assert service.asked[0].query["start"][0].startswith("2031-05-01T")


def test_report_shows_costs_where_there_are_prices(service: HttpService, capsys: Captured) -> None:
    report = a_report()
    (alice,) = report.users
    prices = {"price_per_kwh": 0.25, "currency": "SEK", "cost": 0.012, "carbon_g_per_kwh": 400.0, "carbon_kg": 0.0192}
    users = [alice.model_copy(update={"cost": 0.003, "carbon_kg": 0.0048})]
    service.answer("GET /v1/reports/allocation", report.model_copy(update={**prices, "users": users}))
    assert main(["report"]) == 0
    out = capsys.readouterr().out
    assert ["alice", "1", "0.500", "0.010000", "modelled", "0.003000", "0.004800"] in map(str.split, out.splitlines())
    for words in ("cost 0.01 SEK, at 0.25 SEK/kWh", "CO2 0.019200 kg, at 400 g/kWh", "energy gap 150.0%"):
        assert words in out


def test_the_report_of_a_user_has_no_figures_of_the_cluster(service: HttpService, capsys: Captured) -> None:
    service.answer("GET /v1/reports/allocation", a_report(admin=False))
    assert main(["report"]) == 0
    out = capsys.readouterr().out
    assert "alice" in out
    assert "NODE" not in out
    assert "None" not in out
    assert "start" not in service.asked[0].query


def test_report_csv_is_the_services_own(service: HttpService, capsys: Captured) -> None:
    service.answers["GET /v1/reports/allocation"] = [(200, "node,kWh\r\nnode-1,0.04\r\n")]
    assert main(["report", "--csv"]) == 0
    assert capsys.readouterr().out.splitlines() == ["node,kWh", "node-1,0.04"]
    assert service.asked[0].query["format"] == ["csv"]


def test_plans_lists_cycles_with_their_gap(service: HttpService, capsys: Captured) -> None:
    service.answer("GET /v1/cycles", CyclePage(items=[a_cycle(8), a_cycle(7)]))
    assert main(["plans"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["CYCLE", "8", "7"]
    assert "0.50%" in rows[1]


def test_one_plan_comes_with_its_verdicts(service: HttpService, capsys: Captured) -> None:
    service.answer("GET /v1/cycles/7", a_cycle())
    assert main(["plans", "7"]) == 0
    out = capsys.readouterr().out
    assert "gap 0.50% (cpsat, optimal)" in out
    assert [row.split(maxsplit=2) for row in out.splitlines()[-2:]] == [
        ["j1", "placed"],
        ["j2", "waiting", "no device is free"],
    ]


@pytest.mark.parametrize(
    ("words", "route"),
    [("jobs", "GET /v1/jobs"), ("nodes", "GET /v1/nodes"), ("plans", "GET /v1/cycles"), ("show j1", "GET /v1/jobs/j1")],
)
def test_a_refused_token_is_one_line_with_exit_code_2(
    service: HttpService, capsys: Captured, words: str, route: str
) -> None:
    service.refuse(route, 401, "unauthorised", "The token is not known; make one.")
    assert main(words.split()) == 2
    assert one_error_line(capsys) == "ergon: The token is not known; make one.\n"


def test_what_the_service_says_cannot_steer_the_terminal(service: HttpService, capsys: Captured) -> None:
    service.refuse("GET /v1/jobs/j1", 404, "unknown-job", "no job\n\x1b[2J here")
    assert main(["show", "j1"]) == 2
    assert one_error_line(capsys) == "ergon: no job  here\n"


def test_a_service_that_is_not_there_is_one_line_with_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("ergon.connection.FIRST_PAUSE_S", 0.0)
    with http_service() as gone:
        pass
    monkeypatch.setenv("ERGON_SERVER", gone.url)
    assert main(["jobs"]) == 3
    assert "`ergon up`" in one_error_line(capsys)


def test_without_a_server_the_remedy_is_named(capsys: Captured) -> None:
    assert main(["jobs"]) == 2
    assert "`ergon up`" in one_error_line(capsys)


def test_a_misspelt_variable_is_an_error_that_names_the_right_one(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("ERGON_SEVRER", "x")
    assert main(["jobs"]) == 2
    assert one_error_line(capsys) == ("ergon: unknown environment variable ERGON_SEVRER; did you mean ERGON_SERVER?\n")


def test_help_and_version(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert f"protocol {PROTOCOL_VERSION}" in capsys.readouterr().out
    assert main([]) == 0
    listed = capsys.readouterr().out
    for command in ["up", "demo", "submit", "jobs", "show", "logs", "cancel", "nodes", "report", "plans", "doctor"]:
        assert f"\n  {command} " in listed
        assert main([command, "--help"]) == 0
        assert "--json" in capsys.readouterr().out


def findings(capsys: Captured) -> dict[str, tuple[str, str]]:
    rows = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    return {row["what"]: (row["level"], row["message"]) for row in rows}


def healthy(service: HttpService) -> None:
    service.answer("GET /v1/version", ServiceView(name="ergon", version="0.1.0", protocol=PROTOCOL_VERSION))
    service.answer("GET /v1/me", IdentityView(user="alice", role=Role.USER))
    service.answer("GET /v1/nodes", NodePage(items=[a_node()]))
    service.answer("GET /v1/alarms", AlarmPage(items=[]))


def test_doctor_finds_a_healthy_service_healthy(service: HttpService, capsys: Captured) -> None:
    healthy(service)
    assert main(["doctor", "--json"]) == 0
    found = findings(capsys)
    assert found["token"] == ("ok", "belongs to alice (user)")
    assert found["nodes"] == ("ok", "1 of 1 ready")
    assert found["server"][0] == "ok"
    assert main(["doctor"]) == 0
    assert "ok       token: belongs to alice (user)\n" in capsys.readouterr().out


def test_doctor_names_the_first_thing_that_is_wrong_and_the_remedy(service: HttpService, capsys: Captured) -> None:
    healthy(service)
    service.answer("GET /v1/nodes", NodePage(items=[]))
    assert main(["doctor", "--json"]) == 1
    level, message = findings(capsys)["nodes"]
    assert level == "problem"
    assert "start an agent" in message

    service.refuse("GET /v1/me", 401, "unauthorised", "The token is not known.")
    assert main(["doctor", "--json"]) == 1
    found = findings(capsys)
    assert found["token"] == ("problem", "The token is not known.")
    assert "nodes" not in found

    service.answer("GET /v1/version", ServiceView(name="ergon", version="9", protocol=PROTOCOL_VERSION + 1))
    assert main(["doctor", "--json"]) == 1
    assert findings(capsys)["server"][0] == "problem"


def test_doctor_names_packages_that_are_missing(
    service: HttpService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy(service)
    monkeypatch.setattr(doctor, "EXTRAS", {"train": ("to run the recipes", ("json", "no_such_module"))})
    monkeypatch.setattr(doctor, "POSTGRES", "no_such_server")
    monkeypatch.setenv("PATH", "")
    assert main(["doctor", "--json"]) == 0
    found = findings(capsys)
    assert found["packages [train]"] == (
        "note",
        "no_such_module missing; to run the recipes: pip install 'ergon[train]'",
    )
    assert found["embedded PostgreSQL"][0] == "note"
    assert found["GPU"][0] == "note"


COMMAND = [sys.executable, "-c", "import sys; from ergon.cli.main import main; sys.exit(main())"]


def test_a_reader_that_leaves_early_is_no_error(service: HttpService) -> None:
    service.answer("GET /v1/jobs", JobPage(items=[a_job(f"j{n}") for n in range(2_000)]))
    with subprocess.Popen(
        [*COMMAND, "jobs", "--all", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("{")
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_alarms_are_listed_and_found_by_the_doctor(service: HttpService, capsys: Captured) -> None:
    healthy(service)
    assert main(["alarms"]) == 0
    assert capsys.readouterr().err == "no alarms\n"
    alarm = AlarmView(kind="node_closed", subject="n1", message="n1 gets nothing new: mend it", raised_at=NOON)
    service.answer("GET /v1/alarms", AlarmPage(items=[alarm]))
    assert main(["alarms"]) == 1
    assert "node_closed  n1 gets nothing new: mend it" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 1
    assert findings(capsys)["alarms"] == ("problem", "n1 gets nothing new: mend it")

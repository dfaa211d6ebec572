"""Job files, arrays and the verbs on the command line, against a real HTTP server."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ergon.cli.main import main
from protocol.batch import BatchItem, BatchRequest, BatchView, DryRunItem, DryRunRequest, DryRunView
from protocol.jobs import ArrayPlace, ArraySpec, ArrayView, Dependency, JobPage, JobSpec, JobView, Reason, VerdictView
from protocol.states import JobState
from tests.ergon.builders import NOON, a_job
from tests.ergon.http_service import HttpService, http_service

Captured = pytest.CaptureFixture[str]

WAITS = VerdictView(outcome="waiting", reasons=[Reason(code="held", message="it is held")])
NEVER = VerdictView(outcome="impossible", reasons=[Reason(code="too_few_nodes", message="9 nodes asked for")])


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HttpService]:
    for name in [name for name in os.environ if name.startswith("ERGON_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with http_service() as service:
        monkeypatch.setenv("ERGON_SERVER", service.url)
        monkeypatch.setenv("ERGON_TOKEN", "secret")
        yield service


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "jobs.yaml"
    path.write_text("jobs:\n- {name: a, command: [x]}\n- {name: b, command: [y], array: {count: 3}}\n")
    return str(path)


def test_a_file_is_submitted_in_one_request(service: HttpService, capsys: Captured, file: str) -> None:
    items = [BatchItem(id="job-1", verdict=WAITS), BatchItem(id="array-2", verdict=NEVER)]
    service.answer("POST /v1/jobs/batch", BatchView(items=items), status=201)
    assert main(["submit", "--no-ship", "-f", file]) == 0
    (asked,) = service.asked
    assert [spec.name for spec in BatchRequest.model_validate_json(asked.body).jobs] == ["a", "b"]
    assert asked.headers["Idempotency-Key"]
    out, err = capsys.readouterr()
    assert out == "job-1\narray-2\n"
    assert err == "2 submitted; 1 of them wait for nodes that are not there, such as array-2: 9 nodes asked for\n"


def test_waiting_for_a_file_fails_if_one_job_failed(service: HttpService, capsys: Captured, file: str) -> None:
    items = [BatchItem(id="job-1"), BatchItem(id="array-2")]
    service.answer("POST /v1/jobs/batch", BatchView(items=items), status=201)
    service.answer("GET /v1/jobs", JobPage(items=[a_job("job-4"), a_job("job-3")]))
    for job, state in (("job-1", JobState.SUCCEEDED), ("job-3", JobState.SUCCEEDED), ("job-4", JobState.FAILED)):
        service.answer(f"GET /v1/jobs/{job}", a_job(job, state=state, reason="a rank failed"))
    assert main(["submit", "--no-ship", "-f", file, "--wait"]) == 1
    err = capsys.readouterr().err
    assert "job-4:\nfailed" in err
    assert "job-1" not in err
    assert service.asked[2].query["array"] == ["array-2"]


def test_a_dry_run_says_what_would_be(service: HttpService, capsys: Captured, file: str) -> None:
    spec = JobSpec(name="a", command=["x"])
    placed = DryRunItem(spec=spec, verdict=VerdictView(outcome="placed"), nodes=["n1", "n2"])
    items = [placed, DryRunItem(spec=spec, verdict=WAITS)]
    service.answer("POST /v1/jobs/dry-run", DryRunView(items=items))
    assert main(["submit", "--no-ship", "-f", file, "--dry-run"]) == 0
    assert len(DryRunRequest.model_validate_json(service.asked[0].body).jobs) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a: 1 node with 1 device each")
    assert (lines[1], lines[3]) == ("  would start now on n1, n2", "  would wait: it is held")
    service.answer("POST /v1/jobs/dry-run", DryRunView(items=[DryRunItem(spec=spec, verdict=NEVER)]))
    assert main(["submit", "--no-ship", "--dry-run", "--nodes", "9", "x"]) == 1
    assert "could not run on the present nodes: 9 nodes asked for" in capsys.readouterr().out
    assert {asked.path for asked in service.asked} == {"/v1/jobs/dry-run"}


def test_options_for_arrays_dependencies_and_retries(service: HttpService, capsys: Captured) -> None:
    service.answer("POST /v1/jobs/batch", BatchView(items=[BatchItem(id="array-1")]), status=201)
    words = "submit --no-ship --array 6 --array-limit 2 --after job-1 --after array-2:end --max-retries 3 x"
    assert main(words.split()) == 0
    (spec,) = BatchRequest.model_validate_json(service.asked[0].body).jobs
    assert spec == JobSpec(
        command=["x"],
        array=ArraySpec(count=6, limit=2),
        after=[Dependency(job="job-1"), Dependency(job="array-2", on="end")],
        max_retries=3,
    )
    assert capsys.readouterr().out == "array-1\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("submit --array-limit 2 x", "--array-limit goes with --array COUNT"),
        ("submit --array 0 x", "--array (count): "),
        ("submit --after job-1:start x", "--after job-1:start: write JOB, JOB:success or JOB:end"),
        ("submit --after ? x", "--after (0.job): "),
        ("submit --max-retries -1 x", "--max-retries: "),
        ("submit --array 2 --follow x", "--follow shows one job"),
        ("submit -f FILE --nodes 2", "--nodes and --file do not go together"),
        ("submit -f FILE x", "COMMAND and --file do not go together"),
        ("submit -f FILE --follow", "--follow shows one job"),
        ("submit -f none.yaml", "none.yaml: cannot be read: No such file or directory"),
        ("priority high j", "'PRIORITY'"),
        ("priority 5000 j", "'PRIORITY'"),
        ("hold", "JOB..."),
    ],
)
def test_bad_input_is_one_line_and_asks_nobody(
    service: HttpService, capsys: Captured, file: str, words: str, says: str
) -> None:
    assert main(words.replace("FILE", file).split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ergon: ")
    assert says in err
    assert err.count("\n") == 1
    assert service.asked == []


def test_further_faults_of_a_file_follow_on_lines_of_their_own(
    service: HttpService, capsys: Captured, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("command: [a]\nnodess: 1\npriorty: 2\n")
    assert main(["submit", "-f", str(bad)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"ergon: {bad}:2: nodess: unknown field; did you mean nodes?",
        f"  {bad}:3: priorty: unknown field; did you mean priority?",
    ]


@pytest.mark.parametrize(
    ("words", "route", "line"),
    [
        ("hold j1", "POST /v1/jobs/j1/hold", "j1 held: it is held"),
        ("release j1", "POST /v1/jobs/j1/release", "j1 held: it is held"),
        ("resubmit j1", "POST /v1/jobs/j1/resubmit", "j1"),
        ("priority 7 j1", "PATCH /v1/jobs/j1", "j1 held, priority 0"),
    ],
)
def test_verbs(service: HttpService, capsys: Captured, words: str, route: str, line: str) -> None:
    service.answer(route, a_job(state=JobState.HELD, verdict=WAITS))
    assert main(words.split()) == 0
    assert capsys.readouterr().out == f"{line}\n"
    assert f"{service.asked[0].method} {service.asked[0].path}" == route
    if words.startswith("priority"):
        assert json.loads(service.asked[0].body) == {"priority": 7}
    assert main([*words.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "held"


@pytest.mark.parametrize("verb", ["hold", "release", "resubmit", "priority 1"])
def test_a_refused_job_does_not_keep_the_others(service: HttpService, capsys: Captured, verb: str) -> None:
    method, path = ("PATCH", "") if verb.startswith("priority") else ("POST", f"/{verb}")
    service.refuse(f"{method} /v1/jobs/j1{path}", 409, "job-ended", "job j1 has already failed")
    service.answer(f"{method} /v1/jobs/j2{path}", a_job("j2", state=JobState.HELD))
    assert main([*verb.split(), "j1", "j2"]) == 2
    out, err = capsys.readouterr()
    assert "j2" in out
    assert err == "ergon: j1: job j1 has already failed\n"


ARRAY = ArrayView(
    id="array-1", user="alice", count=6, limit=2, states={JobState.RUNNING: 2, JobState.QUEUED: 4}, submitted_at=NOON
)


def test_arrays_are_listed_shown_and_cancelled_as_one(service: HttpService, capsys: Captured) -> None:
    place = ArrayPlace(id="array-1", index=0, count=6, limit=2, states=ARRAY.states)
    service.answer("GET /v1/jobs", JobPage(items=[a_job("j2").model_copy(update={"array": place}), a_job("j1")]))
    assert main(["jobs"]) == 0
    assert service.asked[-1].query["folded"] == ["true"]
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first.split()[0] == "array-1"
    assert "4 queued, 2 running" in first
    assert second.split()[0] == "j1"

    one = a_job("j2").model_copy(update={"array": place.model_copy(update={"index": 3, "states": {}})})
    service.answer("GET /v1/jobs", JobPage(items=[one]))
    assert main(["jobs", "--array", "array-1"]) == 0
    assert (service.asked[-1].query["array"], service.asked[-1].query["folded"]) == (["array-1"], ["false"])
    assert "train[3]" in capsys.readouterr().out

    service.answer("GET /v1/arrays/array-1", ARRAY)
    assert main(["show", "array-1"]) == 0
    out = capsys.readouterr().out
    assert "6 jobs, at most 2 at a time" in out
    assert "4 queued, 2 running" in out

    service.answer("POST /v1/arrays/array-1/cancel", ARRAY)
    assert main(["cancel", "array-1"]) == 0
    assert capsys.readouterr().out == "array-1 4 queued, 2 running\n"


def test_schema_is_json(service: HttpService, capsys: Captured) -> None:
    assert main(["schema"]) == 0
    assert "FileJob" in json.loads(capsys.readouterr().out)["$defs"]
    assert service.asked == []


def test_submit_wait_says_anew_why_the_job_waits_when_that_changes(service: HttpService, capsys: Captured) -> None:
    def waits(code: str, message: str) -> JobView:
        return a_job(verdict=VerdictView(outcome="waiting", reasons=[Reason(code=code, message=message)]))

    service.answer("POST /v1/jobs", waits("busy", "4 of 4 devices are held"))
    told = [waits("busy", "4 of 4 devices are held"), waits("busy", "3 of 4"), waits("later", "it may wait")]
    service.answer("GET /v1/jobs/j1", *told, a_job(state=JobState.SUCCEEDED))
    assert main(["submit", "--no-ship", "--wait", "--", "x"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("waiting")]
    assert lines == ["waiting: 4 of 4 devices are held", "waiting: it may wait"]

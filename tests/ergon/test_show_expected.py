"""`ergon show` on what is expected of a job."""

from collections.abc import Iterator

import pytest

from ergon.cli.main import main
from protocol.jobs import (
    AttemptView,
    EventPage,
    ExpectedView,
    InputsView,
    JobSpec,
    MemberView,
    MetricPage,
    SampleEnergyView,
)
from protocol.states import AttemptState, JobState
from tests.ergon.builders import NOON, a_job
from tests.ergon.http_service import HttpService, http_service

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpService]:
    with http_service() as service:
        monkeypatch.setenv("ERGON_SERVER", service.url)
        monkeypatch.setenv("ERGON_TOKEN", "secret")
        yield service


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (JobState.RUNNING, "ends in about 2h 10m (1h 50m to 2h 40m), from its progress"),
        (JobState.QUEUED, "runs for about 2h 10m on h100 (1h 50m to 2h 40m), from its progress"),
    ],
)
def test_show_says_how_long_a_job_will_run(service: HttpService, capsys: Captured, state: JobState, words: str) -> None:
    expected = ExpectedView(
        seconds=7_800, low_s=6_600, high_s=9_600, kind="h100", source="progress", because="from its progress"
    )
    service.answer("GET /v1/jobs/j1", a_job(state=state, expected=expected))
    service.answer("GET /v1/jobs/j1/events", EventPage(items=[]))
    service.answer("GET /v1/jobs/j1/metrics", MetricPage(items=[]))
    assert main(["show", "j1"]) == 0
    assert f"expected  {words}\n" in capsys.readouterr().out


def test_show_tells_the_range_and_what_each_attempt_got(service: HttpService, capsys: Captured) -> None:
    expected = ExpectedView(seconds=60, low_s=50, high_s=70, kind="", nodes=1, source="estimate", because="said")
    members = [MemberView(node=f"n{number}", devices=[], state=AttemptState.ENDED) for number in range(3)]
    attempt = AttemptView(id="t", epoch=1, state=AttemptState.ENDED, granted_at=a_job().submitted_at, members=members)
    spec = JobSpec(command=["true"], nodes="1-4")
    job = a_job(state=JobState.QUEUED, spec=spec, expected=expected).model_copy(update={"attempts": [attempt]})
    service.answer("GET /v1/jobs/j1", job)
    service.answer("GET /v1/jobs/j1/events", EventPage(items=[]))
    service.answer("GET /v1/jobs/j1/metrics", MetricPage(items=[]))
    assert main(["show", "j1"]) == 0
    shown = capsys.readouterr().out
    assert "asks for  1-4 nodes with 1 device each" in shown
    assert "expected  runs for about 1m 00s on 1 node (50s to 1m 10s), said" in shown
    assert "attempt 1 ended, on 3 of 1-4 nodes, granted" in shown


def test_show_says_what_meters_counted_of_the_same_work(service: HttpService, capsys: Captured) -> None:
    expected = ExpectedView(
        seconds=60, low_s=50, high_s=70, kind="t4", source="past_runs", because="from 1 run of the same work"
    )
    drawn = expected.model_copy(update={"device_w": 31.4, "metered_on": ["t4", "v100"]})
    energy = SampleEnergyView(joules=0.01234, per="token", device_w=61.7, quality="measured")
    job = a_job(state=JobState.QUEUED, expected=drawn).model_copy(update={"sample_energy": energy})
    service.answer("GET /v1/jobs/j1", job)
    service.answer("GET /v1/jobs/j1/events", EventPage(items=[]))
    service.answer("GET /v1/jobs/j1/metrics", MetricPage(items=[]))
    assert main(["show", "j1"]) == 0
    shown = capsys.readouterr().out
    assert "of the same work; 31 W above idle each device, as metered on t4, v100\n" in shown
    assert "energy    0.0123 J per token, at 61.7 W each device (measured)\n" in shown


def test_show_says_under_which_cap_an_attempt_runs(service: HttpService, capsys: Captured) -> None:
    capped = AttemptView(
        id="try-1", epoch=1, state=AttemptState.RUNNING, granted_at=NOON, cap_w=250.0, slower=1.0979, members=[]
    )
    service.answer("GET /v1/jobs/j1", a_job(state=JobState.RUNNING).model_copy(update={"attempts": [capped]}))
    service.answer("GET /v1/jobs/j1/events", EventPage(items=[]))
    service.answer("GET /v1/jobs/j1/metrics", MetricPage(items=[]))
    assert main(["show", "j1"]) == 0
    assert ", capped at 250 W each device, about 9.8% slower\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "inputs", "words"),
    [
        (
            JobState.QUEUED,
            {"size_bytes": 5 << 29, "nodes": ["a", "b"], "missing_bytes": 5 << 29, "fetch_s": 14.0},
            "2.5GiB of code and data, kept by a, b; elsewhere it takes about 14s to fetch",
        ),
        (
            JobState.QUEUED,
            {"size_bytes": 5 << 29, "nodes": [], "missing_bytes": 5 << 29, "fetch_s": 14.0},
            "2.5GiB of code and data, kept by no node; it takes about 14s to fetch",
        ),
        (
            JobState.STARTING,
            {"size_bytes": 5 << 29, "nodes": ["a"], "missing_bytes": 1 << 30, "fetch_s": 5.0},
            "fetching 1.0GiB: about 5.0s",
        ),
        (
            JobState.STARTING,
            {"size_bytes": 0, "unsized": 1, "nodes": [], "missing_bytes": 0, "fetch_s": 0.1},
            "1 dataset of unknown size, for no node has fetched it",
        ),
    ],
)
def test_show_says_what_is_fetched(
    service: HttpService, capsys: Captured, state: JobState, inputs: dict[str, object], words: str
) -> None:
    job = a_job(state=state).model_copy(update={"inputs": InputsView.model_validate(inputs)})
    service.answer("GET /v1/jobs/j1", job)
    service.answer("GET /v1/jobs/j1/events", EventPage(items=[]))
    service.answer("GET /v1/jobs/j1/metrics", MetricPage(items=[]))
    assert main(["show", "j1"]) == 0
    assert f"inputs    {words}\n" in capsys.readouterr().out

"""The SDK's side of the wire, against a transport that answers as the test says."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime

import httpx
import pytest

from ergon import connection
from ergon.client import Client
from ergon.errors import (
    ErgonError,
    NotConfigured,
    NotFound,
    RequestRefused,
    Unauthorised,
    UnexpectedAnswer,
    Unreachable,
    WaitTimedOut,
)
from protocol.base import View
from protocol.errors import ErrorBody, FieldError
from protocol.jobs import EventPage, JobPage, JobSpec, MetricPage
from protocol.states import FINAL_JOB_STATES, JobState
from tests.ergon.builders import a_job, a_piece, a_point, an_event

Answer = httpx.Response | Exception
SPEC = JobSpec(name="hello", command=["true"], nodes=2)


class Wire:
    """Answers requests in order; the last answer repeats. Keeps what was asked and how long the client waited."""

    def __init__(self, *answers: Answer | Callable[[httpx.Request], httpx.Response]) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.slept: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else answer(request)

    def client(self, server: str = "http://ergon.test:8765", token: str = "secret") -> Client:
        return Client(server, token, transport=httpx.MockTransport(self), sleep=self.slept.append)


def ok(view: View, status: int = 200) -> httpx.Response:
    return httpx.Response(status, text=view.model_dump_json())


def refusal(status: int, kind: str = "x", detail: str = "no", *fields: FieldError) -> httpx.Response:
    body = ErrorBody(type=f"urn:ergon:{kind}", title="t", status=status, detail=detail, errors=list(fields))
    return httpx.Response(status, text=body.model_dump_json())


def lines(*texts: str, broken: bool = False) -> httpx.Response:
    class Stream(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield from (text.encode() for text in texts)
            if broken:
                raise httpx.ReadError("connection reset")

    return httpx.Response(200, stream=Stream())


def piece(text: str, offset: int = 0) -> str:
    return a_piece(text, offset=offset).model_dump_json() + "\n"


def test_submit_sends_the_spec_the_token_and_a_key() -> None:
    wire = Wire(ok(a_job(), 201))
    assert wire.client().submit(SPEC).id == "j1"
    [request] = wire.requests
    assert (request.method, request.url.path) == ("POST", "/v1/jobs")
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers["Content-Type"] == "application/json"
    assert len(request.headers["Idempotency-Key"]) == 36
    assert JobSpec.model_validate_json(request.content) == SPEC


def test_two_submissions_do_not_share_a_key() -> None:
    wire = Wire(ok(a_job()))
    client = wire.client()
    client.submit(SPEC)
    client.submit(SPEC)
    first, second = (request.headers["Idempotency-Key"] for request in wire.requests)
    assert first != second


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("closed"),
        httpx.Response(502, text="<html>bad gateway</html>"),
        refusal(503, "unavailable"),
    ],
    ids=lambda trouble: trouble.__class__.__name__ + str(getattr(trouble, "status_code", "")),
)
def test_a_submission_that_may_have_been_lost_is_repeated_with_the_same_key(trouble: Answer) -> None:
    wire = Wire(trouble, trouble, ok(a_job()))
    assert wire.client().submit(SPEC).id == "j1"
    assert len({request.headers["Idempotency-Key"] for request in wire.requests}) == 1
    assert len({request.content for request in wire.requests}) == 1
    assert len(wire.requests) == 3


def test_tries_are_bounded_and_the_error_names_the_key_and_the_remedy() -> None:
    wire = Wire(httpx.ConnectError("refused"))
    with pytest.raises(Unreachable, match=r"ergon\.test.*is it running.*key my-key is safe") as caught:
        wire.client().submit(SPEC, key="my-key")
    assert len(wire.requests) == connection.TRIES
    assert caught.value.exit_code == 3


def test_pauses_grow_and_carry_jitter() -> None:
    wire = Wire(httpx.ConnectError("refused"))
    with pytest.raises(Unreachable):
        wire.client().me()
    limits = [connection.FIRST_PAUSE_S * 2**n for n in range(connection.TRIES - 1)]
    assert len(wire.slept) == len(limits)
    assert all(0.5 * limit <= pause <= limit for pause, limit in zip(wire.slept, limits, strict=True))
    assert any(pause != limit for pause, limit in zip(wire.slept, limits, strict=True))


def test_retry_after_is_obeyed() -> None:
    busy = refusal(503)
    busy.headers["Retry-After"] = "7"
    wire = Wire(busy, ok(a_job()))
    wire.client().job("j1")
    assert wire.slept == [7.0]


@pytest.mark.parametrize("value", ["3600", "99999999999"])
def test_a_service_that_wants_us_to_wait_for_long_is_not_waited_for(value: str) -> None:
    busy = refusal(503, detail="maintenance")
    busy.headers["Retry-After"] = value
    wire = Wire(busy)
    with pytest.raises(Unreachable, match="maintenance"):
        wire.client().job("j1")
    assert wire.slept == []


def test_a_date_in_retry_after_is_not_compared_with_our_clock() -> None:
    busy = refusal(503)
    busy.headers["Retry-After"] = "Fri, 31 Dec 2099 23:59:59 GMT"
    wire = Wire(busy, ok(a_job()))
    wire.client().job("j1")
    assert wire.slept[0] < 1.0


@pytest.mark.parametrize(
    ("answer", "kind", "exit_code"),
    [
        (refusal(401), Unauthorised, 2),
        (refusal(403), Unauthorised, 2),
        (refusal(404, "unknown-job"), NotFound, 2),
        (refusal(409, "job-ended"), RequestRefused, 2),
        (refusal(422, "invalid"), RequestRefused, 2),
        (refusal(500), UnexpectedAnswer, 3),
        (httpx.Response(404, text="<html>not found</html>"), UnexpectedAnswer, 3),
        (httpx.Response(307, headers={"Location": "http://elsewhere"}), UnexpectedAnswer, 3),
        (httpx.Response(200, text="<html>welcome</html>"), UnexpectedAnswer, 3),
        (httpx.Response(200, text="{}"), UnexpectedAnswer, 3),
    ],
)
def test_every_other_answer_is_one_error_and_is_not_repeated(
    answer: httpx.Response, kind: type[ErgonError], exit_code: int
) -> None:
    wire = Wire(answer)
    with pytest.raises(kind) as caught:
        wire.client().job("j1")
    assert type(caught.value) is kind
    assert caught.value.exit_code == exit_code
    assert len(wire.requests) == 1


def test_a_refusal_keeps_its_body_and_names_the_fields() -> None:
    fault = FieldError(field="spec.nodes", message="at least 1")
    wire = Wire(refusal(422, "invalid", "The spec cannot be accepted.", fault))
    with pytest.raises(RequestRefused, match=r"The spec cannot be accepted\. \(spec\.nodes: at least 1\)") as caught:
        wire.client().submit(SPEC)
    assert (caught.value.type, caught.value.status) == ("urn:ergon:invalid", 422)
    assert caught.value.body.errors == [fault]


def test_a_refusal_does_not_say_the_same_twice() -> None:
    wire = Wire(refusal(422, "invalid", "There is no queue x.", FieldError(field="queue", message="no queue x")))
    with pytest.raises(RequestRefused) as caught:
        wire.client().submit(SPEC)
    assert str(caught.value) == "There is no queue x."


def test_listings_read_all_pages_and_only_as_many_as_are_used() -> None:
    def page(request: httpx.Request) -> httpx.Response:
        number = int(request.url.params.get("cursor", "0"))
        job = a_job(f"j{number}")
        return ok(JobPage(items=[job], next=str(number + 1) if number < 2 else None))

    wire = Wire(page)
    assert [job.id for job in wire.client().jobs()] == ["j0", "j1", "j2"]
    wire = Wire(page)
    assert next(wire.client().jobs()).id == "j0"
    assert len(wire.requests) == 1


def test_filters_are_repeated_on_every_page_and_absent_ones_left_out() -> None:
    wire = Wire(ok(JobPage(items=[], next="c")), ok(JobPage(items=[])))
    states = [JobState.QUEUED, JobState.RUNNING]
    assert list(wire.client().jobs(states=states, user="alice", page_size=5)) == []
    first, second = (request.url.params for request in wire.requests)
    assert first.multi_items() == [("state", "queued"), ("state", "running"), ("user", "alice"), ("limit", "5")]
    assert second.multi_items() == [*first.multi_items(), ("cursor", "c")]


def test_events_and_metrics_are_paged() -> None:
    wire = Wire(ok(EventPage(items=[an_event(1)], next="c")), ok(EventPage(items=[an_event(2)])))
    assert [event.seq for event in wire.client().events("j1")] == [1, 2]
    wire = Wire(ok(MetricPage(items=[a_point(1, 0.5)])))
    assert [point.value for point in wire.client().metrics("j1", name="loss", rank=0)] == [0.5]
    assert str(wire.requests[0].url).endswith("/v1/jobs/j1/metrics?name=loss&rank=0")


@pytest.mark.parametrize("job_id", ["../nodes", "a/b", "a?b=c", "a#b", "%2e%2e"])
def test_an_id_cannot_leave_its_place_in_the_path(job_id: str) -> None:
    wire = Wire(refusal(404))
    with pytest.raises(NotFound):
        wire.client().job(job_id)
    path = wire.requests[0].url.raw_path.decode()
    assert path.startswith("/v1/jobs/")
    assert path.count("/") == 3
    assert not {"?", "#"} & set(path)


@pytest.mark.parametrize("job_id", ["", ".", ".."])
def test_an_id_that_http_would_swallow_is_refused(job_id: str) -> None:
    wire = Wire(refusal(404))
    with pytest.raises(ErgonError, match="is no id"):
        wire.client().job(job_id)
    assert wire.requests == []


def test_cancel_carries_a_key() -> None:
    wire = Wire(ok(a_job(state=JobState.CANCELLED)))
    assert wire.client().cancel("j1").state is JobState.CANCELLED
    assert wire.requests[0].url.path == "/v1/jobs/j1/cancel"
    assert wire.requests[0].headers["Idempotency-Key"]


@pytest.mark.parametrize("state", sorted(FINAL_JOB_STATES))
def test_wait_returns_when_the_job_has_ended(state: JobState) -> None:
    wire = Wire(ok(a_job()), ok(a_job(state=JobState.RUNNING)), ok(a_job(state=state)))
    assert wire.client().wait("j1").state is state
    assert len(wire.slept) == 2


def test_wait_outlives_a_restart_of_the_service() -> None:
    troubles = [httpx.ConnectError("refused")] * (connection.PATIENT_TRIES - 1)
    wire = Wire(ok(a_job()), *troubles, ok(a_job(state=JobState.SUCCEEDED)))
    assert wire.client().wait("j1").state is JobState.SUCCEEDED


def test_wait_gives_up_when_told_to() -> None:
    wire = Wire(ok(a_job(state=JobState.RUNNING)))
    with pytest.raises(WaitTimedOut, match="still running after 60 s"):
        wire.client().wait("j1", timeout_s=60)
    assert 60 <= sum(wire.slept) < 70


def test_logs_keep_every_character_that_is_no_newline() -> None:
    text = "a\u2028b\x85c\x0bd\re\tä"
    wire = Wire(lines(piece(text)))
    assert [found.text for found in wire.client().logs("j1")] == [text]
    assert wire.requests[0].url.params["follow"] == "false"


def test_a_line_of_a_log_may_arrive_in_parts() -> None:
    whole = piece("hällo")
    cut = whole.index("h") + 2
    wire = Wire(lines(whole[:3], whole[3:cut], whole[cut:] + piece("b", 6)[:-1]))
    assert [found.text for found in wire.client().logs("j1")] == ["hällo", "b"]


def test_following_resumes_after_a_break_without_repeating_anything() -> None:
    wire = Wire(
        lines(piece("a"), "\n", piece("b", 1), broken=True),
        httpx.ConnectError("refused"),
        lines(piece("a"), piece("b", 1), piece("c", 2)),
        ok(a_job(state=JobState.SUCCEEDED)),
    )
    assert [found.text for found in wire.client().follow_logs("j1")] == ["a", "b", "c"]


def test_following_goes_on_when_a_service_that_stops_ends_the_stream_politely() -> None:
    running, ended = ok(a_job(state=JobState.RUNNING)), ok(a_job(state=JobState.FAILED))
    wire = Wire(lines(piece("a")), running, lines(piece("a"), piece("b", 1)), ended)
    assert [found.text for found in wire.client().follow_logs("j1")] == ["a", "b"]


def test_following_gives_up_in_the_end() -> None:
    wire = Wire(httpx.ConnectError("refused"))
    with pytest.raises(Unreachable):
        list(wire.client().follow_logs("j1"))
    assert len(wire.requests) == connection.PATIENT_TRIES + 1


def test_following_an_unknown_job_is_an_error_at_once() -> None:
    wire = Wire(refusal(404, "unknown-job"))
    with pytest.raises(NotFound):
        list(wire.client().follow_logs("j1"))
    assert len(wire.requests) == 1


def test_a_log_line_that_is_none_is_an_error() -> None:
    wire = Wire(lines("what?\n"))
    with pytest.raises(UnexpectedAnswer, match="LogView"):
        list(wire.client().logs("j1"))


def test_a_report_needs_times_with_a_zone() -> None:
    with pytest.raises(ErgonError, match="no time zone"):
        Wire(refusal(500)).client().report(start=datetime(2031, 5, 1))  # noqa: DTZ001


@pytest.mark.parametrize(
    "server",
    [
        "localhost:8765",
        "8765",
        "ftp://host",
        "http://",
        "http://a:b",
        "http://a:99999999",
        "http://[",
        "http://a:0",
    ],
)
def test_an_address_that_is_none_is_refused_before_anything_is_sent(server: str) -> None:
    with pytest.raises(NotConfigured, match=r"give one like http://127\.0\.0\.1:8765"):
        Wire(refusal(500)).client(server)


@pytest.mark.parametrize("token", ["a b", "ä", "a\nb"])
def test_a_token_that_a_header_cannot_carry_is_refused(token: str) -> None:
    with pytest.raises(NotConfigured, match="token") as caught:
        Wire(refusal(500)).client(token=token)
    assert token not in str(caught.value)


def test_a_server_may_live_below_a_path() -> None:
    wire = Wire(ok(a_job()))
    wire.client("https://gate.test/ergon/").job("j1")
    assert str(wire.requests[0].url) == "https://gate.test/ergon/v1/jobs/j1"


@pytest.mark.parametrize(
    ("server", "proxied"),
    [("http://127.0.0.1:1", False), ("http://localhost:1", False), ("http://[::1]:1", False), ("http://a.test", True)],
)
def test_a_proxy_is_not_asked_for_this_very_machine(
    monkeypatch: pytest.MonkeyPatch, server: str, proxied: bool
) -> None:
    asked: list[bool] = []
    real = httpx.Client

    def watched(*, trust_env: bool, **rest: object) -> httpx.Client:
        asked.append(trust_env)
        return real(trust_env=trust_env, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(httpx, "Client", watched)
    Wire(refusal(500)).client(server).close()
    assert asked == [proxied]


def test_the_body_of_a_submission_leaves_defaults_out() -> None:
    wire = Wire(ok(a_job()))
    wire.client().submit(SPEC)
    assert json.loads(wire.requests[0].content) == {"name": "hello", "command": ["true"], "nodes": 2}

"""A client of today and services of other versions: what the first one answered, recorded, and what a later one may."""

import json
from collections.abc import Iterator

import httpx
import pytest

from ergon.client import Client
from ergon.errors import RequestRefused, UnexpectedAnswer
from protocol.errors import ErrorBody
from protocol.jobs import JobSpec, JobView
from protocol.states import EndReason, JobState
from protocol.version import PROTOCOL_HEADER, PROTOCOL_VERSION
from tests.ergon.builders import a_job
from tests.recorded import first_version

SUBMITTED, ENDED = first_version.CLIENT[2], first_version.CLIENT[3]


class FirstService:
    """Answers as the first version did, and as little as it did."""

    def __init__(self) -> None:
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        for exchange in first_version.CLIENT:
            path, _, query = exchange.path.partition("?")
            if (exchange.method, path) == (request.method, request.url.path) and ("csv" in query) == (
                "format=csv" in str(request.url)
            ):
                text = exchange.answer if isinstance(exchange.answer, str) else json.dumps(exchange.answer)
                return httpx.Response(exchange.status, text=text)
        body = ErrorBody(type="urn:ergon:http-404", title="There is nothing here", status=404, detail="Not Found")
        return httpx.Response(404, text=body.model_dump_json())


@pytest.fixture
def first() -> FirstService:
    return FirstService()


@pytest.fixture
def client(first: FirstService) -> Iterator[Client]:
    with Client("http://old", "secret", transport=httpx.MockTransport(first)) as client:
        yield client


def test_a_client_of_today_reads_what_the_first_service_answers(client: Client) -> None:
    assert client.version().protocol == 1
    assert client.me().user == "admin"
    job = client.job(ENDED.answer["id"])
    assert (job.state, job.attempts[0].reason) == (JobState.SUCCEEDED, EndReason.COMPLETED)
    assert (job.priority, job.array, job.spec.after) == (0, None, []), "what it did not know yet has its default"
    assert next(client.events(job.id)).kind == "submitted"
    assert {point.name for point in client.metrics(job.id)} == {"loss"}
    assert {piece.text for piece in client.logs(job.id)} == {"hello\n"}
    assert [found.id for found in client.jobs()] == [job.id]
    assert {node.name for node in client.nodes()} == {"node-1", "old-node"}
    assert client.node("old-node").cordoned is False
    assert client.report().nodes
    assert client.report_csv().startswith("kind,name")
    assert next(client.cycles(page_size=1)).id == 1
    [waits] = [exchange for exchange in first_version.CLIENT if exchange.path.endswith("/cancel")]
    assert client.cancel(waits.answer["id"]).state == JobState.CANCELLED


def test_a_job_that_needs_nothing_new_is_submitted_in_words_that_the_first_service_knows(
    client: Client, first: FirstService
) -> None:
    assert client.submit(JobSpec.model_validate(SUBMITTED.body), key="key-1").id == SUBMITTED.answer["id"]
    assert json.loads(first.asked[0].content) == SUBMITTED.body
    assert json.loads(first.asked[0].content).keys() <= first_version.REQUEST_FIELDS["JobSpec"]
    assert first.asked[0].headers[PROTOCOL_HEADER] == str(PROTOCOL_VERSION)


def test_what_an_older_service_does_not_have_is_named_with_the_remedy(client: Client) -> None:
    for call in (
        lambda: client.submit_many([JobSpec(command=["true"])]),
        lambda: client.hold("job-1"),
        lambda: client.ship(b"archive", "0" * 64),
        lambda: client.outputs("job-1"),
    ):
        with pytest.raises(UnexpectedAnswer, match="it is older than this client; upgrade the service"):
            call()


def test_a_client_of_another_protocol_is_told_what_to_upgrade(capsys: pytest.CaptureFixture[str]) -> None:
    detail = "the client speaks protocol 1, the service 2: upgrade the client"
    body = ErrorBody(type="urn:ergon:protocol", title="t", status=426, detail=detail)
    transport = httpx.MockTransport(lambda _: httpx.Response(426, text=body.model_dump_json()))
    with Client("http://new", "secret", transport=transport) as client, pytest.raises(RequestRefused) as caught:
        client.job("job-1")
    assert (str(caught.value), caught.value.exit_code) == (detail, 2)


def test_fields_and_reasons_of_a_newer_service_do_no_harm() -> None:
    job = json.loads(a_job(state=JobState.FAILED).model_dump_json())
    member = {"node": "n1", "devices": ["cpu:1"], "state": "ended", "reason": "too_warm", "temperature_c": 99}
    attempt = {"id": "a1", "epoch": 1, "state": "ended", "reason": "too_warm", "granted_at": job["submitted_at"]}
    newer = job | {"carbon_g": 12.5, "spec": job["spec"] | {"mood": "good"}}
    newer |= {"attempts": [attempt | {"members": [member], "mood": {"very": ["good"]}}]}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=newer))
    with Client("http://new", "secret", transport=transport) as client:
        found = client.job(job["id"])
    assert isinstance(found, JobView)
    assert (found.state, found.attempts[0].reason, found.attempts[0].members[0].reason) == (
        JobState.FAILED,
        "too_warm",
        "too_warm",
    )

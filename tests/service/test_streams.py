"""What ranks write: stored once and in order however it arrives; lines of progress become metrics."""

import base64
import itertools
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from protocol.jobs import AttemptView
from protocol.states import AttemptState, EndReason
from protocol.sync import MAX_CHUNK_BYTES, StreamChunk
from protocol.version import PROTOCOL_VERSION
from service.models import chunks
from tests.service.cluster import Cluster
from tests.service.conftest import bearer

A, R = AttemptState, EndReason


@pytest.fixture
def attempt(cluster: Cluster) -> AttemptView:
    """An attempt of one member on n1."""
    cluster.join("n1")
    return cluster.place(cluster.submit(), "n1")


def chunk(attempt: AttemptView, data: bytes, *, offset: int = 0, rank: int = 0, stream: str = "stdout") -> StreamChunk:
    fields = {"attempt": attempt.id, "rank": rank, "stream": stream, "offset": offset, "data": data}
    return StreamChunk.model_validate(fields)


def stored(cluster: Cluster, attempt: AttemptView) -> dict[str, bytes]:
    """What is kept of each stream, put together in order of arrival."""
    with cluster.engine.begin() as tx:
        rows = tx.execute(select(chunks).where(chunks.c.attempt_id == attempt.id).order_by(chunks.c.seq)).all()
    streams: dict[str, bytes] = {}
    for row in rows:
        name = f"{row.rank}/{row.stream}"
        assert row.offset == len(streams.get(name, b"")), "no gap, no overlap, in order"
        streams[name] = streams.get(name, b"") + row.data
    return streams


def test_output_is_kept_by_rank_and_stream_and_the_answer_says_how_far(cluster: Cluster, attempt: AttemptView) -> None:
    sent = [
        chunk(attempt, b"zero"),
        chunk(attempt, b"one", rank=1),
        chunk(attempt, b"error", stream="stderr"),
        chunk(attempt, b"!", offset=4),
    ]
    (item,) = cluster.sync("n1", chunks=sent).assignments
    assert stored(cluster, attempt) == {"0/stdout": b"zero!", "1/stdout": b"one", "0/stderr": b"error"}
    assert item.offsets == {"0/stdout": 5, "1/stdout": 3, "0/stderr": 5}
    before = cluster.sync("n1").version
    assert cluster.sync("n1", chunks=[chunk(attempt, b"?", offset=5)]).version == before


def test_of_what_overlaps_only_the_new_part_is_kept(cluster: Cluster, attempt: AttemptView) -> None:
    for offset, data in ((0, b"abc"), (0, b"abc"), (1, b"bcdef"), (2, b"cd"), (0, b""), (6, b"g")):
        cluster.sync("n1", chunks=[chunk(attempt, data, offset=offset)])
    assert stored(cluster, attempt) == {"0/stdout": b"abcdefg"}


def test_what_comes_before_its_turn_is_not_taken_and_not_lost(cluster: Cluster, attempt: AttemptView) -> None:
    (item,) = cluster.sync("n1", chunks=[chunk(attempt, b"ab"), chunk(attempt, b"ef", offset=4)]).assignments
    assert item.offsets == {"0/stdout": 2}, "the agent goes on from here"
    cluster.sync("n1", chunks=[chunk(attempt, b"cdef", offset=2)])
    assert stored(cluster, attempt) == {"0/stdout": b"abcdef"}


_names = itertools.count()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    text=st.binary(min_size=1, max_size=40),
    cuts=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), max_size=12),
)
def test_however_output_is_cut_resent_and_mixed_up_it_is_kept_once(
    cluster: Cluster, text: bytes, cuts: list[tuple[int, int]]
) -> None:
    name = f"s{next(_names)}"
    cluster.join(name, slots=1)
    attempt = cluster.place(cluster.submit(), name)
    pieces = [chunk(attempt, text[first : first + length], offset=first) for first, length in cuts if text[first:]]
    (item,) = cluster.sync(name, chunks=pieces).assignments
    known = item.offsets.get("0/stdout", 0)
    assert stored(cluster, attempt).get("0/stdout", b"") == text[:known]
    cluster.sync(name, chunks=[chunk(attempt, text[known:], offset=known)])
    assert stored(cluster, attempt) == {"0/stdout": text}


def test_output_of_what_the_node_does_not_hold_is_not_kept(cluster: Cluster, attempt: AttemptView) -> None:
    cluster.join("n2")
    cluster.sync("n2", chunks=[chunk(attempt, b"not mine")])
    cluster.sync("n1", chunks=[StreamChunk(attempt="try-none", rank=0, stream="stdout", offset=0, data=b"x")])
    cluster.end("n1", attempt)
    cluster.sync("n1", chunks=[chunk(attempt, b"too late")])
    assert cluster.row_counts()["chunks"] == 0


def test_output_may_come_after_the_end_until_the_node_is_clean(cluster: Cluster, attempt: AttemptView) -> None:
    cluster.tell("n1", attempt, A.ENDED, reason=R.COMPLETED, exit_code=0)
    (item,) = cluster.sync("n1", chunks=[chunk(attempt, b"last words")]).assignments
    assert item.offsets == {"0/stdout": 10}
    assert stored(cluster, attempt) == {"0/stdout": b"last words"}


REFUSED_CHUNKS: list[tuple[str, object, str]] = [
    ("data", "not base64!", "base64"),
    ("data", base64.b64encode(b"x" * (MAX_CHUNK_BYTES + 1)).decode(), "at most 262144"),
    ("offset", -1, "greater than or equal to 0"),
    ("offset", 2**63, "less than or equal to"),
    ("rank", 2**31, "less than"),
    ("stream", "stdin", "'stdout', 'stderr' or 'progress'"),
]


def test_a_chunk_that_cannot_be_kept_is_refused(
    client: TestClient, cluster: Cluster, attempt: AttemptView, subtests: pytest.Subtests
) -> None:
    for field, value, says in REFUSED_CHUNKS:
        with subtests.test(field=field, says=says):
            good = {"attempt": attempt.id, "rank": 0, "stream": "stdout", "offset": 0, "data": "aGk="}
            headers = bearer(cluster.node_token("n1"))
            body: dict[str, Any] = {
                "protocol": PROTOCOL_VERSION,
                "incarnation": 1,
                "chunks": [good, good | {field: value}],
            }
            refused = client.post("/v1/agent/sync", json=body, headers=headers)
            assert refused.status_code == 422
            assert refused.json()["errors"][0]["field"] == f"chunks.1.{field}"
            assert says in refused.json()["errors"][0]["message"]
            assert cluster.row_counts()["chunks"] == 0


def lines(client: TestClient, job: str, **query: Any) -> list[dict[str, Any]]:
    answer = client.get(f"/v1/jobs/{job}/logs", params=query)
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def test_output_is_read_in_order_of_arrival_and_by_filter(client: TestClient, cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit(ranks_per_node=2)
    first = cluster.place(job, "n1")
    cluster.sync("n1", chunks=[chunk(first, b"old\n"), chunk(first, b"\xff\xc3\xa9", rank=1, stream="stderr")])
    cluster.end("n1", first, R.UNKNOWN_START)
    second = cluster.place(job, "n1")
    for number in range(70):  # more than are read at once
        cluster.sync("n1", chunks=[chunk(second, f"{number:02d}".encode(), offset=2 * number)])
    progress = b'{"step": 1}\n'
    cluster.sync("n1", chunks=[chunk(second, progress, stream="progress"), chunk(second, b"new\n", rank=1)])
    found = lines(client, job)
    assert found[:2] == [
        {"epoch": 1, "rank": 0, "stream": "stdout", "offset": 0, "text": "old\n"},
        {"epoch": 1, "rank": 1, "stream": "stderr", "offset": 0, "text": "\ufffdé"},
    ]
    assert [line["text"] for line in found[2:]] == [f"{number:02d}" for number in range(70)] + ["new\n"]
    assert [line["text"] for line in lines(client, job, epoch=1)] == ["old\n", "\ufffdé"]
    assert [line["text"] for line in lines(client, job, rank=1)] == ["\ufffdé", "new\n"]
    assert [line["text"] for line in lines(client, job, epoch=2, rank=1, stream="stdout")] == ["new\n"]
    assert [line["text"] for line in lines(client, job, stream="stderr")] == ["\ufffdé"]


def progress(cluster: Cluster, attempt: AttemptView, *written: str, node: str = "n1", rank: int = 0) -> None:
    """Append lines to a rank's progress and let the agent ship them."""
    held = {item.attempt: item.offsets for item in cluster.sync(node).assignments}
    offset = held[attempt.id].get(f"{rank}/progress", 0)
    data = "".join(f"{line}\n" for line in written).encode()
    cluster.sync(node, chunks=[chunk(attempt, data, offset=offset, rank=rank, stream="progress")])


def test_lines_of_progress_become_metrics_and_the_jobs_progress(
    client: TestClient, cluster: Cluster, attempt: AttemptView
) -> None:
    job = cluster.sync("n1").assignments[0].job
    progress(cluster, attempt, '{"step": 1, "total_steps": 10, "metrics": {"loss": 2.5, "lr": 0.1}}')
    cluster.advance(1)
    progress(cluster, attempt, '{"step": 2, "epoch": 1, "total_epochs": 3, "metrics": {"loss": 1.5}}', '{"step": 3}')
    shown = client.get(f"/v1/jobs/{job}").json()["progress"]
    assert shown == {
        "step": 3,
        "total_steps": 10,
        "epoch": 1,
        "total_epochs": 3,
        "metrics": {"loss": 1.5, "lr": 0.1},
    }
    progress(cluster, attempt, '{"metrics": {"loss": 7}}', rank=1)
    points = client.get(f"/v1/jobs/{job}/metrics").json()["items"]
    assert [(p["name"], p["rank"], p["step"], p["value"], p["epoch"]) for p in points] == [
        ("loss", 0, 1, 2.5, 1),
        ("lr", 0, 1, 0.1, 1),
        ("loss", 0, 2, 1.5, 1),
        ("loss", 1, None, 7.0, 1),
    ]
    assert [p["at"] for p in points[1:3]] == ["2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"]
    own = client.get(f"/v1/jobs/{job}/metrics", params={"name": "loss", "rank": 0}).json()["items"]
    assert [p["value"] for p in own] == [2.5, 1.5]
    paged = client.get(f"/v1/jobs/{job}/metrics", params={"limit": 3}).json()
    rest = client.get(f"/v1/jobs/{job}/metrics", params={"cursor": paged["next"]}).json()
    assert (paged["items"] + rest["items"], rest["next"]) == (points, None)


NO_PROGRESS = [
    "epoch 1 of 3",
    "",
    "{",
    "[1, 2]",
    "null",
    "\x00\x01",
    '{"step": -1}',
    '{"step": 1.5}',
    '{"step": "many"}',
    f'{{"step": {10**30}}}',
    f'{{"step": {2**63}}}',
    '{"total_epochs": ' + "9" * 5_000 + "}",
    '{"metrics": {"loss": NaN}}',
    '{"metrics": {"loss": Infinity}}',
    '{"metrics": {"loss": 1e999}}',
    '{"metrics": {"loss": null}}',
    '{"metrics": {"loss": "high"}}',
    '{"metrics": {"a\\u0000b": 1}}',
    '{"metrics": {"\\ud800": 1}}',
    json.dumps({"metrics": {f"m{number}": 1 for number in range(101)}}),
    f'{{"step": {2**63}, "metrics": {{"loss": 1}}}}',
    '{"metrics": ' * 9_000 + "1" + "}" * 9_000,
]


def test_a_line_that_is_no_progress_is_kept_and_otherwise_ignored(
    cluster: Cluster, attempt: AttemptView, subtests: pytest.Subtests
) -> None:
    job = cluster.sync("n1").assignments[0].job
    for number, line in enumerate(NO_PROGRESS, start=1):
        with subtests.test(line=line[:40]):
            progress(cluster, attempt, line, f'{{"step": {number}, "metrics": {{"loss": {number}.5}}}}', line)
            shown = cluster.job(job).progress
            assert shown is not None
            assert (shown.step, shown.metrics) == (number, {"loss": number + 0.5})
            assert cluster.row_counts()["metrics"] == number
            assert stored(cluster, attempt)["0/progress"].count(b"\n") == 3 * number


def test_the_same_progress_sent_again_counts_once(cluster: Cluster, attempt: AttemptView) -> None:
    sent = chunk(attempt, b'{"step": 1, "metrics": {"loss": 2}}\n', stream="progress")
    longer = chunk(attempt, sent.data + b'{"step": 2, "metrics": {"loss": 1}}\n', stream="progress")
    for piece in (sent, sent, longer, longer, sent):
        cluster.sync("n1", chunks=[piece])
    assert cluster.row_counts()["metrics"] == 2
    shown = cluster.job(cluster.sync("n1").assignments[0].job).progress
    assert shown is not None
    assert shown.step == 2


def test_a_job_that_runs_again_shows_the_progress_of_the_new_attempt_only(cluster: Cluster) -> None:
    cluster.join("n1")
    cluster.join("n2")
    job = cluster.submit()
    first = cluster.place(job, "n1")
    progress(cluster, first, '{"step": 90, "metrics": {"loss": 0.1}}')
    cluster.lose("n1")
    assert cluster.job(job).progress is None
    progress(cluster, first, '{"step": 91}')  # written before the node was lost, shipped when it is back
    assert cluster.job(job).progress is None
    second = cluster.place(job, "n2")
    progress(cluster, second, '{"step": 1}', node="n2")
    progress(cluster, first, '{"step": 92, "metrics": {"loss": 0.09}}')
    shown = cluster.job(job).progress
    assert shown is not None
    assert (shown.step, shown.metrics) == (1, {})
    assert cluster.row_counts()["metrics"] == 2, "every attempt's own values are kept"


def test_the_last_progress_may_come_after_the_end(cluster: Cluster, attempt: AttemptView) -> None:
    job = cluster.sync("n1").assignments[0].job
    cluster.tell("n1", attempt, A.ENDED, reason=R.COMPLETED, exit_code=0)
    progress(cluster, attempt, '{"step": 10, "total_steps": 10}')
    shown = cluster.job(job)
    assert shown.state == "succeeded"
    assert shown.progress is not None
    assert shown.progress.step == 10

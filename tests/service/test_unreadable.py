"""Text that no database and no encoding can keep: refused, whoever echoes it."""

import pytest
from fastapi.testclient import TestClient

LONE = '"\\ud800"'
"""Half of a pair: JSON can spell it, UTF-8 cannot."""

BODIES = [
    f"{{{LONE}: 1}}",
    f'{{"command": [{LONE}]}}',
    f'{{"command": ["true"], "env": {{{LONE}: "x"}}}}',
    f'{{"command": ["true"], "name": {LONE}}}',
    f'{{"recipe": {{"name": "x", "options": {{{LONE}: {LONE}}}}}}}',
    f'{{"command": ["true"], "datasets": {{"a": {LONE}}}}}',
    f'{{"command": ["true"], "queue": {LONE}}}',
    LONE,
    '{"command": ["\\u0000"]}',
    '{"command": ["true"], "nodes": ' + "9" * 5_000 + "}",
    '{"command": ["true"], "nodes": 1e999}',
    '{"command": ["true"], "nodes": NaN}',
    "\ufeff{}",
    "",
]


@pytest.mark.parametrize("body", BODIES)
def test_a_body_that_cannot_be_kept_is_refused(client: TestClient, body: str) -> None:
    for path in ("/v1/jobs", "/v1/jobs/dry-run", "/v1/jobs/batch"):
        answer = client.post(path, content=body.encode(), headers={"Content-Type": "application/json"})
        assert answer.status_code in {400, 422}, path
        assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    "query", ["name=%ED%A0%80", "cursor=%00", "user=%FF", "state=%ED%A0%80", "limit=" + "9" * 5_000]
)
def test_an_address_that_cannot_be_kept_is_refused(client: TestClient, query: str) -> None:
    answer = client.get(f"/v1/jobs?{query}")
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"

"""Requests made up from the API's own documentation: whatever is asked, the answer is one that is declared there.

`make test` runs one short round, with a token of the kind each operation asks for. `make fuzz` takes longer: more
examples, and every kind of caller. A seed gives the same requests again.
"""

import os
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from schemathesis import AuthContext, Case, SerializationContext
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from protocol.accounts import NewJoinToken
from protocol.states import Role
from service import auth, joining
from service.power_pools import PowerPool
from service.refusals import Unauthorised
from service.settings import Settings
from service.store import cycles as cycle_store
from tests.service.cluster import Cluster
from tests.service.test_archives import CODE, upload
from tests.service.test_stored_checkpoints import Node

SEED = int(os.environ.get("ERGON_FUZZ_SEED", "1"))
EXAMPLES = int(os.environ.get("ERGON_FUZZ_EXAMPLES", "0"))
"""Requests made up for each operation, besides those that cover its document; 0 stands for the short round."""

SHORT = EXAMPLES == 0
CALLERS = ["admin"] if SHORT else ["admin", "user", "node", "stranger"]

REFUSES_VALID = {
    "POST /v1/jobs": "names code, queues and jobs that must exist, and needs either a command or a recipe",
    "POST /v1/jobs/batch": "the same",
    "POST /v1/jobs/dry-run": "the same",
    "POST /v1/jobs/{job_id}/resubmit": "names what may be gone by now",
    "PATCH /v1/jobs/{job_id}": "a whole number is written as one: JSON Schema takes 1.0 for it as well",
    "POST /v1/join-tokens": "`replace` needs `node`",
    "GET /v1/reports/allocation": "the window must lie in the past, and within a year",
    "PUT /v1/archives/{sha256}": "the digest must be that of the body",
    "PUT /v1/agent/attempts/{attempt}/outputs/{member}": "the digest must be that of the body",
    "PUT /v1/agent/attempts/{attempt}/checkpoints/{step}/ranks/{rank}": "the rank must be the member's, of a gang of "
    "that size",
    "POST /v1/agent/join": "the number of the protocol must be the service's",
    "POST /v1/agent/register": "the same, and no device may be listed twice",
    "POST /v1/agent/sync": "the same, and a member that has ended needs a reason",
}
"""Operations that may answer 422 or 426 to what their document allows, with the rule that it cannot express."""

SAME_BODY = ["POST /v1/jobs/batch", "POST /v1/jobs/dry-run"] if SHORT else []
"""Operations whose body is covered by another's already."""

NOT_REACHED = {
    "POST /v1/agent/join": "a join token is made for each request, and the protocol's number is hardly ever guessed",
    "POST /v1/agent/register": "the protocol's number is hardly ever guessed",
    "POST /v1/agent/sync": "the same",
    "PUT /v1/agent/attempts/{attempt}/checkpoints/{step}/ranks/{rank}": "so is the size of the gang",
}
"""Operations that the short round need not bring to answer with success."""


FAR_BOUND = 100
"""Longer texts, lists and mappings than this are left to the tests of the messages: at bounds of 100 KiB made-up
requests take most of the time and gigabytes."""


def without_far_bounds(node: Any) -> Any:
    """A part of a document, less the bounds that are too far away to try."""
    if isinstance(node, list):
        return [without_far_bounds(value) for value in node]
    if not isinstance(node, dict):
        return node
    return {
        key: without_far_bounds(value)
        for key, value in node.items()
        if key not in ("maxLength", "maxItems", "maxProperties") or not isinstance(value, int) or value <= FAR_BOUND
    }


@schemathesis.serializer("application/gzip")
def as_archive(_: SerializationContext, __: object) -> bytes:
    """The body of every upload, so that its digest can be known."""
    return CODE


@dataclass
class Tokens:
    """Tokens that are valid when they are asked for: made-up requests revoke tokens and take roles away."""

    cluster: Cluster
    caller: str
    _made: Counter[str] = field(default_factory=Counter)

    def of(self, case: Case) -> str | None:
        """The token to send with a request; None for none."""
        asked_for = next(
            (kind for needed in case.operation.definition.raw.get("security", []) for kind in needed), None
        )
        if self.caller == "stranger" or asked_for is None:
            return None
        if self.caller == "node" or (self.caller == "admin" and asked_for == "node"):
            return self.cluster.node_token("n1")
        if self.caller == "admin" and asked_for == "join":
            return self._join_token()
        return self._person("root", Role.ADMIN) if self.caller == "admin" else self._person("alice", Role.USER)

    def _person(self, stem: str, role: Role) -> str:
        name = f"{stem}-{self._made[stem]}" if self._made[stem] else stem
        person = self.cluster.person(name, role)
        try:
            with self.cluster.engine.begin() as tx:
                person = auth.identify_again(tx, person)
        except Unauthorised:
            person = None
        if person is not None and person.role == role:
            return self.cluster.tokens[name]
        self._made[stem] += 1
        return self._person(stem, role)

    def _join_token(self) -> str:
        root = self.cluster.person("root", Role.ADMIN)
        with self.cluster.engine.begin() as tx:
            return joining.new_join_token(tx, root, NewJoinToken(), now=self.cluster.now).token


Known = dict[str, dict[str, list[str | int]]]
"""Values that name something in the database, by operation, `ALL` for any, and by parameter."""
ALL = ""


def fill(cluster: Cluster, client: TestClient) -> Known:
    """Something of everything in the database, and how to name it."""
    cluster.person("root", Role.ADMIN)
    cluster.join("n2")
    cluster.lose("n2")
    cluster.join("n1", slots=4)
    digest = upload(client)
    running = cluster.submit("alice", command=["python", "train.py"], code=digest)
    ended, waiting = cluster.submit("alice"), cluster.submit("alice")
    array = cluster.job(cluster.submit("alice", array={"count": 3})).array
    attempt = cluster.place(running, "n1")
    cluster.end("n1", cluster.place(ended, "n1"))
    chunk = {"attempt": attempt.id, "rank": 0, "stream": "stdout", "offset": 0, "data": "aGVsbG8="}
    cluster.sync("n1", chunks=[chunk])
    Node(client, cluster, "n1").store(attempt, 2, {"weights": CODE})
    with cluster.engine.begin() as tx:
        cycle = cycle_store.add_cycle(tx, **CYCLE, term=cluster.lead(), at=cluster.now)
    assert array is not None
    return {
        ALL: {
            "path.job_id": [running, ended, waiting],
            "path.array_id": [array.id],
            "path.cycle_id": [cycle],
            "path.sha256": [digest],
            "query.sha256": [digest],
            "path.attempt": [attempt.id],
            "path.member": [0],
            "path.rank": [0],
            "path.epoch": [attempt.epoch],
            "path.step": [2],
        },
        "POST /v1/jobs/{job_id}/resubmit": {"path.job_id": [ended]},
        "POST /v1/nodes/{name}/confirm-down": {"path.name": ["n2"]},  # the other node is heard
        "POST /v1/nodes/{name}/on": {"path.name": ["n1"]},
        "POST /v1/nodes/{name}/off": {"path.name": ["n1"]},
    }


CYCLE: dict[str, Any] = {
    "pending": 1,
    "placed": 0,
    "committed": 0,
    "objective_j": 1.0,
    "bound_j": 1.0,
    "gap": 0.0,
    "method": "greedy",
    "status": "optimal",
    "snapshot_s": 0.0,
    "solve_s": 0.0,
    "commit_s": 0.0,
    "problem": zlib.compress(b"{}"),
    "plan": zlib.compress(b"{}"),
}


def configuration(known: Known) -> SchemathesisConfig:
    """All phases and all checks."""
    also = ["2xx", "3xx", "401", "403", "404", "409", "422", "426", "5xx"]
    acceptance = {"positive_data_acceptance": {"expected-statuses": also}}
    named = {
        operation: {name: {"dictionary": f"{name} of {operation}", "probability": 0.5} for name in values}
        for operation, values in known.items()
    }
    return SchemathesisConfig.from_dict(
        {
            "seed": SEED,
            "base-url": "http://127.0.0.1",
            "cache": {"enabled": False},
            "continue-on-failure": True,
            "request-timeout": 60,
            "dictionaries": {
                f"{name} of {operation}": {"values": values}
                for operation, parameters in known.items()
                for name, values in parameters.items()
            },
            "parameters": named.pop(ALL),
            "generation": {"database": "none", "max-examples": EXAMPLES or 1, "no-shrink": SHORT},
            "operations": [
                *({"include-name": operation, "checks": acceptance} for operation in REFUSES_VALID),
                *({"include-name": operation, "parameters": parameters} for operation, parameters in named.items()),
                *({"include-name": operation, "phases": {"coverage": {"enabled": False}}} for operation in SAME_BODY),
            ],
        }
    )


@dataclass
class Outcome:
    """What a run showed."""

    statuses: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    faults: dict[str, str] = field(default_factory=dict)

    def take(self, event: events.EngineEvent) -> None:
        """Add what an event tells."""
        if isinstance(event, events.NonFatalError):
            self.faults[event.label] = f"{event.phase}: {event.value!r}"
        elif isinstance(event, events.FatalError):
            raise event.exception
        elif isinstance(event, events.EngineFinished):
            self.faults.update((f"the run: {failure.title}", failure.message) for failure in event.failures)
        elif isinstance(event, events.ScenarioFinished):
            for case, interaction in event.recorder.interactions.items():
                if interaction.response is not None:
                    operation = event.recorder.cases[case].value.operation.label
                    self.statuses[operation][interaction.response.status_code] += 1
            for case, checks in event.recorder.checks.items():
                for check in checks:
                    if check.failure_info is not None:
                        operation = event.recorder.cases[case].value.operation.label
                        failure = check.failure_info.failure
                        self.faults.setdefault(
                            f"{operation}: {check.name}: {failure.title}",
                            f"{failure.message}\n{check.failure_info.code_sample}",
                        )

    def successes(self) -> set[str]:
        """Operations that have answered 2xx."""
        return {name for name, counts in self.statuses.items() if any(200 <= status < 300 for status in counts)}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Every node may be switched; no cycle runs that would do it."""
    pool = PowerPool(name="all", nodes=("*",), on=("true",), off=("true",))
    return settings.model_copy(update={"power_pools": (pool,)})


@pytest.mark.timeout(600 if SHORT else 3600)
@pytest.mark.parametrize("caller", CALLERS)
def test_every_answer_is_one_that_is_declared(app: FastAPI, cluster: Cluster, client: TestClient, caller: str) -> None:
    app.state.parts.hub.close_soon()  # nobody waits: a long poll and a followed log end at once
    known = fill(cluster, client)
    tokens = Tokens(cluster, caller)
    schema = schemathesis.openapi.from_dict(without_far_bounds(app.openapi()), config=configuration(known))
    schema.app = app

    @schema.auth(refresh_interval=None)
    class _Auth:
        def get(self, case: Case, _: AuthContext) -> str | None:
            return tokens.of(case)

        def set(self, case: Case, data: str, _: AuthContext) -> None:
            case.headers["Authorization"] = f"Bearer {data}"

    outcome = Outcome()
    # The engine is what the command runs. schemathesis documents its use from pytest, too, but that has no run of all
    # phases, and wants the document when tests are collected: before there is a database.
    for event in from_schema(schema).execute():
        outcome.take(event)
    assert not outcome.faults, "\n\n".join(f"{name}\n{text[:1500]}" for name, text in sorted(outcome.faults.items()))
    documented = {operation.ok().label for operation in schema.get_all_operations()}
    assert outcome.statuses.keys() == documented
    if caller == "admin":
        assert documented - outcome.successes() <= NOT_REACHED.keys()

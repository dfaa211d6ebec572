"""Every refusal and every failure as problem+json."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from psycopg.errors import DiskFull
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match

from protocol.errors import PROBLEM_MEDIA_TYPE, ErrorBody, FieldError
from protocol.faults import in_words
from service.refusals import Forbidden, Invalid, ProtocolMismatch, Refusal, Unauthorised, Unavailable

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1

TITLES = {
    400: "The request cannot be read",
    404: "There is nothing here",
    405: "The method is not allowed here",
    413: "The request is too long",
}
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
UNKNOWN_HOST = "The request is meant for another host"
SILENT = "the database does not answer"
SEND_AGAIN = "nothing was changed or your request will be recognised when sent again"
UNREADABLE = "the body cannot be read: send JSON in UTF-8, not nested a thousand deep, with numbers of sensible length"

LINES_MEDIA_TYPE = "application/x-ndjson"
"""One JSON object a line."""

Responses = dict[int | str, dict[str, Any]]
Declared = tuple[int, str, str]
"""Status, kind and title of an error."""


def _of(kind: type[Refusal]) -> Declared:
    return kind.status, kind.kind, kind.title


HEADERS = {401: "WWW-Authenticate", 503: "Retry-After"}
"""What an answer with this status always carries."""

ANYWHERE: tuple[Declared, ...] = (
    (400, "http-400", TITLES[400]),
    (400, "unknown-host", UNKNOWN_HOST),
    (413, "http-413", TITLES[413]),
    _of(ProtocolMismatch),
)
WITH_TOKEN: tuple[Declared, ...] = (*ANYWHERE, *map(_of, (Unauthorised, Forbidden, Invalid, Unavailable)))


def refused(*kinds: type[Refusal], besides: Sequence[Declared] = WITH_TOKEN) -> Responses:
    """Declare these refusals in a route's documentation.

    Args:
        besides: declared as well; by default what every route that needs a token may answer.
    """
    errors = [*besides, *map(_of, kinds)]
    by_status = {status: {kind: title for s, kind, title in errors if s == status} for status, _, _ in errors}
    return {status: _declaration(status, titles) for status, titles in by_status.items()}


def _declaration(status: int, titles: dict[str, str]) -> dict[str, Any]:
    types = [f"urn:ergon:{kind}" for kind in titles]
    schema = {
        "allOf": [{"$ref": f"#/components/schemas/{ErrorBody.__name__}"}, {"properties": {"type": {"enum": types}}}]
    }
    declared: dict[str, Any] = {
        "model": ErrorBody,
        "description": " ".join(f"{title}." for title in titles.values()),
        "content": {PROBLEM_MEDIA_TYPE: {"schema": schema}},
    }
    if status in HEADERS:
        declared["headers"] = {HEADERS[status]: {"required": True, "schema": {"type": "string"}}}
    return declared


RESPONSES = refused()
PUBLIC_RESPONSES = refused(besides=ANYWHERE)


def install(app: FastAPI) -> None:
    """Make the application answer every error as problem+json, and its documentation say so."""
    document = app.openapi
    app.openapi = lambda: _as_they_come(document())

    # All of them are async: a plain function would wait for a thread, and there may be none while the database hangs.
    @app.exception_handler(Refusal)
    async def refusal(_: Request, error: Refusal) -> JSONResponse:
        return _refusal(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [FieldError(field=_path(fault["loc"]), message=_message(fault)) for fault in error.errors()[:50]]
        detail = "; ".join(f"{fault.field}: {fault.message}" for fault in errors[:3])
        return problem(422, "invalid", "The request is not valid", detail, errors)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        title = TITLES.get(error.status_code, "The request was refused")
        detail = UNREADABLE if error.status_code == 400 else str(error.detail)
        headers = {"Allow": ", ".join(_allowed(request))} if error.status_code == 405 else error.headers
        return problem(error.status_code, f"http-{error.status_code}", title, detail, (), headers)

    @app.exception_handler(OperationalError)
    @app.exception_handler(PoolTimeout)
    async def database(_: Request, error: Exception) -> JSONResponse:
        # Without the statement: it has users' data.
        cause = error.orig if isinstance(error, OperationalError) else error
        log.warning("the database does not do as told: %s", cause)
        return database_is_silent("the disk of the database is full" if isinstance(cause, DiskFull) else SILENT)

    @app.exception_handler(Exception)
    async def surprise(request: Request, error: Exception) -> JSONResponse:
        log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(500, "internal", "The service failed", "this is a bug of ours; the log of the service has more")


def database_is_silent(why: str = SILENT) -> JSONResponse:
    """The answer to a request that the database did not answer."""
    return _refusal(Unavailable(f"{why}; {SEND_AGAIN}"))


def problem(
    status: int,
    kind: str,
    title: str,
    detail: str,
    errors: Sequence[FieldError] = (),
    headers: Any = None,
) -> JSONResponse:
    """One problem+json answer."""
    body = ErrorBody(type=f"urn:ergon:{kind}", title=title, status=status, detail=detail, errors=list(errors))
    return JSONResponse(body.model_dump(mode="json"), status, headers=headers, media_type=PROBLEM_MEDIA_TYPE)


def _refusal(error: Refusal) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if isinstance(error, Unavailable) else {}
    if isinstance(error, Unauthorised):
        headers["WWW-Authenticate"] = "Bearer"
    return problem(error.status, error.kind, error.title, error.detail, error.errors, headers)


def _as_they_come(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI declares every model as JSON as well; errors come as problem+json only, and streams as lines only."""
    for path in document["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                if response.get("content", {}).keys() & {PROBLEM_MEDIA_TYPE, LINES_MEDIA_TYPE}:
                    response["content"].pop("application/json", None)
    return document


def _allowed(request: Request) -> list[str]:
    """The methods of a path. Several routes may share it, and the router names those of the first only."""
    return _documented(request) or [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] == Match.FULL for route in request.app.routes)
    ]


def _documented(request: Request) -> list[str]:
    """`/jobs/batch` is also a `/jobs/{job_id}` to the router, but no job has that name: fewest blanks win."""
    paths: dict[str, dict[str, Any]] = request.app.openapi()["paths"]
    fitting = [path for path in paths if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", path), request.url.path)]
    closest = min(fitting, key=lambda path: path.count("{"), default=None)
    return [] if closest is None else [method for method in METHODS if method.lower() in paths[closest]]


def _path(location: Sequence[str | int]) -> str:
    parts = [str(part) for part in location]
    return ".".join(parts[1:] if parts[0] == "body" and len(parts) > 1 else parts)


def _message(fault: dict[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return "unknown field; check its spelling, or remove it"
    if fault["type"] == "json_invalid":
        return f"the body is not valid JSON: {fault.get('ctx', {}).get('error', fault['msg'])}"
    if tuple(fault["loc"]) == ("body",) and fault["type"] != "value_error":
        return "send a JSON object, with the header `Content-Type: application/json`"
    return in_words(fault)

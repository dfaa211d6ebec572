"""Every refusal and every failure as problem+json."""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from protocol.errors import PROBLEM_MEDIA_TYPE, ErrorBody, FieldError
from service.refusals import Refusal, Unauthorised, Unavailable

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1

TITLES = {
    400: "The request cannot be read",
    404: "There is nothing here",
    405: "The method is not allowed here",
    413: "The request is too long",
}
UNREADABLE = "the body cannot be read: send JSON in UTF-8, not nested a thousand deep, with numbers of sensible length"

RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text, "content": {PROBLEM_MEDIA_TYPE: {}}}
    for status, text in {
        400: "The request cannot be read.",
        401: "No valid token.",
        403: "Not allowed.",
        422: "The request is not valid.",
        503: "The service cannot answer now; try again.",
    }.items()
}
"""What every route that needs a token may answer besides its own."""


def refused(*kinds: type[Refusal]) -> dict[int | str, dict[str, Any]]:
    """Declare these refusals in a route's documentation."""
    return {
        kind.status: {"model": ErrorBody, "description": f"{kind.title}.", "content": {PROBLEM_MEDIA_TYPE: {}}}
        for kind in kinds
    }


def install(app: FastAPI) -> None:
    """Make the application answer every error as problem+json."""

    @app.exception_handler(Refusal)
    def refusal(_: Request, error: Refusal) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER_S)} if isinstance(error, Unavailable) else {}
        if isinstance(error, Unauthorised):
            headers["WWW-Authenticate"] = "Bearer"
        return problem(error.status, error.kind, error.title, error.detail, error.errors, headers)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [FieldError(field=_path(fault["loc"]), message=_message(fault)) for fault in error.errors()[:50]]
        detail = "; ".join(f"{fault.field}: {fault.message}" for fault in errors[:3])
        return problem(422, "invalid", "The request is not valid", detail, errors)

    @app.exception_handler(HTTPException)
    def http(_: Request, error: HTTPException) -> JSONResponse:
        title = TITLES.get(error.status_code, "The request was refused")
        detail = UNREADABLE if error.status_code == 400 else str(error.detail)
        return problem(error.status_code, f"http-{error.status_code}", title, detail, (), error.headers)

    @app.exception_handler(OperationalError)
    @app.exception_handler(PoolTimeout)
    def database(_: Request, error: Exception) -> JSONResponse:
        log.warning("the database does not answer: %s", error)
        detail = "the database does not answer; nothing was changed or your request will be recognised when sent again"
        return refusal(_, Unavailable(detail))

    @app.exception_handler(Exception)
    def surprise(request: Request, error: Exception) -> JSONResponse:
        log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(500, "internal", "The service failed", "this is a bug of ours; the log of the service has more")


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
    return fault["msg"].removeprefix("Value error, ")

"""Every error as ``{"error": {"message", "type", "param", "code"}}``, and nothing else.

What is meant for people goes out as it is; anything else is a bug, which is logged
with its traceback and answered without one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from rosellm.roseinfer.errors import EngineDeadError, RequestError, shown
from rosellm.roseinfer.server.schemas.responses import ErrorBody, ErrorDetail, to_json
from rosellm.roseinfer.server.validation import known_to, request_error

log = logging.getLogger(__name__)

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
RETRY_S = {429: 1.0, 503: 1.0}
"""Statuses that say "not now", and when to try again where the error does not know better."""


def as_request_error(error: BaseException) -> RequestError:
    """What a client is told about any exception."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, EngineDeadError):
        return RequestError(str(error), status=503, code="engine_dead")
    log.error("unexpected error", exc_info=error)
    return RequestError("internal error; the server's log has the details", status=500)


def error_body(error: RequestError) -> ErrorBody:
    """The body that says it."""
    fallback = "server_error" if error.status >= 500 else "invalid_request_error"
    kind = error.kind or TYPES.get(error.status, fallback)
    return ErrorBody(ErrorDetail(str(error), kind, error.param, error.code))


def error_headers(error: RequestError) -> dict[str, str]:
    """What the headers say of it: when to try again (RFC 9110, section 10.2.3)."""
    seconds = error.retry_after_s or RETRY_S.get(error.status)
    return {} if seconds is None else {"retry-after": str(max(1, math.ceil(seconds)))}


def error_response(error: BaseException, headers: Mapping[str, str] | None = None) -> Response:
    """The whole response that says it."""
    told = as_request_error(error)
    headers = {**error_headers(told), **(headers or {})}
    return Response(to_json(error_body(told)), told.status, headers, media_type="application/json")


def add_handlers(app: FastAPI) -> None:
    """Answer every exception that a route can raise in this one shape."""
    for kind, handler in (
        (RequestError, _plain),
        (EngineDeadError, _plain),
        (HTTPException, _http),
        (RequestValidationError, _invalid),
    ):
        app.add_exception_handler(kind, handler)


def _plain(_: Request, error: Exception) -> Response:
    return error_response(error)


def _http(request: Request, error: Any) -> Response:
    """What the framework refuses: bad JSON, unknown routes, wrong methods."""
    message = error.detail
    if message == HTTPStatus(error.status_code).phrase:
        message = f"{message}: {request.method} {shown(request.scope['path'])}"
    return error_response(RequestError(message, status=error.status_code), error.headers)


def _invalid(request: Request, error: Any) -> Response:
    """What a schema refuses. Locations begin with "body"."""
    errors = [{**each, "loc": each["loc"][1:]} for each in error.errors()]
    known = known_to(request.scope["route"].body_field)
    return error_response(request_error(errors, error.body, known))

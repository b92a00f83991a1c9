"""Which web pages may read the answers (https://fetch.spec.whatwg.org, CORS protocol).

A browser asks first, without a key; so this stands before the keys.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.server.error_body import error_response

READABLE = (
    "x-request-id",
    "retry-after",
    *(
        f"x-ratelimit-{kind}-{what}"
        for kind in ("limit", "remaining", "reset")
        for what in ("requests", "tokens")
    ),
)


class Cors(CORSMiddleware):
    """Starlette's, with the API's methods and headers, and its form of errors."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        """
        Args:
            app: everything that answers.
            origins: whose pages browsers may let read the answers; ``*`` is everybody's.
        """
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=READABLE,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks whether it may."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name not in ("content-length", "content-type")
        }
        return error_response(RequestError(bytes(answer.body).decode()), kept)

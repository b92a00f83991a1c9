"""Who may ask: nobody without a key, but for the probes; and how much, as plain ASGI."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.server.error_body import error_response
from rosellm.roseinfer.server.limits import Account, Accounts

OPEN_PATHS = frozenset({b"/health", b"/livez", b"/readyz"})


class BearerAuth:
    """Lets through only requests that carry a key and keep its limits, except to the open paths.

    The decision is made on the path as it was sent, before any routing or decoding. What comes
    behind finds the ``account`` in the request's state.
    """

    def __init__(self, app: ASGIApp, accounts: Accounts) -> None:
        self.app = app
        self._accounts = accounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or path_as_sent(scope) in OPEN_PATHS:
            return await self.app(scope, receive, send)
        try:
            account = self._enter(scope)
        except RequestError as error:
            headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
            return await error_response(error, headers)(scope, receive, send)
        try:
            await self.app(scope, receive, send)
        finally:
            account.leave()

    def _enter(self, scope: Scope) -> Account:
        sent = _sent_key(Headers(scope=scope).getlist("authorization"))
        account = None if sent is None else self._accounts.of(sent)
        if account is None:
            raise RequestError(
                "a valid key is needed: Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
            )
        scope.setdefault("state", {})["account"] = account
        account.enter(spends=scope.get("method") == "POST")
        return account


def path_as_sent(scope: Scope) -> bytes:
    """The path before any decoding."""
    raw: bytes | None = scope.get("raw_path")
    return scope["path"].encode() if raw is None else raw


def _sent_key(fields: list[str]) -> bytes | None:
    """The key, or None where there is none: of two fields, two readers may take each another."""
    if len(fields) != 1:
        return None
    scheme, _, key = fields[0].partition(" ")
    # Not all that is white space in Latin-1: such a byte may end a key in UTF-8.
    return key.strip(" \t").encode("latin-1") if scheme.lower() == "bearer" else None

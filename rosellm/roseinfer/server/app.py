"""The ASGI application."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

import rosellm
from rosellm.roseinfer.server import error_body
from rosellm.roseinfer.server.auth import BearerAuth
from rosellm.roseinfer.server.elsewhere import Elsewhere, Host
from rosellm.roseinfer.server.keys import Keys
from rosellm.roseinfer.server.limits import Accounts
from rosellm.roseinfer.server.middleware import CancelOnDisconnect, RequestLog
from rosellm.roseinfer.server.routes import (
    capabilities,
    chat,
    completions,
    embeddings,
    generate,
    health,
    models,
    render,
    tokenize,
)
from rosellm.roseinfer.server.service import Service

# Named here so that the generated API description does not promise FastAPI's own 422.
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": 'The request is at fault: `{"error": {...}}`.'},
    "5XX": {"description": 'The server is at fault: `{"error": {...}}`.'},
}


def create_app(
    served: Service | Host,
    api_key: str | None = None,
    *,
    accounts: Accounts | None = None,
) -> FastAPI:
    """Everything a client can call.

    Args:
        served: an ``LLM`` or an ``InferenceEngine``, which stays the caller's to use and to
            close; or a service that lives on the event loop that the application will run on.
        api_key: asked of every route but ``/health`` and the probes, where it is not empty.
        accounts: the same, where there are several keys or they have limits.
    """
    app = FastAPI(
        title="rosellm",
        version=rosellm.__version__,
        responses=ERRORS,
        redirect_slashes=False,
        strict_content_type=False,  # curl without a header still means JSON
    )
    app.state.service = served if isinstance(served, Service) else served.service
    for routes in (
        health,
        models,
        capabilities,
        chat,
        render,
        completions,
        generate,
        embeddings,
        tokenize,
    ):
        app.include_router(routes.router)
    error_body.add_handlers(app)
    if not isinstance(served, Service):
        app.add_middleware(Elsewhere, host=served)
    app.add_middleware(CancelOnDisconnect)
    accounts = accounts or Accounts(Keys.of(api_key))
    if accounts:
        app.add_middleware(BearerAuth, accounts=accounts)
    app.add_middleware(RequestLog)  # added last, so it is outermost
    return app

"""With a key set, nothing but the probes answers without it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from rosellm.roseinfer.server.auth import BearerAuth
from rosellm.roseinfer.server.keys import Key, Keys, digest
from rosellm.roseinfer.server.limits import Accounts
from tests.server.fakes import CHAT, COMPLETIONS, says, serving

KEY = "sécret-clà"
"""Its last byte is white space in Latin-1, in which headers are read."""
CLOSED = [
    ("GET", "/"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/m"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/nope"),
    ("GET", "/health/"),
    ("GET", "/livez/x"),
    ("GET", "/READYZ"),
    ("GET", "//health"),
    ("GET", "/healthz"),
    ("GET", "/%68ealth"),
    ("POST", CHAT),
    ("POST", COMPLETIONS),
    ("POST", "/generate"),
    ("OPTIONS", CHAT),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
@pytest.mark.parametrize(
    "sent", [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY]
)
def test_closed(method: str, path: str, sent: str | None) -> None:
    async def test() -> None:
        async with serving(says("x"), api_key=KEY) as server:
            headers = {} if sent is None else {"authorization": sent.encode()}
            response = await server.client.request(method, path, headers=headers)  # type: ignore[arg-type]
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            assert response.json()["error"]["type"] == "authentication_error"

    asyncio.run(test())


@pytest.mark.parametrize("sent", [None, "Bearer wrong"])
def test_every_route_that_there_is(sent: str | None) -> None:
    """Whatever route is added: it is closed, unless it is one of three."""

    async def test() -> None:
        async with serving(says("x"), api_key=KEY) as server:
            headers = {} if sent is None else {"authorization": sent}
            answers = {
                (method, path): await server.client.request(method, path, headers=headers)
                for method, path in routes(server.app.routes)
            }
            assert len(answers) >= 15
            opened = {path for (_, path), each in answers.items() if each.status_code != 401}
            assert opened == {"/health", "/livez", "/readyz"}

    asyncio.run(test())


def routes(found: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Method and path of each, with something in the place of parameters."""
    for route in found:
        included = getattr(route, "original_router", route)  # as newer FastAPIs wrap them
        yield from routes(getattr(included, "routes", ()))
        for method in getattr(route, "methods", None) or ():
            yield method, re.sub(r"\{.*?\}", "x", route.path)


def test_open_with_the_key() -> None:
    async def test() -> None:
        async with serving(says("x"), api_key=KEY) as server:
            for probe in ("/health", "/livez", "/readyz"):
                assert (await server.client.get(probe)).status_code == 200
            for scheme in (b"Bearer", b"bearer"):
                headers = {b"authorization": scheme + b" " + KEY.encode()}
                response = await server.client.get("/v1/models", headers=headers)  # type: ignore[arg-type]
                assert response.status_code == 200

    asyncio.run(test())


def test_whose_key_it_was_is_known_behind_it() -> None:
    seen: list[dict[str, Any]] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["state"])

    async def test() -> None:
        auth = BearerAuth(behind, Accounts(Keys([Key("alice", digest(b"a"))])))
        scope = {"type": "http", "path": "/x", "headers": [(b"authorization", b"Bearer a")]}
        await auth(scope, None, None)  # type: ignore[arg-type]
        assert seen[0]["account"].tenant == "alice"

    asyncio.run(test())


def test_no_key_set_means_no_key_needed() -> None:
    async def test() -> None:
        for key in (None, ""):
            async with serving(says("x"), api_key=key) as server:
                assert (await server.client.get("/v1/models")).status_code == 200

    asyncio.run(test())

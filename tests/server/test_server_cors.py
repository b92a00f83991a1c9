"""Pages of other origins: off unless asked for, then without a key for the question."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from rosellm.roseinfer.messages import Add, Output
from rosellm.roseinfer.server.cors import Cors
from rosellm.roseinfer.server.gate import Gate
from tests.server.fakes import CHAT, COMPLETIONS, Server, says, serving

APP = "https://app.example"


async def preflight(server: Server, origin: str, method: str = "POST") -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }
    return await server.client.options(CHAT, headers=headers)


def test_by_default_no_page_may_read() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            answer = await server.complete()
            assert (await preflight(server, APP)).status_code == 405
            asked = {"model": "m", "prompt": "hi"}
            answer = await server.client.post(COMPLETIONS, json=asked, headers={"origin": APP})
            assert answer.status_code == 200
            assert not [name for name in answer.headers if name.startswith("access-control")]

    asyncio.run(test())


@pytest.mark.parametrize("origins", [(APP, "https://b.example"), ("*",)])
def test_a_browser_asks_without_a_key(origins: tuple[str, ...]) -> None:
    async def test() -> None:
        async with serving(says("x"), api_key="secret", cors_origins=origins) as server:
            answer = await preflight(server, APP)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == (
                "*" if origins == ("*",) else APP
            )
            allowed = answer.headers["access-control-allow-headers"].lower()
            assert "authorization" in allowed
            assert "x-stainless-os" in allowed
            assert "POST" in answer.headers["access-control-allow-methods"]
            # an OPTIONS that is no such question needs the key like everything else
            assert (await server.client.options(CHAT)).status_code == 401

    asyncio.run(test())


def test_answers_of_every_kind_can_be_read() -> None:
    def breaks(add: Add) -> list[Output]:
        return [Output(add.id, choice=7, tokens=[1])]

    async def test() -> None:
        async with serving(breaks, api_key="secret", cors_origins=[APP]) as server:
            key = {"origin": APP, "authorization": "Bearer secret"}
            asked = {"model": "m", "prompt": "hi"}
            client = server.client
            answers = [
                await client.get("/v1/models", headers=key),
                await client.get("/health", headers={"origin": APP}),
                await client.get("/v1/models", headers={"origin": APP}),
                await client.get("/nowhere", headers=key),
                await client.post(COMPLETIONS, json={**asked, "n": 0}, headers=key),
                await client.post(COMPLETIONS, json=asked, headers=key),
            ]
            assert [each.status_code for each in answers] == [200, 200, 401, 404, 400, 500]
            for each in answers:
                assert each.headers["access-control-allow-origin"] == APP
                assert "origin" in each.headers["vary"].lower()
                assert "x-request-id" in each.headers["access-control-expose-headers"]
                assert "access-control-allow-credentials" not in each.headers

    asyncio.run(test())


def test_other_origins_are_told_nothing() -> None:
    async def test() -> None:
        async with serving(says("x"), cors_origins=[APP]) as server:
            for origin in (
                "https://evil.example",
                f"{APP}.evil.example",
                "http://app.example",
                "null",
            ):
                answer = await preflight(server, origin)
                assert answer.status_code == 400
                assert "access-control-allow-origin" not in answer.headers
                assert answer.json()["error"]["message"] == "Disallowed CORS origin"
                answer = await server.client.get("/v1/models", headers={"origin": origin})
                assert "access-control-allow-origin" not in answer.headers
            assert (await preflight(server, APP, "DELETE")).status_code == 400

    asyncio.run(test())


def test_a_page_can_read_that_the_model_is_loading() -> None:
    async def test() -> None:
        transport = httpx.ASGITransport(Cors(Gate(), [APP]))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.get("/v1/models", headers={"origin": APP})
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["access-control-allow-origin"] == APP

    asyncio.run(test())

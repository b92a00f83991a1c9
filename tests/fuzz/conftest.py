"""A small real model in this process behind the server's own application, and how to ask it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from rosellm import LLM
from rosellm.roseinfer.server import create_app
from tests.fuzz.answers import Got, check
from tests.fuzz.bodies import NAMES, Sent
from tests.fuzz.run import CONTEXT, PROBE, write_model
from tests.library.conftest import idle


class Ended:
    """An application whose answers end: httpx takes no other. Of the last one it is noted whether
    it was whole, for a web server would have cut the connection where it was not."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.whole = True

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.whole = True

        async def noted(message: Any) -> None:
            begins = message["type"] == "http.response.start"
            self.whole = not (begins or message.get("more_body", False))
            await send(message)

        await self._app(scope, receive, noted)
        if not self.whole:
            await send({"type": "http.response.body", "body": b""})


@dataclass
class Target:
    """The application, and how to ask it."""

    app: Any
    ended: Ended
    llm: LLM
    runner: asyncio.Runner
    client: httpx.AsyncClient

    def send(self, sent: Sent) -> Got:
        """Send it; the answer is as it should be."""
        request = self.client.build_request(
            sent.method, "http://fuzz/", headers=list(sent.headers), content=sent.body
        )
        request.url = request.url.copy_with(raw_path=sent.path.encode())
        answer = self.answer(request)
        got = self.got(answer)
        check(sent.method, got)
        return got

    def got(self, answer: httpx.Response) -> Got:
        """The last answer."""
        return Got(answer.status_code, answer.headers, answer.content, self.ended.whole)

    def answer(self, request: httpx.Request) -> httpx.Response:
        return self.runner.run(self.client.send(request))

    def probe(self) -> str:
        """What a request of which nothing is wrong is answered."""
        answer = self.runner.run(self.client.post("/v1/completions", json=PROBE))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = write_model(tmp_path_factory.mktemp("fuzz") / NAMES[0])
    with (
        LLM(
            folder, device="cpu", max_model_len=CONTEXT, max_num_seqs=16, tool_parser="hermes"
        ) as llm,
        asyncio.Runner() as runner,
    ):
        app = create_app(llm)
        ended = Ended(app)
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(ended), base_url="http://fuzz", timeout=60
        )
        yield Target(app, ended, llm, runner, client)
        runner.run(client.aclose())


@pytest.fixture
def as_before(target: Target) -> Iterator[None]:
    """Whatever was sent: the engine lives, holds nothing, and answers what it answered before."""
    before = target.probe()
    yield
    idle(target.llm)
    assert target.probe() == before

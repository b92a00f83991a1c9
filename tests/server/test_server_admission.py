"""Requests that have no time left, or ask for more than could ever be queued."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from typing import Any

import pytest

from rosellm.roseinfer.messages import Add, Output
from rosellm.roseinfer.server.grammars import Grammars
from rosellm.roseinfer.text.grammar_source import GrammarSource
from tests.server.fakes import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    HELLO,
    Server,
    endless,
    events,
    gives_vectors,
    says,
    serving,
    silent,
)

GENERATE = "/generate"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": HELLO},
    COMPLETIONS: {"model": "m", "prompt": "hi"},
    EMBEDDINGS: {"model": "m", "input": "hi"},
    GENERATE: {"prompt": "hi"},
}


async def idle(server: Server) -> None:
    """Every request has been given up, and nothing of it is kept."""
    for _ in range(100):
        if not server.service.pipeline._open:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a request is still open")


# -- deadlines --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_before_the_first_token_it_is_a_504(path: str, stream: bool) -> None:
    """Also from an engine that says nothing at all."""

    async def test() -> None:
        async with serving(silent) as server:
            more = {} if path == EMBEDDINGS else {"stream": stream}
            began = time.monotonic()
            answer = await server.client.post(path, json={**BODIES[path], **more, "timeout": 0.1})
            assert 0.1 <= time.monotonic() - began < 5
            assert answer.status_code == 504
            assert answer.json()["error"]["code"] == "timeout"
            assert answer.json()["error"]["type"] == "server_error"
            assert server.engine.aborted == [1]
            await idle(server)

    asyncio.run(test())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_time_passes_before_the_engine_is_asked_too(path: str) -> None:
    """While a grammar waits for its turn to be checked, say."""

    class Busy(Grammars):
        async def checked(self, source: GrammarSource, param: str, tenant: str = "") -> str:
            await asyncio.Event().wait()
            raise AssertionError

    async def test() -> None:
        async with serving(silent) as server:
            service = server.service
            vars(service)["grammars"] = Busy(service.prompts.tokenizer, service.ready.vocab_size)
            body = {**BODIES[path], "structured_outputs": {"regex": "a"}, "timeout": 0.1}
            answer = await asyncio.wait_for(server.client.post(path, json=body), 5)
            assert answer.status_code == 504
            assert answer.json()["error"]["code"] == "timeout"
            assert server.engine.added == []

    asyncio.run(test())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_in_mid_stream_it_is_an_error_event(path: str) -> None:
    async def test() -> None:
        async with serving(endless) as server:
            body = {**BODIES[path], "stream": True, "timeout": 0.2, "n": 2}
            *chunks, last = events(await server.client.post(path, json=body))
            assert chunks
            assert all("error" not in chunk for chunk in chunks)
            assert last["error"]["code"] == "timeout"
            await idle(server)

    asyncio.run(test())


def test_the_engine_is_told_when() -> None:
    """A number of seconds from when the request was there; none unless somebody says so."""

    async def test() -> None:
        for default, timeout, seconds in (
            (None, None, None),
            (None, 5, 5),
            (7.5, None, 7.5),
            (7.5, 600, 600),
        ):
            async with serving(says("x"), default_timeout=default) as server:
                now = time.monotonic()
                await server.complete(prompt=["a", "b"], timeout=timeout)
                for add in server.engine.added:
                    if seconds is None:
                        assert add.deadline is None
                    else:
                        assert add.deadline is not None
                        assert now + seconds <= add.deadline < now + seconds + 3

    asyncio.run(test())


def test_an_answer_in_time_is_whole_and_leaves_no_timer() -> None:
    async def test() -> None:
        async with serving(says("hello")) as server:
            answer = await server.complete(timeout=0.3)
            assert answer.json()["choices"][0]["text"] == "hello"
            streamed = events(await server.complete(timeout=0.3, stream=True))
            assert streamed[-1] == "[DONE]"
            await asyncio.sleep(0.4)
            assert server.engine.aborted == []

    asyncio.run(test())


def test_all_prompts_of_a_request_end_together() -> None:
    def first_alone(add: Add) -> Iterable[Output]:
        return says("x")(add) if add.id == 1 else ()

    async def test() -> None:
        async with serving(first_alone) as server:
            answer = await server.complete(prompt=["a", "b", "c"], timeout=0.5)
            assert answer.status_code == 504
            assert server.engine.aborted == [2, 3]
            await idle(server)

    asyncio.run(test())


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("timeout", [0, -1, "5", True, 1e400])
def test_what_is_no_time_is_refused(path: str, timeout: Any) -> None:
    async def test() -> None:
        async with serving(gives_vectors if path == EMBEDDINGS else says("x")) as server:
            body = {**BODIES[path], "timeout": timeout}
            answer = await server.client.post(path, content=json.dumps(body).encode())
            assert answer.status_code == 400
            if timeout != 1e400:  # which is no JSON
                assert answer.json()["error"]["param"] == "timeout"
            assert server.engine.added == []

    asyncio.run(test())


@pytest.mark.parametrize("timeout", [1e-9, 1e9, 1e300])
def test_any_other_time_is_one(timeout: float) -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            answer = await server.complete(timeout=timeout)
            assert answer.status_code == (504 if timeout < 1 else 200)

    asyncio.run(test())


# -- too much for one request -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "asked", "param"),
    [
        ({"max_choices": 8}, {"n": 9}, "n"),
        ({"max_choices": 8}, {"n": 3, "prompt": ["a"] * 3}, "n"),
        ({"max_answer_tokens": 100}, {"n": 10, "max_tokens": 11}, "max_tokens"),
        ({"max_answer_tokens": 100}, {"prompt": ["a"] * 5, "max_tokens": 21}, "max_tokens"),
        ({"max_answer_tokens": 100}, {"best_of": 10, "n": 1, "max_tokens": 11}, "max_tokens"),
        ({"max_answer_tokens": 31}, {"n": 2}, "max_tokens"),
        ({"max_prompt_tokens": 30}, {"prompt": ["a" * 10] * 3}, "prompt"),
    ],
)
def test_what_could_never_be_queued_is_refused_at_once(
    limits: dict[str, int], asked: dict[str, Any], param: str
) -> None:
    async def test() -> None:
        async with serving(says("x"), **limits) as server:
            answer = await server.complete(**asked)
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["param"] == param
            assert server.engine.added == []

    asyncio.run(test())


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        ({"max_choices": 8}, {"n": 8}),
        ({"max_answer_tokens": 100}, {"n": 10, "max_tokens": 10}),
        ({"max_answer_tokens": 32}, {"n": 2}),
        ({"max_prompt_tokens": 33}, {"prompt": ["a" * 10] * 3}),
        ({"max_prompt_tokens": 3}, {"prompt": "a" * 10}),  # alone in the queue it may be
    ],
)
def test_what_just_fits_is_answered(limits: dict[str, int], asked: dict[str, Any]) -> None:
    async def test() -> None:
        async with serving(says("x"), **limits) as server:
            assert (await server.complete(**asked)).status_code == 200

    asyncio.run(test())


def test_many_texts_are_embedded_in_waves_that_the_queue_holds() -> None:
    async def test() -> None:
        waves: list[int] = []

        def counted(add: Add) -> Iterable[Output]:
            waves.append(len(server.service.pipeline._open))
            return gives_vectors(add)

        async with serving(counted, generates=False, max_prompt_tokens=80) as server:
            texts = ["a" * 7, "a" * 40, "a", "b", "c", *["a" * 7] * 5]
            answer = await server.embed(input=texts)
            assert [each["index"] for each in answer.json()["data"]] == list(range(10))
            assert max(waves) <= 7
            assert len(server.engine.added) == 10

    asyncio.run(test())

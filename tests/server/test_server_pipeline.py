"""Clients that leave, engines that die, and a loop that is never held up."""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from typing import Any

import pytest

from rosellm.roseinfer.errors import EngineDeadError, RequestError
from rosellm.roseinfer.messages import Output, Outputs, Stats
from rosellm.roseinfer.server.streaming import Streamed
from tests.server.fakes import (
    CHAT,
    COMPLETIONS,
    HELLO,
    Exchange,
    Server,
    endless,
    says,
    serving,
    silent,
)

BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": HELLO},
    COMPLETIONS: {"model": "m", "prompt": ["a", "b"], "n": 2},
    "/generate": {"prompt": "a"},
}


async def settled(server: Server) -> None:
    for _ in range(20):
        await asyncio.sleep(0)
    assert server.service.pipeline._open == {}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [silent, endless])
def test_a_client_that_leaves_aborts_its_request(path: str, stream: bool, script: Any) -> None:
    async def test() -> None:
        async with serving(script) as server:
            exchange = Exchange(server.app, path, {**BODIES[path], "stream": stream})
            while not server.engine.added:
                await asyncio.sleep(0)
            if stream and script is endless:
                for _ in range(4):
                    await exchange.sent.get()
            exchange.leave()
            await asyncio.wait_for(exchange.task, 2)
            await settled(server)
            assert sorted(server.engine.aborted) == [add.id for add in server.engine.added]

    asyncio.run(test())


def test_an_answer_that_is_read_to_its_end_aborts_nothing() -> None:
    async def test() -> None:
        async with serving(says("abc")) as server:
            await server.chat()
            await server.complete(stream=True)
            await settled(server)
            assert server.engine.aborted == []

    asyncio.run(test())


def test_one_failed_prompt_ends_its_siblings() -> None:
    async def test() -> None:
        def script(add: Any) -> Any:
            return endless(add) if add.id == 1 else [Output(add.id, 9, [1])]

        async with serving(script) as server:
            response = await server.complete(prompt=["a", "b"])
            assert response.status_code == 500
            await settled(server)
            assert sorted(server.engine.aborted) == [1, 2]

    asyncio.run(test())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_the_death_of_the_engine_ends_every_stream_with_an_error_event(path: str) -> None:
    async def test() -> None:
        async with serving(endless) as server:
            exchange = Exchange(server.app, path, {**BODIES[path], "stream": True})
            start = await exchange.sent.get()
            assert start["status"] == 200
            await exchange.sent.get()
            server.engine.die("killed by signal 9")
            await asyncio.wait_for(exchange.task, 2)
            sent = b"".join(
                exchange.sent.get_nowait()["body"] for _ in range(exchange.sent.qsize())
            )
            *_, last, empty = sent.split(b"\n\n")
            assert last.startswith(b'data: {"error":')
            assert b"killed by signal 9" in last
            assert empty == b""
            assert b"[DONE]" not in sent
            assert b'finish_reason":"' not in sent

    asyncio.run(test())


def test_plain_text_breaks_off_when_the_engine_dies(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving(endless) as server:
            exchange = Exchange(server.app, "/generate", {"prompt": "a", "stream": True})
            await exchange.sent.get()
            await exchange.sent.get()
            server.engine.die("gone")
            await asyncio.wait_for(exchange.task, 2)
            sent = [exchange.sent.get_nowait() for _ in range(exchange.sent.qsize())]
            assert all(message.get("more_body") for message in sent)  # never completed

    asyncio.run(test())
    assert "Traceback" not in caplog.text  # it is no fault of the server's program


def test_after_the_engines_death_everything_is_a_503() -> None:
    async def test() -> None:
        async with serving(silent) as server:
            waiting = asyncio.ensure_future(server.chat())
            while not server.engine.added:
                await asyncio.sleep(0)
            server.engine.die("killed by signal 9")
            for response in (
                await asyncio.wait_for(waiting, 2),
                await server.client.get("/health"),
                await server.chat(stream=True),
                await server.complete(),
            ):
                assert response.status_code == 503
                assert response.json()["error"]["code"] == "engine_dead"
            with pytest.raises(EngineDeadError):
                await server.service.pipeline.generate([])

    asyncio.run(test())


def test_rows_of_unknown_requests_are_ignored() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            server.engine.on_outputs(Outputs([Output(99, 0, [1], last=True)], Stats(steps=3)))
            assert server.service.pipeline.stats.steps == 3

    asyncio.run(test())


def test_between_two_engines_nothing_runs_and_what_is_open_waits() -> None:
    async def test() -> None:
        async with serving(silent) as server:
            exchange = Exchange(server.app, COMPLETIONS, BODIES[COMPLETIONS])
            while len(server.engine.added) < 2:
                await asyncio.sleep(0)
            blocks = {"blocks_free": 3, "blocks_used": 3, "blocks_cached": 2, "blocks_total": 8}
            server.engine.on_outputs(Outputs([], Stats(running=4, steps=9, **blocks)))
            server.engine.lose()
            assert server.service.pipeline.stats == Stats(
                waiting=4, waiting_tokens=4, blocks_free=8, blocks_total=8, steps=9
            )
            exchange.leave()
            await exchange.task

    asyncio.run(test())


def test_a_request_that_ends_too_early_is_an_error_not_an_empty_answer() -> None:
    async def test() -> None:
        async with serving(lambda add: [Output(add.id, 0, [97], last=True)]) as server:
            assert (await server.chat()).status_code == 500

    asyncio.run(test())


@pytest.mark.alone
def test_a_large_text_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> float:
        async with serving(says("x")) as server:
            tokenizer = server.service.prompts.tokenizer
            encode = type(tokenizer).encode

            def slow(self: Any, text: str, **options: Any) -> list[int]:
                time.sleep(0.3)
                return encode(self, text[:100], **options)

            monkeypatch.setattr(type(tokenizer), "encode", slow)
            monkeypatch.setattr(server.service.prompts, "_longest_token", 100)
            asking = asyncio.ensure_future(server.complete(prompt="a" * 20_000))
            worst = 0.0
            while not asking.done():
                before = time.monotonic()
                await asyncio.sleep(0)
                worst = max(worst, time.monotonic() - before)
            assert (await asking).status_code == 200
            return worst

    assert asyncio.run(test()) < 0.2


def test_a_failure_that_can_no_longer_be_said_is_no_fault_of_the_program() -> None:
    """It is not raised to who would log it as one, and the transfer is not completed."""

    async def pieces() -> Any:
        yield b"a"
        raise RequestError("late", status=504, code="timeout")

    async def test() -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await Streamed(nullcontext(), pieces(), "text/plain")({}, send, send)  # type: ignore[arg-type]
        assert [message.get("more_body") for message in sent] == [None, True]

    asyncio.run(test())

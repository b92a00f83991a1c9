"""Engines that are killed, stopped or told to end under load: no client loses a token."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Server, free_port

TOKENS = 60
POISON = Path(__file__).parent / "poison"


def bodies(count: int) -> list[dict[str, Any]]:
    """Half of them greedy, half seeded; some with several choices, scores or a grammar."""
    found = []
    for number in range(count):
        body: dict[str, Any] = {
            "model": "tiny-llama",
            "prompt": f"{number} is a number, and so is {number * number}. " * (1 + number % 3),
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            "temperature": 0.0 if number % 2 else 1.0,
            "seed": number,
        }
        if number % 10 == 4:
            body["n"] = 3
        if number % 10 == 5:
            body["logprobs"] = 2
        if number % 10 == 6:
            body["frequency_penalty"] = 0.5
        if number % 10 == 7:
            body["structured_outputs"] = {"regex": "[a-z ]{150,300}"}
            del body["ignore_eos"]
        found.append(body)
    return found


async def lines(answer: httpx.Response) -> AsyncIterator[str]:
    """Lines of a stream. httpx's own also end at characters that a text may hold."""
    rest = ""
    async for piece in answer.aiter_text():
        *whole, rest = (rest + piece).split("\n")
        for line in whole:
            yield line


async def read(
    http: httpx.AsyncClient, body: dict[str, Any], begun: Callable[[], None]
) -> dict[int, Any]:
    """A stream's tokens, text and reason to end, by choice."""
    choices: dict[int, Any] = {}
    told = False
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in lines(answer):
            data = line.removeprefix("data: ")
            if not data or data == "[DONE]":
                continue
            chunk = json.loads(data)
            assert "error" not in chunk, chunk
            for choice in chunk["choices"]:
                found = choices.setdefault(choice["index"], [[], "", None])
                found[0] += choice.get("token_ids") or []
                found[1] += choice["text"]
                found[2] = choice["finish_reason"] or found[2]
                if not told and len(found[0]) >= 3:
                    told = True
                    begun()
    return choices


async def all_of(
    server: Server, asked: Sequence[dict[str, Any]], meanwhile: Callable[[], None] | None = None
) -> list[dict[int, Any]]:
    """Every stream, read at the same time; something happens when half of them have begun."""
    count = 0

    def begun() -> None:
        nonlocal count
        count += 1
        if count == len(asked) // 2 and meanwhile is not None:
            meanwhile()

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:
        return await asyncio.gather(*(read(http, body, begun) for body in asked))


def kill(server: Server, number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(server.engine_pid(), number)


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> list[dict[int, Any]]:
    return asyncio.run(all_of(server, bodies(100)))


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
def test_streams_go_on_with_a_new_engine(
    launch: Callable[..., Server],
    model_folder: Path,
    undisturbed: list[dict[int, Any]],
    number: signal.Signals,
) -> None:
    server = launch(str(model_folder), model="tiny-llama")
    first = server.engine_pid()
    disturbed = asyncio.run(all_of(server, bodies(100), kill(server, number)))
    assert server.engine_pid() != first
    assert disturbed == undisturbed
    server.wait_until_idle()
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert not Path(f"/proc/{first}").exists()


@pytest.mark.slow
def test_a_request_that_kills_engines_after_some_tokens_ends_alone(
    launch: Callable[..., Server], model_folder: Path, undisturbed: list[dict[int, Any]]
) -> None:
    path = f"{POISON}:{os.environ.get('PYTHONPATH', '')}"
    server = launch(str(model_folder), model="tiny-llama", PYTHONPATH=path)
    fields = {"model": "tiny-llama", "prompt": "Once", "seed": 666, "max_tokens": 60}
    poison = {**fields, "ignore_eos": True}
    asking: list[threading.Thread] = []
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{server.url}/v1/completions", json=poison, timeout=120))

    def send() -> None:
        asking.append(threading.Thread(target=ask))
        asking[0].start()

    assert asyncio.run(all_of(server, bodies(100)[:30], send)) == undisturbed[:30]
    asking[0].join(60)
    assert answers[0].status_code == 500
    assert "died over this request" in answers[0].json()["error"]["message"]
    engine = server.engine_pid()
    ask()  # as a client does that tries again
    assert answers[1].status_code == 500
    assert server.engine_pid() == engine, "it was not even tried"
    server.wait_until_idle()
    assert httpx.get(f"{server.url}/readyz").status_code == 200


@pytest.mark.alone
def test_a_stopped_engine_is_not_ready_within_a_second_and_then_is_again(server: Server) -> None:
    engine = server.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 2.0  # a second, and what a busy machine takes
        while httpx.get(f"{server.url}/readyz").status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert httpx.get(f"{server.url}/livez").status_code == 200
    finally:
        os.kill(engine, signal.SIGCONT)  # other tests have this server too
    deadline = time.monotonic() + 5
    while httpx.get(f"{server.url}/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server.engine_pid() == engine


@pytest.mark.slow
def test_a_budget_of_restarts_is_kept(launch: Callable[..., Server], model_folder: Path) -> None:
    server = launch(str(model_folder), "--engine-restarts=1", model="tiny-llama")
    first = server.engine_pid()
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while httpx.get(f"{server.url}/readyz").status_code == 200:
        assert time.monotonic() < deadline
    while httpx.get(f"{server.url}/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(server.engine_pid(), signal.SIGKILL)
    assert server.process.wait(20) == 1


def test_sigterm_under_load_loses_nothing(
    launch: Callable[..., Server], model_folder: Path, undisturbed: list[dict[int, Any]]
) -> None:
    server = launch(str(model_folder), model="tiny-llama")
    asked = bodies(100)[:30]
    engine = server.engine_pid()
    answers = asyncio.run(all_of(server, asked, server.process.terminate))
    assert answers == undisturbed[:30]
    assert server.process.wait(20) == 0
    assert not Path(f"/proc/{engine}").exists()


def test_it_listens_at_once_and_tells_how_far_it_is(model_folder: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "rosellm.roseinfer.server", str(model_folder)]
    process = subprocess.Popen([*command, "--port", str(port)])
    try:
        seen: list[tuple[int, str]] = []
        deadline = time.monotonic() + 60
        while not seen or seen[-1][0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)  # it has the processor for its start
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/readyz")
            except httpx.TransportError:
                continue
            seen.append((answer.status_code, answer.text))
        assert seen[0][0] == 503
        assert "loading" in seen[0][1]
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()

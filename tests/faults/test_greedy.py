"""Requests that take too long, and a client that asks for too much: the others hardly notice."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Server, start_server
from tests.faults.conftest import connect

KEYS = """
[keys.greedy]
key = "key-of-greedy"

[keys.modest]
key = "key-of-modest"
"""
PLACES, QUEUE, QUEUE_TOKENS = 4, 200, 1500
ASK: dict[str, Any] = {"model": "tiny-llama", "prompt": "Once", "max_tokens": 12, "seed": 7}
LONG: dict[str, Any] = {"max_tokens": 480, "ignore_eos": True, "n": 16}


@pytest.fixture(scope="module")
def shared_server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(KEYS)
    running = start_server(
        str(model_folder),
        f"--api-key-file={file}",
        f"--max-num-seqs={PLACES}",
        f"--max-queue={QUEUE}",
        f"--max-queue-tokens={QUEUE_TOKENS}",
        "--default-timeout-s=100",
        model="tiny-llama",
    )
    yield running
    assert running.stop() == 0


def headers(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer key-of-{name}"}


def ask(server: Server, name: str = "modest", **more: Any) -> httpx.Response:
    url = f"{server.url}/v1/completions"
    return httpx.post(url, json={**ASK, **more}, headers=headers(name), timeout=60)


@pytest.fixture(scope="module")
def undisturbed(shared_server: Server) -> str:
    return str(ask(shared_server).json()["choices"][0]["text"])


@pytest.fixture(autouse=True)
def _neighbours(shared_server: Server, undisturbed: str) -> Iterator[None]:
    """After everything: the same tokens, no block in use, healthy."""
    yield
    shared_server.wait_until_idle()
    assert ask(shared_server).json()["choices"][0]["text"] == undisturbed


@contextlib.contextmanager
def flood(server: Server, requests: int, **fields: Any) -> Iterator[None]:
    """So many requests of the greedy one that nobody reads."""
    body = json.dumps({**ASK, **LONG, **fields}).encode()
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer key-of-greedy\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    connections: list[socket.socket] = []
    try:
        for _ in range(requests):
            connections.append(connect(server))
            connections[-1].sendall(head + body)
        until = time.monotonic() + 20
        while server.health()["waiting"] < 0.6 * requests * 16:  # the first ones may have ended
            assert time.monotonic() < until
            time.sleep(0.01)
        yield
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.alone
def test_a_request_over_its_time_is_a_504(shared_server: Server) -> None:
    began = time.monotonic()
    answer = ask(shared_server, **LONG, timeout=0.3)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "timeout"
    assert 0.3 <= time.monotonic() - began < 3


def test_in_mid_stream_it_is_an_error_event(shared_server: Server) -> None:
    answer = ask(shared_server, **LONG, stream=True, timeout=0.5)
    assert answer.status_code == 200
    *events, last = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert len(events) > 1
    assert json.loads(last)["error"]["code"] == "timeout"
    assert "[DONE]" not in answer.text


def test_time_passes_in_the_queue_too(shared_server: Server) -> None:
    with flood(shared_server, 4):
        assert ask(shared_server, "greedy", timeout=0.2).status_code == 504
        assert shared_server.health()["waiting"] > 0


def test_a_flood_does_not_hold_up_another_key(shared_server: Server, undisturbed: str) -> None:
    """All places and the queue are taken for long; the modest one is answered before."""
    with flood(shared_server, 10):
        for _ in range(3):
            answer = ask(shared_server, timeout=10)
            assert answer.json()["choices"][0]["text"] == undisturbed
        assert shared_server.health()["waiting"] > 20


def test_a_queue_that_is_full_says_so_and_when_to_come_back(shared_server: Server) -> None:
    with flood(shared_server, 12):
        answer = ask(shared_server, n=100)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1


def test_prompts_fill_the_queue_by_their_tokens(shared_server: Server) -> None:
    prompts = [[5 + number] * 400 for number in range(16)]
    with flood(shared_server, 1), ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda prompt: ask(shared_server, prompt=prompt), prompts))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < 16
    assert {each.json()["error"]["code"] for each in refused} == {"queue_full"}
    assert {each.status_code for each in refused} == {503}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 128, "prompt": ["a", "b"]}, "n"),  # more than the queue holds
        ({"prompt": [[5] * 400] * 4}, "prompt"),
        ({"prompt": [[5]] * 150, "max_tokens": 500}, "max_tokens"),
    ],
)
def test_what_could_never_be_queued_is_a_400(
    shared_server: Server, fields: dict[str, Any], param: str
) -> None:
    answer = ask(shared_server, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param

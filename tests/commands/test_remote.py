"""A conversation with a server, and the one line that each of its failures comes to."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from rosellm.commands.answers import overflows
from rosellm.commands.remote import Remote, base_url
from rosellm.roseinfer.errors import ConfigError, RosellmError
from tests.bench.fake_server import FakeServer, running

HI = [{"role": "user", "content": "hi"}]


class Watching(FakeServer):
    """Notices a client that leaves before its answer is whole."""

    def __init__(self) -> None:
        super().__init__()
        self.left = threading.Event()

    async def _send_slowly(self, writer: asyncio.StreamWriter, event: Any) -> None:
        await super()._send_slowly(writer, event)
        if writer.is_closing():
            self.left.set()
            raise ConnectionResetError


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with running(Watching()) as server:
        yield server


@dataclass
class Refusing(FakeServer):
    """Answers everything with one status and body."""

    status: int = 404
    body: bytes = b""
    more: str = ""

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        size = len(self.body)
        head = f"HTTP/1.1 {self.status} Word\r\nContent-Length: {size}\r\n{self.more}\r\n"
        writer.write(head.encode() + self.body)
        await writer.drain()


def answer(url: str, model: str | None = "m", **params: Any) -> str:
    with Remote(url, model, {"max_tokens": 3, **params}) as remote:
        return "".join(remote.stream(HI))


def test_answer_model_and_parameters(fake: FakeServer) -> None:
    fake.pieces = 7
    assert answer(fake.url, None, seed=5, stop=["a"]) == " t0 t1 t2"
    assert fake.requests == [
        {
            "max_tokens": 3,
            "seed": 5,
            "stop": ["a"],
            "model": "fake",
            "messages": HI,
            "stream": True,
        }
    ]
    assert "authorization" not in fake.headers[-1]


def test_the_key_comes_from_the_environment(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    answer(fake.url)
    monkeypatch.setenv("ROSELLM_API_KEY", "ours")
    answer(fake.url)
    assert [each["authorization"] for each in fake.headers] == ["bearer theirs", "bearer ours"]
    monkeypatch.setenv("ROSELLM_API_KEY", "ro\nse")
    with pytest.raises(ConfigError, match="ROSELLM_API_KEY"):
        answer(fake.url)


def test_closing_an_answer_closes_the_connection(fake: Watching) -> None:
    fake.gap_s = 0.01
    with Remote(fake.url, "m", {"max_tokens": 100_000}) as remote:
        pieces = remote.stream(HI)
        assert next(piece for piece in pieces if piece) == " t0"
        pieces.close()
        assert fake.left.wait(5)


@pytest.mark.parametrize("how", ["broken", "in stream"])
def test_an_answer_that_breaks_off(fake: FakeServer, how: str) -> None:
    fake.fail[1] = how
    seen = []
    with (
        Remote(fake.url, "m", {"max_tokens": 3}) as remote,
        pytest.raises(RosellmError, match="broke off") as caught,
    ):
        seen.extend(remote.stream(HI))
    assert "".join(seen) == " t0"
    assert ("out of memory" in str(caught.value)) == (how == "in stream")


def error(message: str, code: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "code": code}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, error("no key"), r"answered 401: no key \(set ROSELLM_API_KEY or OPENAI_API_KEY"),
        (404, error("no model 'm'"), r"answered 404: no model 'm' \(check --url and --model\)"),
        (404, b"", r"answered 404: Word \(check --url and --model\)"),
        (500, b"<html>\nbad", "answered 500: <html> bad"),
        (429, error("slow\ndown"), "answered 429: slow down"),
        (200, b"data: {}}\n\n", "a chunk that is not OpenAI's"),
        (200, b"data: {}\n\n", "broke off"),
    ],
)
def test_refusals(status: int, body: bytes, says: str) -> None:
    with (
        running(Refusing(status=status, body=body)) as server,
        pytest.raises(RosellmError, match=says) as caught,
    ):
        answer(server.url)
    assert "\n" not in str(caught.value)
    assert not overflows(caught.value)


def test_a_redirect_is_not_followed() -> None:
    with (
        running(Refusing(status=307, more="Location: http://other/\r\n")) as server,
        pytest.raises(RosellmError, match="moved to http://other/"),
    ):
        answer(server.url)


@pytest.mark.parametrize(
    "body",
    [error("too much", "context_length_exceeded"), error("maximum context length is 8 tokens")],
)
def test_a_full_context_is_known(body: bytes) -> None:
    with running(Refusing(status=400, body=body)) as server, pytest.raises(RosellmError) as caught:
        answer(server.url)
    assert overflows(caught.value)


@pytest.mark.parametrize(
    ("body", "says"),
    [(b"{}", "is --url right"), (b"hello", "is --url right"), (b'{"data": []}', "--model NAME")],
)
def test_a_server_without_models(body: bytes, says: str) -> None:
    with (
        running(Refusing(status=200, body=body)) as server,
        pytest.raises(RosellmError, match=says),
    ):
        answer(server.url, None)


@pytest.mark.alone
def test_nobody_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(RosellmError, match="is the server running"):
            answer(url, None)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host", "http://", "http://h:99999999"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        base_url(url)


def test_base_url() -> None:
    assert base_url("http://host:1") == base_url("http://host:1/v1/") == "http://host:1/v1"
    assert base_url("https://host/api/v2") == "https://host/api/v2"

"""Requests that are not what HTTP or JSON allow, or go where nothing is."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Server
from tests.faults.conftest import connect, post, refused, say
from tests.faults.neighbours import CLIENT, undisturbed

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
POSTS = (COMPLETIONS, CHAT, f"{CHAT}/render", "/v1/embeddings", "/tokenize", "/detokenize")
POSTS += ("/generate",)
MESSAGES: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture(autouse=True)
def _undisturbed(guarded: Server) -> Iterator[None]:
    with undisturbed(guarded):
        yield


def completion(rest: str) -> bytes:
    return b'{"model": "tiny-llama", "prompt": "Once", "max_tokens": 2, ' + rest.encode() + b"}"


def chat(rest: str) -> bytes:
    messages = b'"messages": [{"role": "user", "content": "Hi"}]'
    return b'{"model": "tiny-llama", "max_tokens": 2, ' + messages + b", " + rest.encode() + b"}"


# -- bodies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", POSTS)
def test_bad_json(guarded: Server, path: str) -> None:
    for body in (b"", b"{", b"{}{}", b'{"model": }', b"{'model': 1}", b'{"a": 1,}', b"nul", b"\0"):
        refused(post(guarded, path, body))
    for body in (b"[]", b"5", b'"text"', b"null", b"true"):
        assert "object" in refused(post(guarded, path, body))


def test_bad_utf8(guarded: Server) -> None:
    for broken in (
        b"\xff",
        b"\xc3(",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
        b"\xf4\x90\x80\x80",
        b"\xe2\x82",
    ):
        body = b'{"model": "tiny-llama", "prompt": "' + broken + b'"}'
        assert "JSON" in refused(post(guarded, COMPLETIONS, body))
    for encoding in ("utf-16", "utf-32", "utf-8-sig"):
        body = '{"model": "tiny-llama", "prompt": "a"}'.encode(encoding)
        refused(post(guarded, COMPLETIONS, body))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_are_none(guarded: Server, number: str) -> None:
    """Wherever they stand: a float would take them, and so would what holds anything."""
    for rest in (f'"temperature": {number}', f'"logit_bias": {{"5": {number}}}', f'"n": {number}'):
        refused(post(guarded, COMPLETIONS, completion(rest)))
        refused(post(guarded, CHAT, chat(rest)))
    if "e" in number:  # JSON all the same, for what takes any value
        answer = post(guarded, CHAT, chat(f'"chat_template_kwargs": {{"x": {number}}}'))
        assert answer.status_code in (200, 400)
        return
    for rest in (
        f'"chat_template_kwargs": {{"x": {number}}}',
        f'"structured_outputs": {{"json": {{"minimum": {number}}}}}',
        f'"structured_outputs": {{"json": "{{\\"minimum\\": {number}}}"}}',
    ):
        refused(post(guarded, CHAT, chat(rest)))


def test_lone_surrogates(guarded: Server) -> None:
    for lone in ("\\ud800", "\\udfff", "\\udc00\\ud800", "a\\ud83dz"):
        for rest in (
            f'"stop": "{lone}"',
            f'"user": "{lone}"',
            f'"{lone}": 1',
            f'"structured_outputs": {{"regex": "{lone}"}}',
        ):
            refused(post(guarded, COMPLETIONS, completion(rest)))
        body = f'{{"model": "tiny-llama", "prompt": "{lone}"}}'.encode()
        for path in (COMPLETIONS, "/tokenize", "/generate"):
            refused(post(guarded, path, body))
        refused(post(guarded, CHAT, chat(f'"chat_template_kwargs": {{"x": "{lone}"}}')))
    pair = b'{"model": "tiny-llama", "max_tokens": 1, "prompt": "\\ud83d\\ude00"}'
    assert post(guarded, COMPLETIONS, pair).status_code == 200


def test_json_of_depth_100k(guarded: Server) -> None:
    deep = 100_000
    for value in ("[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep, "[" * deep):
        refused(post(guarded, COMPLETIONS, value.encode()))
        refused(post(guarded, COMPLETIONS, completion(f'"logit_bias": {value}')))
        refused(post(guarded, CHAT, chat(f'"chat_template_kwargs": {{"x": {value}}}')))
        tool = f'{{"type": "function", "function": {{"name": "f", "parameters": {value}}}}}'
        refused(post(guarded, CHAT, chat(f'"tools": [{tool}]')))
        refused(post(guarded, "/tokenize", f'{{"prompt": {value}}}'.encode()))


def test_json_of_depth_100k_in_a_string(guarded: Server) -> None:
    """Texts that are read as JSON later."""
    deep = 100_000
    for value in ("[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep):
        refused(
            post(
                guarded,
                COMPLETIONS,
                {"model": "tiny-llama", "prompt": "a", "structured_outputs": {"json": value}},
            )
        )
        function = {"name": "f", "arguments": value}
        call = {"id": "c", "type": "function", "function": function}
        said = {"role": "assistant", "tool_calls": [call]}
        refused(post(guarded, CHAT, {"model": "tiny-llama", "messages": [*MESSAGES, said]}))


def test_json_that_is_just_not_too_deep(guarded: Server) -> None:
    """Where the parser still takes it, nothing behind it may fail on it."""
    for deep in (90, 150, 195, 250, 900, 1100):
        value = '{"a":' * deep + "1" + "}" * deep
        for rest in (
            f'"chat_template_kwargs": {{"x": {value}}}',
            f'"structured_outputs": {{"json": {value}}}',
            f'"metadata": {value}',
            f'"user": {value}',
        ):
            assert post(guarded, CHAT, chat(rest)).status_code in (200, 400)


# -- where it goes ---------------------------------------------------------------------------


def test_wrong_method(guarded: Server) -> None:
    for path in POSTS:
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
            answer = CLIENT.request(method, f"{guarded.url}{path}")
            refused(answer, 405)
            assert answer.headers["allow"] == "POST"
    for path in ("/health", "/readyz", "/livez", "/metrics", "/v1/models", "/v1/capabilities"):
        refused(post(guarded, path, {}), 405)
    for method in (b"TRACE", b"PROPFIND", b"CONNECT", b"BREW", b"get"):
        answer = say(guarded, method + b" /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert answer.status in (400, 405)


def test_wrong_path(guarded: Server) -> None:
    for path in (
        *("/", "/v1", "/v1/", "/v1/nothing", "/v1/completions/", "//v1/completions"),
        *("/V1/completions", "/v1/completions/x", "/v1/chat", "/%2e%2e/etc/passwd", "/v1%2fmodels"),
        *("/v1/completions%00", "/v1/completions;a=b", "/\\etc\\passwd", "/v1/../../etc/passwd"),
    ):
        line = (
            f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}"
        )
        answer = say(guarded, line.encode())
        assert answer.status in (400, 404, 405), path
        assert answer.error["message"]
    for target in (b"http://elsewhere/v1/models", b"*", b"elsewhere:80", b"?", b"#"):
        answer = say(
            guarded, b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        assert answer.status < 500
    refused(CLIENT.get(f"{guarded.url}/v1/models/other"), 404)


def test_wrong_content_type(guarded: Server) -> None:
    body = {"model": "tiny-llama", "prompt": "a", "max_tokens": 1}
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/xml", "x", ";"):
        answer = post(guarded, COMPLETIONS, body, headers={"Content-Type": kind})
        assert "application/json" in refused(answer)
    for kind in ("application/json; charset=utf-8", "application/problem+json", "Application/JSON"):
        answer = post(guarded, COMPLETIONS, body, headers={"Content-Type": kind})
        assert answer.status_code == 200
    zipped = {"Content-Encoding": "gzip"}
    refused(post(guarded, COMPLETIONS, b"\x1f\x8b\x08\0\0\0\0\0", headers=zipped), 415)


@pytest.mark.parametrize(
    "host", [b"a b", b"a/b", b"user@a", b"a?b", b"a#b", b"a\\b", b"a:b", b"\xff"]
)
def test_wrong_host(guarded: Server, host: bytes) -> None:
    """What is no host's name could mislead whatever takes the URL apart."""
    answer = say(guarded, b"GET /health HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert answer.status == 400


def test_any_name_may_be_the_hosts(guarded: Server) -> None:
    for host in ("elsewhere", "elsewhere:1", "[::1]:80", "127.0.0.1", "a_b.example"):
        answer = CLIENT.get(f"{guarded.url}/health", headers={"Host": host})
        assert answer.status_code == 200


# -- connections -----------------------------------------------------------------------------


def test_1000_idle_connections(cramped: Server) -> None:
    """They take nothing from those who ask; when they have gone, so has what they held."""
    open_ones: list[socket.socket] = []
    before = descriptors(cramped)
    with undisturbed(cramped):
        try:
            open_ones += [connect(cramped) for _ in range(1000)]
            body = {"model": "tiny-llama", "prompt": "a", "max_tokens": 4}
            assert post(cramped, COMPLETIONS, body).status_code == 200
            assert descriptors(cramped) >= before + 1000
        finally:
            for connection in open_ones:
                connection.close()
    for _ in range(100):
        if descriptors(cramped) < before + 20:
            break
        httpx.get(f"{cramped.url}/livez")
    assert descriptors(cramped) < before + 20


def descriptors(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))

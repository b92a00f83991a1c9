"""Streams as they arrive: events, chunks in several dialects, and errors."""

from __future__ import annotations

import asyncio

import pytest

from rosellm.bench.exchange import ExchangeError, Server, exchange
from rosellm.bench.record import Recorder, error_message
from rosellm.bench.sse import EventStream
from rosellm.roseinfer.errors import ConfigError

STREAM = b": hello\n\ndata: one\r\n\r\nevent: x\ndata: two\ndata:more\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("size", range(1, 12))
def test_events_are_the_same_however_they_are_cut(size):
    stream = EventStream()
    cuts = (STREAM[start : start + size] for start in range(0, len(STREAM), size))
    assert [e for cut in cuts for e in stream.feed(cut)] == [b"one", b"two\nmore", b"[DONE]"]


def record(*payloads):
    recorder = Recorder()
    for now, payload in enumerate(payloads):
        recorder.feed(b"data: " + payload.encode() + b"\n\n", float(now))
    return recorder


def test_a_chat_stream():
    recorder = record(
        '{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}',
        '{"choices":[{"delta":{"content":"a"},"finish_reason":null}],"usage":null}',
        '{"choices":[{"delta":{"content":"b"}}],"unknown":[1,{"x":2}]}',
        '{"choices":[{"delta":{},"finish_reason":"stop"}]}',
        '{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}',
        "[DONE]",
    )
    assert (recorder.times, recorder.end, recorder.error) == ([1.0, 2.0], 3.0, None)
    assert (recorder.usage.prompt_tokens, recorder.usage.completion_tokens) == (9, 3)


@pytest.mark.parametrize(
    "inside",
    [
        '"text":"a"',
        '"delta":{"content":"a"}',
        '"delta":{"reasoning_content":"a","content":null}',
        '"delta":{"reasoning":"a"}',
    ],
)
def test_text_is_seen_in_every_dialect(inside):
    assert record(f'{{"choices":[{{{inside}}}]}}').times == [0.0]


def test_an_error_in_the_stream_is_kept():
    assert record('{"error":{"message":"out of memory"}}').error == "in the stream: out of memory"
    assert record('{"error":null,"choices":[]}').error is None
    assert "not OpenAI's" in record("not json").error


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"no such model","type":"x","code":404}}', "no such model"),
        (b'{"error":"plain"}', "plain"),
        (b'{"detail":"Not  Found"}', '{"detail":"Not Found"}'),
        (b"<html>" + b"x" * 500, "<html>" + "x" * 151 + "..."),
    ],
)
def test_error_bodies_of_any_shape_give_a_short_message(body, message):
    assert error_message(body) == message


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000", ("localhost", 8000, False, "/v1")),
        ("http://localhost:8000/", ("localhost", 8000, False, "/v1")),
        ("https://api.example.com/v1/", ("api.example.com", 443, True, "/v1")),
        ("http://[::1]:80/other/v2", ("::1", 80, False, "/other/v2")),
    ],
)
def test_base_urls(url, expected):
    server = Server.at(url)
    assert (server.host, server.port, server.tls, server.prefix) == expected


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:port"])
def test_what_is_no_base_url_is_refused(url):
    with pytest.raises(ConfigError, match="--base-url"):
        Server.at(url)


def ask_raw(answer: bytes):
    """GET from a server that sends these bytes and closes; return the body that arrived."""

    async def main():
        async def handle(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        pieces = []
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            await exchange(
                Server("127.0.0.1", port, tls=False, prefix=""),
                "/",
                on_body=lambda body, _: pieces.append(body),
            )
        return b"".join(pieces)

    return asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n3\r\nody\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nbody",
    ],
)
def test_every_way_to_end_a_body(answer):
    assert ask_raw(answer) == b"body"


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"", "closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbody", "closed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n", "closed"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
    ],
)
def test_answers_that_break_off_are_errors(answer, complaint):
    with pytest.raises(ExchangeError, match=complaint):
        ask_raw(answer)

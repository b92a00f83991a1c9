"""Connections that are hostile, broken or slow: each gets its answer, and nobody else notices."""

from __future__ import annotations

import json
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from rosellm.roseinfer.server.edge import MOST_AHEAD
from tests.e2e.conftest import Server
from tests.faults.conftest import CONNECTIONS, IDLE_S, RECEIPT_S, STALL_S, connect, read, say

HOST = b"Host: here\r\n"
CLOSE = b"Connection: close\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\n" + HOST
ASK: dict[str, Any] = {"model": "tiny-llama", "prompt": "Once", "max_tokens": 12, "seed": 7}


def ask(server: Server, **more: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json={**ASK, **more}, timeout=30)


def counted(server: Server, name: str) -> list[Sample]:
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    return [each for each in samples if each.name == f"rosellm:{name}_total"]


def refusals(server: Server) -> Counter[str]:
    """How many there were, by reason."""
    found = counted(server, "rejected")
    return Counter({each.labels["reason"]: int(each.value) for each in found})


def disconnects(server: Server) -> int:
    [found] = counted(server, "client_disconnects")
    return int(found.value)


@pytest.fixture(scope="module")
def undisturbed(guarded: Server) -> str:
    return str(ask(guarded).json()["choices"][0]["text"])


@pytest.fixture(autouse=True)
def _neighbours(guarded: Server, undisturbed: str) -> Iterator[None]:
    """After every fault: the same tokens, no block in use, healthy."""
    yield
    assert ask(guarded).json()["choices"][0]["text"] == undisturbed
    guarded.wait_until_idle()


def test_too_many_header_fields(guarded: Server) -> None:
    fields = b"".join(b"x-%d: 1\r\n" % number for number in range(120))
    answer = say(guarded, b"GET /health HTTP/1.1\r\n" + HOST + fields + b"\r\n")
    assert answer.status == 431
    assert answer.error["code"] == "invalid_http"


def test_oversized_headers(guarded: Server) -> None:
    many = b"".join(b"x-%d: %s\r\n" % (number, b"a" * 1000) for number in range(70))
    for fields in (many, b"x: " + b"a" * (70 << 10) + b"\r\n"):
        answer = say(guarded, b"GET /health HTTP/1.1\r\n" + HOST + fields + b"\r\n")
        assert answer.status == 431


@pytest.mark.parametrize(
    "before",
    [
        b"GET /health HTTP/1.1\r\nx: ",
        b"GET /health HTTP/1.1\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: ",
        POST + b"Transfer-Encoding: chunked\r\n\r\n2;",
    ],
    ids=["value", "name", "trailer", "extension"],
)
def test_a_field_without_an_end(guarded: Server, before: bytes) -> None:
    """Piece by piece, until there is an answer: a reset behind it would lose it."""
    with connect(guarded) as connection:
        connection.sendall(before)
        for _ in range(64):
            connection.sendall(b"a" * (16 << 10))
            time.sleep(0.005)
            if select.select([connection], [], [], 0)[0]:
                break
        answer = read(connection)
    assert answer.status == 431


def test_a_long_target(guarded: Server) -> None:
    answer = say(guarded, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answer.status == 414


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        b"Content-Length: 2\r\nContent-Length: 3\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 1e3\r\n",
        b"Content-Length : 2\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"X\0Y: 1\r\n",
    ],
)
def test_framing_with_two_readings(guarded: Server, framing: bytes) -> None:
    answer = say(guarded, POST + framing + b"\r\n{}")
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"


def test_fields_behind_a_body_are_no_headers(guarded: Server) -> None:
    body = json.dumps(ASK).encode()
    framing = b"Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n" + CLOSE
    chunks = b"%x\r\n%s\r\n0\r\n" % (len(body), body)
    trailer = b"x-request-id: behind\r\ncontent-type: text/plain\r\n\r\n"
    answer = say(guarded, POST + framing + b"\r\n" + chunks + trailer)
    assert answer.status == 200
    assert "behind" not in answer.head
    long = b"x: %s\r\n\r\n" % (b"a" * (70 << 10))
    assert say(guarded, POST + framing + b"\r\n" + chunks + long).status == 431


def test_a_refusal_is_never_written_into_another_answer(guarded: Server) -> None:
    fields = {**ASK, "stream": True, "max_tokens": 200, "ignore_eos": True}
    body = json.dumps(fields).encode()
    whole = POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    with connect(guarded) as connection:
        connection.sendall(whole)
        seen = connection.recv(1 << 16)
        assert seen.startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n")
        try:
            while piece := connection.recv(1 << 16):
                seen += piece
        except OSError:
            pass
    assert seen.count(b"HTTP/1.1") == 1


def test_a_second_request_is_refused_as_the_first_one_would_be(guarded: Server) -> None:
    first = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"
    for second, status in (
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n", 414),
        (b"GET /livez HTTP/1.1\r\nx: y", 408),
    ):
        with connect(guarded) as connection:
            connection.sendall(first)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
            connection.sendall(second)
            assert read(connection).status == status


@pytest.mark.parametrize(
    "behind",
    [b"hello\r\n\r\n", POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", POST + b"x: y\0\r\n"],
    ids=["nothing", "body", "header"],
)
def test_what_comes_behind_a_request_costs_it_no_answer(
    guarded: Server, undisturbed: str, behind: bytes
) -> None:
    body = json.dumps(ASK).encode()
    answer = say(guarded, POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body) + behind)
    assert answer.status == 200
    assert json.loads(answer.body)["choices"][0]["text"] == undisturbed
    assert "connection: close" in answer.head


@pytest.mark.alone
def test_a_client_that_leaves_with_a_request_behind_another(guarded: Server) -> None:
    """Both are noticed: the one that is answered is aborted, the other one never begins."""
    body = json.dumps({**ASK, "prompt": ["Once"] * 30, "max_tokens": 480, "ignore_eos": True})
    asked = POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body.encode())
    before = disconnects(guarded)
    with connect(guarded) as connection:
        connection.sendall(asked + asked)
        until = time.monotonic() + 10
        while not guarded.health()["running"]:
            assert time.monotonic() < until
    until = time.monotonic() + 2
    while disconnects(guarded) == before:
        assert time.monotonic() < until
    guarded.wait_until_idle(2)
    assert disconnects(guarded) == before + 1


def test_a_client_that_leaves_in_the_middle_of_a_body(guarded: Server) -> None:
    before = refusals(guarded)
    for framing, sent in (
        (b"Content-Length: 100\r\n", b'{"model": '),
        (b"Transfer-Encoding: chunked\r\n", b'9\r\n{"model":\r\n'),
    ):
        with connect(guarded) as connection:
            connection.sendall(POST + framing + b"\r\n" + sent)
            time.sleep(0.1)
    time.sleep(0.2)
    assert refusals(guarded) == before, "it is nobody's error"


def test_not_http_at_all(guarded: Server) -> None:
    for sent in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"\0" * 100):
        assert say(guarded, sent).status == 400


@pytest.mark.parametrize("hosts", [b"", HOST + HOST])
def test_no_host_or_two(guarded: Server, hosts: bytes) -> None:
    assert say(guarded, b"GET /health HTTP/1.1\r\n" + hosts + b"\r\n").status == 400


def test_an_old_client_needs_no_host(guarded: Server) -> None:
    assert say(guarded, b"GET /health HTTP/1.0\r\n\r\n").status == 200


def test_a_body_that_is_said_to_be_too_large(guarded: Server) -> None:
    """Refused before it is there."""
    with connect(guarded) as connection:
        connection.sendall(POST + CLOSE + b"Content-Length: 2000000\r\n\r\n{")
        answer = read(connection)
    assert answer.status == 413


def test_a_body_that_turns_out_too_large(guarded: Server) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * (64 << 10)

    answer = httpx.post(f"{guarded.url}/v1/completions", content=endless())
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.alone
def test_slow_headers(guarded: Server) -> None:
    began = time.monotonic()
    answer = say(guarded, b"GET /health HTTP/1.1\r\nHost: ")
    assert answer.status == 408
    assert answer.error["code"] == "request_timeout"
    assert RECEIPT_S / 2 < time.monotonic() - began < 4 * RECEIPT_S


def test_a_slow_body(guarded: Server) -> None:
    answer = say(guarded, POST + b"Content-Length: 100\r\n\r\n{")
    assert answer.status == 408


@pytest.mark.alone
def test_drops_do_not_put_the_deadline_off(guarded: Server) -> None:
    with connect(guarded) as connection:
        connection.sendall(POST + b"Content-Length: 100\r\n\r\n")
        began = time.monotonic()
        while time.monotonic() - began < RECEIPT_S - 0.4:
            connection.sendall(b" ")
            time.sleep(0.1)
        assert read(connection).status == 408
    assert time.monotonic() - began < 4 * RECEIPT_S


def test_what_is_refused_here_is_counted_too(guarded: Server) -> None:
    before = refusals(guarded)
    say(guarded, b"GET /health HTTP/1.1\r\nHost: ")
    say(guarded, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    after = refusals(guarded)
    assert after - before == Counter({"too_slow": 1, "too_large": 1})


def test_a_client_that_says_nothing(guarded: Server) -> None:
    with connect(guarded) as connection:
        assert connection.recv(1) == b""


@pytest.mark.alone
def test_a_connection_on_which_nothing_more_is_asked(guarded: Server) -> None:
    with connect(guarded) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n")
        answer = b""
        while not answer.endswith(b'{"status":"ok"}'):
            answer += connection.recv(1 << 16)
        answered = time.monotonic()
        assert connection.recv(1) == b""
    assert 0.9 * IDLE_S < time.monotonic() - answered < IDLE_S + 1


@pytest.mark.alone
def test_empty_lines_do_not_keep_a_connection(guarded: Server) -> None:
    began = time.monotonic()
    with connect(guarded) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n")
        answer = b""
        while not answer.endswith(b'{"status":"ok"}'):
            answer += connection.recv(1 << 16)
        connection.sendall(b"\r\n")
        assert connection.recv(1) == b""
    assert time.monotonic() - began < 4 * RECEIPT_S


def test_a_connection_may_be_kept_and_used_again(guarded: Server, undisturbed: str) -> None:
    """Also for longer than one request may take to arrive."""
    with httpx.Client() as client:
        for _ in range(4):
            answer = client.post(f"{guarded.url}/v1/completions", json=ASK, timeout=30)
            assert answer.json()["choices"][0]["text"] == undisturbed
            time.sleep(RECEIPT_S / 2)


def test_requests_one_behind_the_other(guarded: Server, undisturbed: str) -> None:
    """The second waits unread for the answer to the first one; that is not its sender's fault."""
    body = json.dumps({**ASK, "max_tokens": 400, "ignore_eos": True}).encode()
    first = POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    body = json.dumps(ASK).encode()
    second = POST + CLOSE + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    answer = say(guarded, first + second)
    assert answer.status == 200
    assert (
        undisturbed
        in json.loads(answer.body[answer.body.rindex(b"\r\n\r\n") :])["choices"][0]["text"]
    )


def test_far_more_requests_than_answers(guarded: Server) -> None:
    """What one connection may have waiting is bounded; what was within is answered."""
    body = json.dumps({**ASK, "max_tokens": 400, "ignore_eos": True}).encode()
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=30) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        connection.sendall((b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n") * 2000)
        received = rest_of(connection)
    assert received.count(b"HTTP/1.1 200") == 1 + MOST_AHEAD
    assert received.count(b"HTTP/1.1 ") == 1 + MOST_AHEAD


def test_connections_beyond_the_limit(guarded: Server) -> None:
    open_ones = [connect(guarded) for _ in range(CONNECTIONS)]
    try:
        answer = say(guarded, b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
        assert answer.status == 503
        assert "retry-after: 1" in answer.head
    finally:
        for connection in open_ones:
            connection.close()
    until = time.monotonic() + 10
    while httpx.get(f"{guarded.url}/health").status_code != 200:
        assert time.monotonic() < until


def test_a_client_that_stops_reading(guarded: Server) -> None:
    """Its answer is aborted in the middle, and its place is free again."""
    ask_much = {**ASK, "prompt": ["Once"] * 30, "max_tokens": 480, "ignore_eos": True}
    body = json.dumps({**ask_much, "stream": True, "logprobs": 5}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", guarded.port))
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        assert connection.recv(12) == b"HTTP/1.1 200"
        guarded.wait_until_idle(60)  # perhaps before the deadline, if the engine was quick
        time.sleep(2 * STALL_S)
        assert b"[DONE]" not in rest_of(connection)


def rest_of(connection: socket.socket) -> bytes:
    received = b""
    try:
        while piece := connection.recv(1 << 20):
            received += piece
    except ConnectionError:
        pass
    return received

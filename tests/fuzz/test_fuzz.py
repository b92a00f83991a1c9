"""Requests that chance makes: whatever they are, an answer or a refusal, and nothing remains."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from random import Random
from typing import Any

import httpx
import pytest
from hypothesis import strategies as st

from tests.e2e.conftest import Server
from tests.fuzz import run
from tests.fuzz.answers import Got
from tests.fuzz.bodies import Sent, any_request, case, request
from tests.fuzz.conftest import Ended, Target
from tests.fuzz.described import try_description, try_many
from tests.fuzz.run import Run
from tests.fuzz.values import smaller

RANDOM = st.randoms(use_true_random=False, note_method_calls=False)


@pytest.mark.usefixtures("as_before")
def test_request_bodies(target: Target) -> None:
    """Made of the schemas by which bodies are read, then damaged."""
    try_many(RANDOM.map(request), lambda sent: target.send(sent) and None, 60, seed=None)


@pytest.mark.usefixtures("as_before")
def test_paths_methods_and_headers(target: Target) -> None:
    """Of any bytes that HTTP allows."""
    try_many(RANDOM.map(any_request), lambda sent: target.send(sent) and None, 40, seed=None)


@pytest.mark.usefixtures("as_before")
def test_the_servers_own_description(target: Target) -> None:
    """Schemathesis over each operation that ``/openapi.json`` tells of."""
    assert try_description(target.app, target.answer, lambda operations: 2) >= 20


def test_a_slice_of_the_long_run(server: Server) -> None:
    """Of `make fuzz`, at a server over sockets; always the same cases, most of them refused."""
    report = asyncio.run(Run(server.port, lambda number: case(1, number)).rounds(0, 300))
    assert not report.failures, report.failures[0]
    assert report.statuses.total() == 300
    assert report.statuses[200] > 30
    assert report.statuses[400] > 100


def test_a_case_is_the_same_again() -> None:
    assert case(7, 12) == case(7, 12)
    assert len({case(seed, number) for seed in range(3) for number in range(20)}) > 55


def test_what_is_made_takes_every_path() -> None:
    paths = Counter(request(Random(seed)).path for seed in range(500))
    assert set(paths) >= {"/v1/chat/completions", "/v1/chat/completions/render", "/v1/embeddings"}
    assert set(paths) >= {"/v1/completions", "/tokenize", "/detokenize", "/generate"}


def test_a_failure_is_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """To what it takes, and no more."""

    async def attempt(_: Any, sent: Sent) -> tuple[int, str]:
        body = json.loads(sent.body)
        return 500, "bad" if "x" in str(body.get("a", "")) and "b" in body else ""

    monkeypatch.setattr(run, "attempt", attempt)
    body = {"c": [1, 2, {"d": None}], "a": ["y", {"z": "wwxww"}], "b": {"e": 1}}
    sent = Sent("POST", "/", json.dumps(body).encode())
    least = asyncio.run(run.smallest(None, sent))  # type: ignore[arg-type]
    assert json.loads(least.body) in ({"a": [{"z": "x"}], "b": {}}, {"a": {"z": "x"}, "b": {}})
    assert smaller({"a": 1}) == [{}]


@pytest.mark.parametrize(
    ("status", "body", "wrong"),
    [
        (500, b'{"error": {"message": "m", "type": "t", "param": null, "code": null}}', True),
        (503, b'{"error": {"message": "m", "type": "t", "param": null, "code": "no"}}', True),
        (504, b'{"error": {"message": "m", "type": "t", "param": null, "code": "timeout"}}', False),
        (400, b'{"error": {"message": "a\\nb", "type": "t", "param": null, "code": null}}', True),
        (400, b'{"error": {"message": "m"}}', True),
        (400, b"no JSON", True),
        (200, b"anything", True),
        (200, b'{"a": NaN}', True),
        (200, b'{"a": 1.5}', False),
    ],
)
def test_what_an_answer_may_be(status: int, body: bytes, wrong: bool) -> None:
    got = Got(status, {"x-request-id": "1", "content-type": "application/json"}, body)
    assert bool(run.fault("POST", got)) == wrong
    assert run.fault("POST", Got(status, {}, body))  # without its id


def test_what_a_stream_may_be() -> None:
    headers = {"x-request-id": "1", "content-type": "text/event-stream; charset=utf-8"}
    late = b'data: {"error": {"code": "timeout"}}\n\n'
    assert not run.fault("POST", Got(200, headers, b"data: {}\n\ndata: [DONE]\n\n"))
    assert run.fault("POST", Got(200, headers, b"data: {\n\ndata: [DONE]\n\n"))
    assert not run.fault("POST", Got(200, headers, b"data: {}\n\n" + late))
    assert run.fault("POST", Got(200, headers, late.replace(b"timeout", b"oops")))
    assert run.fault("POST", Got(200, headers, b"data: {}\n\n"))
    assert run.fault("POST", Got(200, headers, b"data: {}\n\ndata: [DONE]\n\n", whole=False))


@pytest.mark.parametrize("whole", [True, False])
def test_in_process_an_answer_that_is_cut_off_is_told_from_a_whole_one(whole: bool) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": not whole})

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(ended)
        async with httpx.AsyncClient(transport=transport, base_url="http://fuzz") as client:
            return await client.get("/")

    ended = Ended(app)
    assert asyncio.run(ask()).content == b"a"
    assert ended.whole == whole

"""Before the model is there, and after the server was told to stop."""

from __future__ import annotations

import asyncio
import http.client
import socket
from typing import Any

import httpx

from rosellm.roseinfer.config import ServerConfig
from rosellm.roseinfer.server.gate import Gate
from rosellm.roseinfer.server.web_server import web_server
from tests.server.fakes import CHAT, HELLO, serving, silent


def client(gate: Gate) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://test")


def test_while_it_loads_everybody_is_told_how_far_it_is() -> None:
    async def test() -> None:
        gate = Gate()
        async with client(gate) as http:
            gate.loading("reading weights, 45 %")
            for path in ("/health", "/readyz", "/v1/models", "/metrics", "/nowhere", "/%6civez"):
                answer = await http.get(path)
                assert answer.status_code == 503
                assert "reading weights, 45 %" in answer.json()["error"]["message"]
                assert answer.headers["retry-after"] == "1"
            answer = await http.post(CHAT, content=b"not read")
            assert answer.json()["error"]["code"] == "not_ready"
            assert (await http.get("/livez")).status_code == 200

    asyncio.run(test())


def test_a_closed_gate_refuses_the_new_counts_them_and_waits_for_those_inside() -> None:
    async def test() -> None:
        async with serving(silent) as server:
            gate = Gate()
            refused: list[int] = []
            gate.open(server.app, refused.append)
            async with client(gate) as http:
                assert (await http.get("/health")).status_code == 200
                body = {"model": "m", "messages": HELLO}
                inside = asyncio.ensure_future(http.post(CHAT, json=body))
                while not server.engine.added:
                    await asyncio.sleep(0)
                gate.close("the server is shutting down")
                for path in ("/health", "/readyz", "/v1/models"):
                    answer = await http.get(path)
                    assert answer.status_code == 503
                    assert answer.headers["connection"] == "close"
                    assert "shutting down" in answer.json()["error"]["message"]
                assert (await http.get("/livez")).status_code == 200
                assert (await http.get("/metrics")).status_code == 200
                assert refused == [503] * 3
                empty = asyncio.ensure_future(gate.empty())
                await asyncio.sleep(0.02)
                assert not empty.done()
                inside.cancel()
                await asyncio.wait_for(empty, 2)

    asyncio.run(test())


def test_who_sends_much_is_told_too() -> None:
    """Also a client that reads no answer before it has sent everything."""

    def post(port: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", CHAT, body=b"x" * (6 << 20))
        return connection.getresponse().status

    async def test() -> None:
        gate = Gate()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            server = web_server(gate, ServerConfig(), gate.refused)
            serving = asyncio.ensure_future(server.serve(sockets=[listening]))
            assert await asyncio.to_thread(post, listening.getsockname()[1]) == 503
            server.should_exit = True
            await serving

    asyncio.run(test())


def test_an_answer_that_is_broken_off_at_the_end_is_no_error() -> None:
    async def answers_for_ever(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    async def test() -> None:
        gate = Gate()
        gate.open(answers_for_ever, lambda _: None)
        scope = {"type": "http", "path": CHAT, "headers": []}
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        inside = asyncio.ensure_future(gate(scope, None, send))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        inside.cancel()
        await inside
        assert sent[0]["status"] == 503, "nothing was sent yet: it is told so"
        await asyncio.wait_for(gate.empty(), 2)

    asyncio.run(test())

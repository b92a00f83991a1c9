"""A connection's deadlines do not count the time in which nobody could look at it."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest

from rosellm.roseinfer.config import ServerConfig
from rosellm.roseinfer.server.edge import EdgeProtocol, _Deadline
from rosellm.roseinfer.server.web_server import web_server


@pytest.mark.parametrize("arrives", [True, False])
def test_what_came_while_the_loop_stood_still_is_seen_first(arrives: bool) -> None:
    ended: list[float] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        deadline = _Deadline(loop, 0.05, lambda: ended.append(time.monotonic()))
        deadline.start()
        time.sleep(0.5)  # what the loop is kept from is the point
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not ended
        if arrives:
            deadline.stop()
        await asyncio.sleep(0.7)

    asyncio.run(run())
    assert len(ended) == (not arrives)


@pytest.mark.parametrize("turn", [0.08, 0.13, 0.3])
def test_a_loop_that_is_always_late_does_not_put_it_off_for_ever(turn: float) -> None:
    ended: list[float] = []

    async def run() -> float:
        deadline = _Deadline(
            asyncio.get_running_loop(), 0.2, lambda: ended.append(time.monotonic())
        )
        began = time.monotonic()
        deadline.start()
        while not ended and time.monotonic() < began + 2:
            time.sleep(turn)
            await asyncio.sleep(0)
        return began

    began = asyncio.run(run())
    assert ended
    assert ended[0] - began < 1.9


def test_it_ends_once_and_in_time_otherwise() -> None:
    ended: list[float] = []

    async def run() -> float:
        deadline = _Deadline(
            asyncio.get_running_loop(), 0.1, lambda: ended.append(time.monotonic())
        )
        began = time.monotonic()
        deadline.start()
        deadline.start()
        await asyncio.sleep(0.4)
        return began

    began = asyncio.run(run())
    assert len(ended) == 1
    assert 0.09 < ended[0] - began < 0.35


def test_a_client_that_reads_nothing_is_let_go_of_however_little_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The transport never says that its buffer is full: what is left counts as little."""
    made = EdgeProtocol.connection_made

    def roomy(self: EdgeProtocol, transport: asyncio.Transport) -> None:
        made(self, transport)
        transport.set_write_buffer_limits(high=64 << 20)

    monkeypatch.setattr(EdgeProtocol, "connection_made", roomy)

    async def answers(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"%d" % (8 << 20)), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * (8 << 20)})

    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
            server = web_server(answers, ServerConfig(stall_timeout_s=0.3), lambda _: None)
            serving = asyncio.ensure_future(server.serve(sockets=[listening]))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await asyncio.to_thread(client.connect, listening.getsockname())
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            for holds in (True, False):
                end = time.monotonic() + 5
                while bool(server.server_state.connections) != holds:
                    assert time.monotonic() < end
                    await asyncio.sleep(0.02)
            server.should_exit = True
            await serving

    asyncio.run(test())

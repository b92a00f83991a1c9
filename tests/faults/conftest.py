"""A server with short deadlines, and a client that says exactly what it is told to."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Server, launch, model_folder, start_server

__all__ = ["launch", "model_folder"]

RECEIPT_S, STALL_S, CONNECTIONS = 1.5, 1.5, 40


@dataclass
class Answer:
    """What came back on a connection until the server closed it."""

    status: int
    head: str
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def say(server: Server, *pieces: bytes) -> Answer:
    """Send bytes on a connection of their own, and read to the end."""
    with connect(server) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return read(connection)


def read(connection: socket.socket) -> Answer:
    received = b""
    while piece := connection.recv(1 << 16):
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1]) if head else 0
    return Answer(status, head.decode().lower(), body)


@pytest.fixture(scope="session")
def guarded(model_folder: Path) -> Iterator[Server]:
    running = start_server(
        str(model_folder),
        f"--request-timeout-s={RECEIPT_S}",
        f"--stall-timeout-s={STALL_S}",
        f"--max-connections={CONNECTIONS}",
        "--max-body-mb=1",
        model="tiny-llama",
    )
    yield running
    assert running.stop() == 0

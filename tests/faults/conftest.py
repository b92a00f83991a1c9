"""Servers with short deadlines or little room, and clients that say exactly what they are told."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Server, launch, start_server
from tests.faults.neighbours import CLIENT

__all__ = ["launch"]

RECEIPT_S, IDLE_S, STALL_S, CONNECTIONS = 0.8, 1, 0.8, 40
SEQUENCES, QUEUE, STEP_TOKENS, BLOCKS = 8, 16, 64, 160
BLOCK_BYTES = 2 * 2 * 2 * 10 * 16 * 4
"""Keys and values, 2 layers, 2 heads of size 10, 16 tokens, fp32: the model of `model_folder`."""

TEMPLATE = """\
{%- for message in messages %}{{ message.role }} {{ message.name }}: {{ message.content }}
{% for call in message.tool_calls or [] %}{{ call | tojson }}{% endfor %}
{%- endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- if x is defined %}{{ x | tojson }}{% endif %}
{%- if add_generation_prompt %}{{ bos_token }}assistant: {% endif %}
"""


BOMBS = {
    "endless": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "large": "{{ 'a' * 10000000000 }}",
    "recursive": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "curious": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "reading": "{% include '/etc/passwd' %}",
    "late": "{% for i in range(9) %}{{ messages[i].content }}{{ [][7].x }}{% endfor %}",
}
"""What a hostile model may bring in its chat template; here each goes off at its name."""
MINED = "".join(
    f"{{%- if messages and messages[0].content == '{name}' %}}{source}{{% endif -%}}"
    for name, source in BOMBS.items()
)


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


def post(server: Server, path: str, body: Any, **more: Any) -> httpx.Response:
    """Send a body, which may be bytes that are no JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = httpx.Headers({"Content-Type": "application/json"})
    headers.update(more.pop("headers", {}))
    return CLIENT.post(f"{server.url}{path}", content=content, headers=headers, **more)


def refused(answer: httpx.Response, status: int = 400, param: str | None = "any") -> str:
    """The one line with which a request was refused, in OpenAI's shape."""
    assert answer.status_code == status, answer.text[:500]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if param != "any":
        assert error["param"] == param, error
    message = str(error["message"])
    assert message.count("\n") == 0, message
    assert "Traceback" not in message
    assert len(message) < 2000, message[:100]
    return message


def read(connection: socket.socket) -> Answer:
    received = b""
    while piece := connection.recv(1 << 16):
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1]) if head else 0
    return Answer(status, head.decode().lower(), body)


@pytest.fixture(scope="session")
def guarded(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    template = tmp_path_factory.mktemp("guarded") / "template.jinja"
    template.write_text(MINED + TEMPLATE)
    running = start_server(
        str(model_folder),
        f"--chat-template={template}",
        "--tool-parser=hermes",
        f"--request-timeout-s={RECEIPT_S}",
        f"--keep-alive-timeout-s={IDLE_S}",
        f"--stall-timeout-s={STALL_S}",
        f"--max-connections={CONNECTIONS}",
        "--max-body-mb=1",
        model="tiny-llama",
    )
    yield running
    assert running.stop() == 0


@dataclass
class Cramped(Server):
    """A server that has room for little, and none for its log of requests."""

    log: Path


@pytest.fixture(scope="session")
def cramped(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cramped]:
    log = tmp_path_factory.mktemp("cramped") / "stderr"
    with log.open("wb") as stderr:
        running = start_server(
            str(model_folder),
            f"--max-num-seqs={SEQUENCES}",
            f"--max-queue={QUEUE}",
            f"--max-num-batched-tokens={STEP_TOKENS}",
            f"--kv-cache-gb={BLOCKS * BLOCK_BYTES / (1 << 30)}",
            "--log-requests=/dev/full",
            model="tiny-llama",
            stderr=stderr,
        )
    yield Cramped(running.process, running.port, running.model, log)
    assert running.stop() == 0

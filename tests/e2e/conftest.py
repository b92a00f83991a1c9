"""Real server processes: how they are started, asked and stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
from openai import OpenAI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

START_TIMEOUT_S = 60.0

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@dataclass
class Server:
    """A running server: its process, address and the name it serves."""

    process: subprocess.Popen[bytes]
    port: int
    model: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def health(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"{self.url}/health").json()["engine"]
        return answer

    def engine_pid(self) -> int:
        """The server's only child."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        (child,) = children.read_text().split()
        return int(child)

    def wait_until_idle(self, timeout: float = 10.0) -> dict[str, Any]:
        """The health report once nothing runs or waits."""
        deadline = time.monotonic() + timeout
        while True:
            health = self.health()
            if not (health["running"] or health["waiting"] or health["blocks_used"]):
                return health
            assert time.monotonic() < deadline, health
            time.sleep(0.02)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(15)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def start_server(
    *args: str, model: str, stderr: IO[bytes] | None = None, **environment: str
) -> Server:
    """Start ``python -m rosellm.roseinfer.server`` and wait until it is healthy."""
    port = free_port()
    command = [sys.executable, "-m", "rosellm.roseinfer.server", *args, "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=stderr)
    server = Server(process, port, model)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{server.url}/health").status_code == 200:
                return server
        except httpx.TransportError:
            pass
        time.sleep(0.05)  # it has the processor for its start
    process.kill()
    raise AssertionError(f"the server did not come up (exit code {process.wait()})")


def write_tokenizer(path: Path) -> int:
    """A byte-level BPE of about 400 tokens trained on this file; returns the vocabulary size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(__file__).read_text()], trainer)
    tokenizer.save(str(path))
    size: int = tokenizer.get_vocab_size()
    return size


@pytest.fixture(
    scope="session", params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def server_of_each_dtype(
    request: pytest.FixtureRequest, model_folder: Path, server: Server
) -> Iterator[Server]:
    if request.param == "float32":
        yield server
        return
    running = start_server(str(model_folder), "--dtype", request.param, model="tiny-llama")
    yield running
    assert running.stop() == 0


@pytest.fixture
def launch() -> Iterator[Callable[..., Server]]:
    """Start servers that a test may break; what is left of them is killed."""
    started: list[Server] = []

    def start(*args: str, **options: str) -> Server:
        started.append(start_server(*args, **options))
        return started[-1]

    yield start
    for running in started:
        running.process.kill()
        running.process.wait()

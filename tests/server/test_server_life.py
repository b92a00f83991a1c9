"""A server process over a fake engine: how it starts, and the three ways in which it ends."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.server.fakes import COMPLETIONS

PROGRAM = """
import asyncio, sys
from tests.server import fakes
from rosellm.roseinfer.server import flags, listen, load, run

class Engine(fakes.FakeEngine):
    def send(self, message):
        super().send(message)
        if isinstance(message, fakes.Add) and message.n == 2:
            asyncio.get_running_loop().call_later(0.1, self.die, "killed by signal 9")

async def patiently(self, add):
    while add.id not in self.aborted:
        await asyncio.sleep(0.01)
        self.on_outputs(fakes.Outputs([fakes.Output(add.id, 0, [120])], fakes.Stats()))

Engine._run = patiently
load.load_tokenizer = lambda *_: fakes.ByteTokenizer()
load.check_checkpoint = lambda *_: None
run.MOURNING_S = 1.0
options = flags.parse([sys.argv[1], "--port", "0", "--drain-timeout", sys.argv[2]])
sock = listen.bind("127.0.0.1", 0)
print(sock.getsockname()[1], flush=True)
sys.exit(run.run(options, sock, Engine(fakes.endless)))
"""


@contextmanager
def server(
    model: Path, drain_timeout: float = 0.3
) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    command = [sys.executable, "-c", PROGRAM, str(model), str(drain_timeout)]
    process = subprocess.Popen(
        command,
        text=True,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            with httpx.Client(base_url=url, timeout=10) as client:
                wait_until_healthy(client)
                yield process, client
        finally:
            process.kill()


def wait_until_healthy(client: httpx.Client) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.ConnectError, httpx.HTTPStatusError):
            client.get("/health").raise_for_status()
            return
        time.sleep(0.02)
    pytest.fail("the server did not start")


@contextmanager
def streaming(client: httpx.Client, n: int = 1) -> Iterator[httpx.Response]:
    body = {"model": "m", "prompt": "x", "max_tokens": 500, "stream": True, "n": n}
    with client.stream("POST", COMPLETIONS, json=body) as response:
        assert response.status_code == 200
        yield response


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    return tmp_path / "m"


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_told_to_stop_it_ends_open_streams_with_an_error_and_exits_0(
    model: Path, number: signal.Signals
) -> None:
    with server(model) as (process, client):
        with streaming(client) as response:
            process.send_signal(number)
            sent = response.read()
        assert b'data: {"error":' in sent[-200:]
        assert b"shutting down" in sent[-200:]
        assert process.wait(10) == 0


def test_told_once_it_lets_nobody_in_and_told_twice_it_ends_at_once(model: Path) -> None:
    with server(model, drain_timeout=60) as (process, client):
        with streaming(client) as response:
            process.send_signal(signal.SIGTERM)
            while client.get("/readyz").status_code == 200:
                time.sleep(0.01)
            body = {"model": "m", "prompt": "x"}
            assert client.post(COMPLETIONS, json=body).status_code == 503
            assert client.get("/livez").status_code == 200
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert b"shutting down" in response.read()[-200:]
        assert process.wait(5) == 0


def test_told_when_nobody_is_inside_it_ends_at_once(model: Path) -> None:
    with server(model, drain_timeout=60) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0


def test_the_engines_death_is_seen_by_clients_then_by_whoever_runs_it(model: Path) -> None:
    with server(model) as (process, client):
        with streaming(client, n=2) as response:
            assert b"killed by signal 9" in response.read()
        assert client.get("/health").status_code == client.get("/readyz").status_code == 503
        assert client.get("/livez").status_code == 200
        assert process.wait(10) == 1
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()

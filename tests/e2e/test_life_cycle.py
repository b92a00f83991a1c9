"""Start, stop, death: what a person or a supervisor sees of the server process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Server, free_port, start_server

Launch = Callable[..., Server]
SHAKESPEARE = Path(__file__).parents[1] / "data" / "gpt2-shakespeare"
"""What rosetrainer's gpt2-fixture.toml trains: ``.pt``, and its tokenizer's folder."""


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rosellm.roseinfer.server", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.slow  # tests/server/test_server_life.py has one, with a fake engine
@pytest.mark.alone
def test_the_death_of_an_engine_that_may_not_restart_ends_streams_and_the_process(
    launch: Launch, model_folder: Path
) -> None:
    server = launch(str(model_folder), "--engine-restarts=0", model="tiny-llama")
    body = {"model": "tiny-llama", "prompt": "a", "max_tokens": 500, "ignore_eos": True}
    lines: list[list[str]] = [[] for _ in range(4)]
    started = threading.Barrier(5)

    def read(index: int) -> None:
        url = f"{server.url}/v1/completions"
        with httpx.stream("POST", url, json={**body, "stream": True}, timeout=30) as answer:
            for line in answer.iter_lines():
                lines[index].append(line)
                if len(lines[index]) == 3:
                    started.wait(20)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    started.wait(20)
    os.kill(server.engine_pid(), signal.SIGKILL)
    killed = time.monotonic()
    for thread in threads:
        thread.join(10)
    assert time.monotonic() - killed < 2
    for seen in lines:
        events = [line for line in seen if line]
        assert '"error"' in events[-1]
        assert "[DONE]" not in "".join(events)
    assert httpx.get(f"{server.url}/health").status_code == 503
    assert server.process.wait(10) not in (0, None)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_sigterm_and_ctrl_c_end_it_with_zero(
    launch: Launch, model_folder: Path, number: signal.Signals
) -> None:
    """Of SIGTERM, under load, tests/faults/test_engine_dies.py tells too."""
    server = launch(str(model_folder), model="tiny-llama")
    engine = server.engine_pid()
    server.process.send_signal(number)
    assert server.process.wait(10) == 0
    assert not Path(f"/proc/{engine}").exists()


@pytest.mark.slow  # tests/faults/test_run_time.py has one beside a server
def test_port_taken_is_one_line(model_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = _run(str(model_folder), "--port", str(port))
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert str(port) in result.stderr


@pytest.mark.slow  # tests/e2e/test_mistakes.py has them, most without an engine
def test_what_cannot_be_served_is_one_line(tmp_path: Path, model_folder: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (broken / name).write_bytes((model_folder / name).read_bytes())
    weights = (model_folder / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    for args in ([str(tmp_path / "nowhere")], [str(broken)], [str(model_folder), "--device=cuda"]):
        if args[-1] == "--device=cuda" and Path("/dev/nvidia0").exists():
            continue
        result = _run(*args, "--port", str(free_port()))
        assert result.returncode == 2, result.stderr
        assert "Traceback" not in result.stderr
        errors = [line for line in result.stderr.splitlines() if "error" in line]
        assert len(errors) == 1, result.stderr


@pytest.mark.slow  # tests/faults/test_keys.py has a file of keys
def test_api_key(launch: Launch, model_folder: Path) -> None:
    server = launch(str(model_folder), model="tiny-llama", ROSELLM_API_KEY="a-secret")
    assert httpx.get(f"{server.url}/health").status_code == 200
    for path in ("/v1/models", "/docs", "/openapi.json", "/nowhere"):
        assert httpx.get(f"{server.url}{path}").status_code == 401
    headers = {"Authorization": "Bearer a-secret"}
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200


def test_the_seeds_own_command() -> None:
    server = start_server(
        *("--checkpoint-path", f"{SHAKESPEARE}.pt", "--tokenizer-name", str(SHAKESPEARE)),
        *("--device", "cpu", "--no-amp", "--do-sample", "--temperature", "0.7", "--top-k", "50"),
        *("--top-p", "0.9", "--stop-on-eos", "--host", "127.0.0.1"),
        model="gpt2-shakespeare",
    )
    try:
        body = {"prompt": "ROMEO:", "max_new_tokens": 24}
        answer = httpx.post(f"{server.url}/generate", json=body)
        assert answer.status_code == 200
        assert list(answer.json()) == ["text"]
        with httpx.stream("POST", f"{server.url}/generate", json={**body, "stream": True}) as lines:
            assert lines.headers["content-type"].startswith("text/plain")
        chat = {
            "model": "gpt2-shakespeare",
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 8,
        }
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=chat)
        assert answer.json()["usage"]["completion_tokens"] <= 8
        seeds = {**chat, "model": "roseinfer-gpt2", "temperature": 0.7, "top_p": 0.95}
        for stream in (False, True):
            answer = httpx.post(
                f"{server.url}/v1/chat/completions", json={**seeds, "stream": stream}
            )
            assert answer.status_code == 200
    finally:
        assert server.stop() == 0

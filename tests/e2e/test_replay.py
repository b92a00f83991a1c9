"""A logged request gives the same tokens again: alone, later, in another process."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from rosellm import cli
from tests.commands.terminal import ROSELLM
from tests.e2e.conftest import start_server

REPLAY = (*ROSELLM, "replay")
SAMPLED = {"temperature": 1.0, "max_tokens": 24}
HELLO = [{"role": "user", "content": "Tell me about the server."}]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", {"messages": HELLO, **SAMPLED}),
    ("chat/completions", {"messages": HELLO, **SAMPLED, "n": 3, "presence_penalty": 1.0}),
    ("chat/completions", {"messages": HELLO, **SAMPLED, "stream": True, "top_k": 20}),
    ("completions", {"prompt": ["One", "Two", "Three"], **SAMPLED, "stop": "e", "logprobs": 2}),
    ("completions", {"prompt": "Import the", **SAMPLED, "seed": 5, "best_of": 3}),
    ("completions", {"prompt": "x", "temperature": 0, "max_tokens": 40, "echo": True}),
]


@pytest.fixture(scope="module")
def log(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a server has logged of requests that it answered all at once."""
    path = tmp_path_factory.mktemp("replay") / "requests.jsonl"
    server = start_server(str(model_folder), "--log-requests", str(path), model="tiny-llama")

    def ask(request: tuple[str, dict[str, Any]]) -> None:
        route, body = request
        response = httpx.post(f"{server.url}/v1/{route}", json={"model": server.model, **body})
        assert response.status_code == 200, response.text

    with ThreadPoolExecutor(len(REQUESTS)) as pool:
        list(pool.map(ask, REQUESTS))
    assert server.stop() == 0
    assert len(path.read_bytes().splitlines()) == 1 + len(REQUESTS)
    return path


def test_tokens_are_the_same_when_alone_and_later(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And in this process, which is another one than that which logged them."""
    assert cli.main(["replay", str(log)]) == 0
    check_same(*capsys.readouterr())


@pytest.mark.slow
def test_the_command_says_the_same(log: Path) -> None:
    done = subprocess.run([*REPLAY, str(log)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    check_same(done.stdout, done.stderr)


def check_same(out: str, err: str) -> None:
    lines = out.splitlines()
    assert len(lines) == len(REQUESTS)
    assert all(line.endswith(": same") for line in lines), out
    assert f"{len(REQUESTS)} of {len(REQUESTS)}" in err


def test_a_difference_is_told(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build, *requests = map(json.loads, log.read_text().splitlines())
    first = next(each for each in requests if len(each["choices"][0]["token_ids"]) > 3)
    first["choices"][0]["token_ids"][3] ^= 1
    changed = tmp_path / "changed.jsonl"
    changed.write_text(json.dumps(build) + "\n" + json.dumps(first) + "\n")
    assert cli.main(["replay", str(changed)]) == 1
    assert capsys.readouterr().out == f"{first['id']}: choice 0 differs from token 3 on\n"


def test_other_settings_are_another_build(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = json.loads(log.read_text().splitlines()[1])
    cli.main(["replay", str(log), "--id", first["id"], "--dtype", "bfloat16"])
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1
    assert "tokens may differ" in shown.err


def test_a_log_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", str(tmp_path / "nothing.jsonl")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1

"""``rosellm generate``: what comes out of it, what ends it, and what it refuses."""

from __future__ import annotations

import io
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from rosellm import cli
from rosellm.commands import sampling_flags
from rosellm.roseinfer.server.schemas.sampling import SamplingFields
from tests.commands.terminal import ROSELLM, terminal
from tests.e2e.conftest import Server

GENERATE = (*ROSELLM, "generate")
PROMPT = "def start_server"
SEEDED = {"max_tokens": 12, "temperature": 0.9, "seed": 7, "stop": ["zz", "qq"]}
SEEDED_FLAGS = ["--max-tokens=12", "--temperature=0.9", "--seed=7", "--stop=zz", "--stop=qq"]


def test_it_says_what_the_server_says(
    server: Server, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"model": server.model, "prompt": PROMPT, "n": 2, **SEEDED}
    answer = httpx.post(f"{server.url}/v1/completions", json=body).json()
    texts = [choice["text"] for choice in answer["choices"]]

    flags = [str(model_folder), PROMPT, *SEEDED_FLAGS]
    assert cli.main(["generate", *flags, "--json", "--n", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == texts
    assert [line["index"] for line in lines] == [0, 1]
    assert [line["finish_reason"] for line in lines] == [
        choice["finish_reason"] for choice in answer["choices"]
    ]
    counted = [line["usage"]["completion_tokens"] for line in lines]
    assert counted == [len(line["token_ids"]) for line in lines]
    assert sum(counted) == answer["usage"]["completion_tokens"]
    assert lines[0]["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]

    # Streamed, with the prompt from a pipe. Only text is on stdout, and a newline after it.
    flags.remove(PROMPT)
    done = subprocess.run([*GENERATE, *flags], input=f"{PROMPT}\n".encode(), capture_output=True)
    assert done.returncode == 0
    assert done.stdout.decode() == texts[0] + "\n"


@pytest.mark.slow
def test_ctrl_c_ends_it(model_folder: Path) -> None:
    with terminal(*GENERATE, str(model_folder), PROMPT, "--max-tokens=8000", "--ignore-eos") as run:
        run.expect(r"\S{5}")
        run.press_ctrl("C")
        assert run.end() == 130
    assert "Traceback" not in run.text
    assert len(run.text) < 7000


@pytest.mark.slow
def test_sigint_while_loading_ends_it(model_folder: Path) -> None:
    process = subprocess.Popen([*GENERATE, str(model_folder), PROMPT], stderr=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=3)  # it does not wait for the rest of the load
    assert process.returncode == 130
    assert stderr == b""


@pytest.mark.slow
def test_a_reader_that_leaves_ends_it(model_folder: Path) -> None:
    command = [*GENERATE, str(model_folder), PROMPT, "--max-tokens=8000", "--ignore-eos"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(20) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


class Stdin(io.StringIO):
    """A terminal, or a pipe with bytes in it."""

    def __init__(self, piped: bytes | None) -> None:
        super().__init__()
        self.buffer = io.BytesIO(piped or b"")
        self._piped = piped

    def isatty(self) -> bool:
        return self._piped is None


@pytest.mark.parametrize(
    ("args", "stdin", "says"),
    [
        ([], None, "which text?"),
        ([], b"caf\xe9", "stdin is not UTF-8 text: byte 3 is not"),
        (["a\udce9"], None, "PROMPT is not UTF-8 text: byte 1 is not"),
        (["a", "--temperature", "3"], None, "--temperature must be less than or equal to 2, not 3"),
        (["a", "--stop", ""], None, "--stop String must have at least 1 character"),
        (["a", "--n", "0"], None, "--n must be greater than or equal to 1"),
        (["a", "--max-tokens", "x"], None, "--max-tokens"),
        (["a", "--max-model-len", "0"], None, "--max-model-len must be at least 1"),
        (["a", "--temprature", "1"], None, "--temprature"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(
    args: list[str],
    stdin: bytes | None,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", Stdin(stdin))
    assert cli.main(["generate", "no-such-model", *args]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert says in shown.err


def test_a_sampling_flag_is_a_field() -> None:
    """One that is new to the schema is offered here, or left out on purpose."""
    left_out = {
        *{"logit_bias", "priority", "cache_salt", "skip_special_tokens"},
        "include_stop_str_in_output",
    }
    assert set(sampling_flags.HELP) == SamplingFields.model_fields.keys() - left_out


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_help_is_readable(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert caught.value.code == 0
    assert max(map(len, lines)) <= 100
    examples = lines[lines.index("examples:") + 1 :]
    assert len(examples) > 3
    assert all(line.startswith(f"  rosellm {command} ") for line in examples)


def test_parsed_flags_are_fields(capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, Any] = vars(
        cli.parser().parse_args(
            ["generate", "m", "p", *SEEDED_FLAGS, "--ignore-eos", "--stop-token-ids", "5"]
        )
    )
    fields = sampling_flags.given(given)
    assert fields == {**SEEDED, "ignore_eos": True, "stop_token_ids": [5]}

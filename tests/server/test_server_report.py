"""What the terminal is told at start-up."""

from __future__ import annotations

import json
import shlex

import pytest

from rosellm.roseinfer.messages import Decision, Progress, Ready
from rosellm.roseinfer.server import report

READY = Ready(
    max_model_len=512,
    vocab_size=258,
    capacity_tokens=4096,
    dtype="float32",
    device="cpu",
    invariant=True,
    fingerprint="fp_1",
    decisions=[Decision("dtype", "float32", "as in the checkpoint"), Decision("device", "cpu")],
)


def test_the_summary_says_what_and_why() -> None:
    text = report.summary("my model", READY, "http://127.0.0.1:8000", needs_key=False)
    assert "dtype        float32  (as in the checkpoint)" in text
    assert "schedule-invariant" in text
    assert "http://127.0.0.1:8000" in text
    assert "Authorization" not in text


@pytest.mark.parametrize("name", ["plain", 'it\'s "quoted" $HOME'])
@pytest.mark.parametrize("generates", [True, False])
def test_the_curl_survives_a_shell(name: str, generates: bool) -> None:
    command = report.curl(name, "http://h:1", needs_key=True, generates=generates)
    words = shlex.split(command.replace("\\\n", ""))
    path = "/v1/chat/completions" if generates else "/v1/embeddings"
    assert words[:2] == ["curl", f"http://h:1{path}"]
    assert "Authorization: Bearer $ROSELLM_API_KEY" in words
    assert json.loads(words[-1])["model"] == name


def test_plain_lines_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    with report.loading() as show:
        show(Progress("importing torch"))
        for done in range(101):
            show(Progress("loading weights", done, 100))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["importing torch", *(f"loading weights {n} %" for n in (0, 25, 50, 75, 100))]


def test_a_terminal_gets_a_bar() -> None:
    with report._bar() as show:
        show(Progress("importing torch"))
        show(Progress("loading weights", 1, 2))

"""The demo model: what a newcomer gets who has no model and no network.

Its weights may be trained anew, so nothing here is about what it says, but that it says something.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from rosellm import LLM, SamplingParams, cli
from rosellm.roseinfer.demo import demo_model
from tests.commands.terminal import ROSELLM

ROOT = Path(__file__).parents[2]
DATA = ROOT / "rosellm" / "data"
NOTE = "rosellm-demo, the small demo model that comes with rosellm; MODEL names another"


@contextmanager
def serving(*args: str) -> Iterator[tuple[str, str]]:
    """Run a server on any port; give its address and all that it says before it."""
    command = [*ROSELLM, "serve", "--port", "0", *args]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while not (address := re.search(r"serving on (\S+)$", said, re.MULTILINE)):
            line = process.stderr.readline()
            assert line, said
            said += line
        yield address[1], said
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_serve_without_a_model_answers_the_first_request() -> None:
    with serving() as (url, said):
        body = {
            "model": "rosellm-demo",
            "messages": [{"role": "user", "content": "Hello! Who are you?"}],
            "max_tokens": 16,
            "temperature": 0,
        }
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).json()
        assert answer["model"] == "rosellm-demo"
        assert answer["choices"][0]["message"]["content"].strip()
        assert answer["usage"]["completion_tokens"] > 0
    told = "rosellm-demo  (the small demo model that comes with rosellm; another one: rosellm serve"
    assert told in said


def test_chat_without_a_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello!\nWho are you?\n")))
    assert cli.main(["chat", "--max-tokens=8", "--temperature=0"]) == 0
    shown = capsys.readouterr()
    assert len([line for line in shown.out.splitlines() if line.strip()]) >= 2
    assert shown.err.splitlines()[0] == NOTE


def test_generate_without_a_model_takes_its_text_from_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ["--max-tokens=4", "--ignore-eos", "--seed=7"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Once upon a time\n")))
    assert cli.main(["generate", *fixed]) == 0
    piped = capsys.readouterr()
    assert piped.err.splitlines() == [NOTE]
    assert cli.main(["generate", "rosellm-demo", "Once upon a time", *fixed]) == 0
    named = capsys.readouterr()
    assert named.out == piped.out != "\n"
    assert named.err == ""


def test_inspect_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{demo_model()}\n")
    for fact in ("architecture", "parameters", "chat template", "fits"):
        assert re.search(rf"^  {fact}  ", shown, re.MULTILINE), shown


def test_the_library_without_a_model() -> None:
    with LLM(max_model_len=64) as llm:
        assert llm.service.name == "rosellm-demo"
        answer = llm.generate("Once", SamplingParams(max_tokens=2, ignore_eos=True))
    assert len(answer.token_ids) == 2


def test_its_files_are_few_and_small() -> None:
    """They are in every clone and in every wheel."""
    files = [path for path in DATA.rglob("*") if path.is_file()]
    assert any(path.parent == Path(demo_model()) for path in files)
    assert sum(path.stat().st_size for path in files) <= 16_000_000


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="this is no checkout"
)
def test_git_and_so_the_wheel_takes_all_of_them() -> None:
    """Weights are ignored elsewhere; what git ignores, hatchling leaves out of a wheel."""
    files = [str(path) for path in DATA.rglob("*") if path.is_file()]
    tested = subprocess.run(
        ["git", "-C", str(ROOT), "check-ignore", *files, str(ROOT / "models.safetensors")],
        capture_output=True,
        text=True,
    )
    assert tested.stdout.split() == [str(ROOT / "models.safetensors")]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
@pytest.mark.parametrize(("target", "command"), [("serve", "serve"), ("bench", "bench offline")])
def test_make_takes_a_model_or_none(target: str, command: str) -> None:
    for model, said in (("", ""), ("my llama", ' "my llama"')):
        make = ["make", "-n", "-C", str(ROOT), target, f"MODEL={model}", "ARGS=--port 1"]
        recipe = subprocess.check_output(make, text=True)
        assert re.search(rf"rosellm {command}{said} +--port 1$", recipe, re.MULTILINE), recipe

"""A newcomer's path, from a clone to a chat, as one would type it.

The clone is a copy of what ``git clone`` would bring if everything here were committed, so that the
path that is walked is the one that is here. Its environment is the one that runs this test, under
the names that ``make`` expects: nothing is installed, and nothing outside the clone is written.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from rosellm.roseinfer.kernels.cpu.build import LIBRARY
from tests.commands.terminal import Terminal, terminal
from tests.e2e.conftest import free_port

ROOT = Path(__file__).parents[2]

LINES = """\
import sys
from rosellm import LLM, SamplingParams

with LLM(*sys.argv[1:]) as llm:
    for answer in llm.generate(["Once upon a time", "def f"], SamplingParams(max_tokens=8)):
        print(repr(answer.text))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, ("git", "make"))) or not (ROOT / ".git").exists(),
        reason="no git or make, or this is no checkout",
    ),
]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """Return a clone in which ``make`` finds an environment, and a model beside the code."""
    folder = tmp_path_factory.mktemp("newcomer") / "rosellm"
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT
    )
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():  # one that is deleted is listed still
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    if LIBRARY.exists():  # what an install would have built
        shutil.copy2(LIBRARY, folder / LIBRARY.relative_to(ROOT))
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, arguments in (("python", ""), ("rosellm", f"-c '{COMMAND}'")):
        script = f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" {arguments} "$@"\n'
        (binaries / name).write_text(script)
        (binaries / name).chmod(0o755)
    (folder / ".venv" / ".stamp-runtime").touch()
    shutil.copytree(model_folder, folder / "my-llama")
    return folder


COMMAND = "import sys, rosellm.cli; sys.exit(rosellm.cli.main())"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name in ("ROSELLM_API_KEY", "OPENAI_API_KEY", "MAKEFLAGS"):
        monkeypatch.delenv(name, raising=False)
    return {"XDG_STATE_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Choice:
    """A model by its name, how one asks for it, and what the summary says of it."""

    name: str
    arguments: tuple[str, ...]
    dtype: str
    context: int


CHOICES = [
    Choice("rosellm-demo", (), "bfloat16", 2048),
    Choice("my-llama", ("my-llama",), "float32", 512),
]


@pytest.fixture(params=CHOICES, ids=lambda choice: choice.name)
def choice(request: pytest.FixtureRequest) -> Choice:
    chosen: Choice = request.param
    return chosen


@pytest.fixture
def url(
    choice: Choice, clone: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Type ``make serve``, and press Ctrl-C at the end."""
    monkeypatch.chdir(clone)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    model = [f"MODEL={argument}" for argument in choice.arguments]
    command = ("make", "serve", *model, f"ARGS=--port {port}")
    with terminal(*command, environment=environment) as run:
        run.expect(f"serving on {address}")
        run.expect(r'"max_tokens": 64}\'\n')
        check_summary(run.text, choice, address)
        yield address
        run.press_ctrl("C")
        # Make tells its shell of the Ctrl-C; the server's own code is 0 (test_life_cycle.py).
        assert run.end() in (-signal.SIGINT, 0)
        log = run.text.partition("serving on")[2]
        assert "rror" not in log
        assert "Traceback" not in log
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def check_summary(text: str, choice: Choice, address: str) -> None:
    """What is shown at the start says what is served and how, and can be pasted."""
    own = (f"model +{choice.name}", f"dtype +{choice.dtype}", f"context +{choice.context} tokens")
    for fact in (*own, "device", "KV cache"):
        assert re.search(rf"^  {fact}", text, re.MULTILINE), (fact, text)
    if shutil.which("curl"):
        command = re.search(r"^  (curl .*\\\n.*)$", text, re.MULTILINE)
        assert command is not None
        answer = subprocess.check_output(["sh", "-c", f"{command[1]} --silent --fail"])
        assert b'"role":"assistant"' in answer
        assert address in command[1]


def test_the_path(clone: Path, choice: Choice, url: str, environment: dict[str, str]) -> None:
    ask_with_the_openai_client(url, choice.name)
    chat = [str(clone / ".venv/bin/rosellm"), "chat", "--max-tokens=8"]
    with terminal(*chat, "--url", url, environment=environment) as run:
        converse(run, f"{choice.name} at {url}/v1 · /help for help")
    with terminal(*chat, *choice.arguments, environment=environment) as run:
        context = f"context of {choice.context} tokens"
        converse(run, f"{choice.name}: {choice.dtype} on .*, {context} · /help for help")
    (clone / "lines.py").write_text(LINES)
    done = subprocess.run(
        [clone / ".venv/bin/python", "lines.py", *choice.arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2


def ask_with_the_openai_client(url: str, model: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    assert client.models.list().data[0].id == model
    whole = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Hello! Who are you?"}],
        max_tokens=16,
        seed=7,
    )
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Hello! Who are you?"}],
        max_tokens=16,
        seed=7,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert whole.choices[0].message.content == "".join(pieces) != ""
    assert len(pieces) > 1


def converse(run: Terminal, greeting: str) -> None:
    """Ask once, make a mistake, and leave."""
    run.expect(greeting)
    run.expect("> ")
    run.type("Hello! Who are you?\n")
    run.expect(r"you\?\n(.|\n)+?\n(\(cut short.*\n)?> ")
    run.type("/halp\n")
    run.expect("/help shows what there is")
    run.expect("> ")
    run.press_ctrl("D")
    assert run.end() == 0
    assert "Traceback" not in run.text


def test_the_first_page_names_what_is_there(clone: Path) -> None:
    """Each ``make`` target and command of README.md, and each file that it links to."""
    page = (clone / "README.md").read_text()
    listed = subprocess.check_output(["make", "help"], cwd=clone, text=True)
    for target in re.findall(r"^make ([a-z-]+)", page, re.MULTILINE):
        assert f"make {target} " in listed
    help = subprocess.check_output([clone / ".venv/bin/rosellm", "--help"], text=True)
    for command in re.findall(r"(?<!from )\brosellm ([a-z]+) [A-Z\-\"]", page):
        assert f"    {command} " in help
    for link in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (clone / link).exists(), link

"""What the documents tell people to type works, as it stands.

Every fenced block of the README and of ``docs/`` is run in the order of the page: ``bash``
in a shell, ``python`` as a program, both in a folder that holds a tiny model ``my-llama``
and beside a server of the demo model. A line above a block may say otherwise:
``<!-- not run: REASON -->`` exempts it, ``<!-- file: NAME -->`` makes it a file for later blocks.
Blocks without a language are pictures.

Those that load a model or train one take seconds each: they run with the slow tests, but for one
of each language. Whether their commands can be read at all is seen here too.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rosellm import cli
from tests.e2e.conftest import Server, write_tokenizer
from tests.tiny_models import write_llama

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ADDRESS = "127.0.0.1:8000"
BLOCK = re.compile(
    r"(?:^<!-- (?P<note>not run|file): (?P<said>[^\n]+) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PROGRAMS = {"bash": ["bash", "-euc"], "python": [sys.executable, "-c"]}
LOADS = re.compile(r"\bLLM\(|^rosellm ", re.MULTILINE)
QUICK_ALL_THE_SAME = ('LLM("my-llama", dtype="float32"', "rosellm quantize my-llama")


@dataclass(frozen=True)
class Block:
    """A fenced block and where it stands."""

    page: Path
    line: int
    language: str
    code: str
    note: str | None
    said: str | None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        yield Block(page, line, match["language"], match["code"], match["note"], match["said"])


ALL = [block for page in PAGES for block in blocks(page) if block.language]
RUN = [block for block in ALL if block.note is None]
FILES = [block for block in ALL if block.note == "file"]


def is_slow(block: Block) -> bool:
    loads = LOADS.search(block.code) is not None
    return loads and not any(words in block.code for words in QUICK_ALL_THE_SAME)


TO_RUN = [
    pytest.param(block, id=str(block), marks=[pytest.mark.slow] if is_slow(block) else [])
    for block in RUN
]


def test_there_are_blocks_of_each_language_to_run() -> None:
    assert {block.language for block in RUN} == set(PROGRAMS)
    assert len(RUN) >= 8
    for language in PROGRAMS:
        of_it = [block for block in RUN if block.language == language and LOADS.search(block.code)]
        assert sum(not is_slow(block) for block in of_it) == 1


COMMANDS = [
    pytest.param(line, id=f"{block}: {line[:40]}")
    for block in RUN
    if block.language == "bash"
    for line in block.code.replace("\\\n", " ").splitlines()
    if line.startswith("rosellm ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_can_be_read(line: str) -> None:
    cli.parser().parse_args(shlex.split(line)[1:])


@pytest.mark.parametrize("block", [each for each in RUN if each.language == "python"], ids=str)
def test_a_program_can_be_read(block: Block) -> None:
    compile(block.code, str(block), "exec")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to type commands in, with a model."""
    place = tmp_path_factory.mktemp("docs")
    model = place / "my-llama"
    model.mkdir()
    size = write_tokenizer(model / "tokenizer.json")
    write_llama(model, vocab_size=size, max_position_embeddings=512, eos_token_id=0, bos_token_id=0)
    for block in FILES:
        (place / str(block.said)).write_text(block.code)
    return place


@pytest.mark.parametrize("block", TO_RUN)
def test_block_runs(block: Block, folder: Path, demo: Server) -> None:
    assert block.language in PROGRAMS, f"{block}: no idea how to run {block.language!r}"
    if "curl" in block.code and shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    code = block.code.replace(ADDRESS, f"127.0.0.1:{demo.port}")
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{folder}",
        "PYTHONWARNINGS": "error",
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    done = subprocess.run(
        [*PROGRAMS[block.language], code],
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{code}\n{done.stdout}\n{done.stderr}"
    assert '"error"' not in done.stdout, f"{block}\n{done.stdout}"

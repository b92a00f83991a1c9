"""docs/operations.md and docs/security.md speak of what there is: tests, files, lines, settings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from rosellm import cli
from rosellm.roseinfer.server import flags

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
OPERATIONS, SECURITY = (
    BLOCK.sub("", (ROOT / "docs" / name).read_text()) for name in ("operations.md", "security.md")
)
QUOTED = re.compile(r"`([^`]+)`")
# parts of a line that change from case to case
PLACEHOLDERS = re.compile(r"\.\.\.|\b[XYN]\b|HOST:PORT|\d+ s\b|signal \d+|--[a-z-]+ ")


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(tests/[\w/.]+)`", SECURITY)
    assert len(named) > 10
    assert [each for each in named if not (ROOT / each).is_file()] == []


def test_every_file_that_is_named_is_there() -> None:
    named = set(re.findall(r"`(deploy/[\w/.-]*)`", OPERATIONS + SECURITY))
    assert len(named) > 5
    assert [each for each in named if not (ROOT / each).exists()] == []


@pytest.mark.parametrize("text", [OPERATIONS, SECURITY], ids=["operations", "security"])
def test_every_flag_that_is_named_is_one(text: str) -> None:
    target = flags.Parser()
    flags.add_flags(target)
    known = set(target._option_string_actions)
    named = {each for quoted in QUOTED.findall(text) for each in re.findall(r"--[a-z-]+", quoted)}
    others = {"--json", "--memory-gb", "--file"}  # of plan, of docker compose
    assert named - known - others == set()


def troubles() -> Iterator[str]:
    """Quoted pieces of lines in the table of troubles, without what changes in them."""
    table = OPERATIONS.partition("## Troubleshooting")[2]
    for row in table.splitlines():
        if row.startswith("| ") and not row.startswith(("| line", "| ---")):
            for quoted in QUOTED.findall(row.split(" | ")[0]):
                pieces = (piece.strip(" ,:") for piece in PLACEHOLDERS.split(quoted))
                yield from (piece for piece in pieces if len(piece) > 8)


@cache
def texts() -> list[str]:
    """All texts in the sources, formatted ones with their holes as spaces."""
    found = []
    for path in (ROOT / "rosellm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else " " for v in node.values)
                found.append("".join(map(str, parts)))
    return found


@pytest.mark.parametrize("piece", sorted(set(troubles())))
def test_every_line_in_the_table_of_troubles_exists(piece: str) -> None:
    assert any(piece in text for text in texts()), f"nothing says {piece!r}"


def test_every_command_that_is_named_is_one() -> None:
    named = set(re.findall(r"`rosellm ([a-z]+)[ `]", OPERATIONS + SECURITY))
    help_text = cli.parser().format_help()
    assert {"plan", "doctor", "inspect"} <= named
    assert [each for each in named if f"    {each} " not in help_text] == []

"""Runs of 13 words, to keep the texts of benchmarks out of what is trained on."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

LENGTH = 13
BENCHMARKS = ("prompts/gsm8k/test.jsonl", "prompts/humaneval/*.gz", "bfcl/BFCL_*.json")
_WORD = re.compile(r"[^\W_]+")


def runs(text: str) -> Iterator[tuple[str, ...]]:
    """Every 13 words in a row, in lower case and without marks.

    Numbers alone are left out: counting is nobody's text.
    """
    words = _WORD.findall(text.lower())
    rows = zip(*(words[start:] for start in range(LENGTH)), strict=False)
    return (row for row in rows if not all(map(str.isdigit, row)))


def benchmark_runs(folder: Path) -> frozenset[tuple[str, ...]]:
    """The runs of those benchmarks that are in the folder: GSM8K's test, HumanEval and BFCL."""
    files = [file for pattern in BENCHMARKS for file in sorted(folder.glob(pattern))]
    return frozenset(run for file in files for text in _texts(file) for run in runs(text))


def overlaps(texts: Iterable[str], kept_out: frozenset[tuple[str, ...]]) -> bool:
    """Whether a run of one of the texts is one of those."""
    return any(run in kept_out for text in texts for run in runs(text))


def _texts(file: Path) -> Iterator[str]:
    raw = file.read_bytes()
    lines = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode().splitlines()
    for line in filter(str.strip, lines):
        yield from strings(json.loads(line))


def strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value, keys aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)

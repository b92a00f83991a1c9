"""Recorded requests: when each one arrived and how long it was.

Two formats, by the file's ending. ``.csv`` is that of Azure's LLM inference traces (Splitwise,
ISCA 2024): ``TIMESTAMP,ContextTokens,GeneratedTokens``. ``.jsonl`` is Mooncake's (FAST 2025):
``timestamp`` in ms, ``input_length``, ``output_length``, and ``hash_ids``, one id for each
512-token block of the prompt, equal ids meaning an equal prefix up to there.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TextIO

from rosellm.roseinfer.errors import ConfigError

BLOCK = 512
"""Tokens that one of Mooncake's hash ids stands for."""


@dataclass(frozen=True)
class TraceRow:
    """One recorded request.

    Attributes:
        at: seconds since the first request.
        blocks: ids of the prompt's blocks, where the trace tells them.
    """

    at: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


def read_trace(path: Path, limit: int) -> list[TraceRow]:
    """Read the first ``limit`` requests, in order of arrival.

    Raises:
        ConfigError: the file is not there, or not such a trace.
    """
    read = _READERS.get(path.suffix)
    if read is None:
        raise ConfigError(f"{path}: a trace is a .csv like Azure's or a .jsonl like Mooncake's")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = sorted(islice(_numbered(path, read(file)), limit), key=lambda row: row.at)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if not rows:
        raise ConfigError(f"{path}: no requests in it")
    return [replace(row, at=row.at - rows[0].at) for row in rows]


def _numbered(path: Path, rows: Iterator[TraceRow]) -> Iterator[TraceRow]:
    """Pass rows on; what is wrong with one is said with its number."""
    for number in range(1, 1 << 62):
        try:
            yield next(rows)
        except StopIteration:
            return
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: request {number} is not readable: {error!r}") from None


def _read_csv(file: TextIO) -> Iterator[TraceRow]:
    for record in csv.DictReader(file):
        at = datetime.fromisoformat(record["TIMESTAMP"]).timestamp()
        yield _checked(TraceRow(at, int(record["ContextTokens"]), int(record["GeneratedTokens"])))


def _read_jsonl(file: TextIO) -> Iterator[TraceRow]:
    for line in file:
        record = json.loads(line)
        tokens = int(record["input_length"])
        blocks = tuple(map(int, record.get("hash_ids", ())))
        if blocks and len(blocks) != -(-tokens // BLOCK):
            raise ValueError(f"{len(blocks)} hash ids for {tokens} tokens")
        at = record["timestamp"] / 1000
        yield _checked(TraceRow(at, tokens, int(record["output_length"]), blocks))


def _checked(row: TraceRow) -> TraceRow:
    if row.input_tokens < 1 or row.output_tokens < 1:
        raise ValueError("a length below 1")
    return row


_READERS: dict[str, Callable[[TextIO], Iterator[TraceRow]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}

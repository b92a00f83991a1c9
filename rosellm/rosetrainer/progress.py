"""What a run says of itself: a line on the terminal, and a JSONL log."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from rosellm.rosetrainer.files import one_line_errors, write_text


class Log:
    """``log.jsonl``: a row whenever the loss is read, and whenever the model is validated."""

    def __init__(self, path: Path, step: int) -> None:
        """Go on behind ``step``; rows of later steps, which are about to be run again, go."""
        self.path = path
        kept = [row for row in read_log(path) if row["step"] <= step] if step else []
        with one_line_errors(f"log {path}"):
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))

    def add(self, **row: Any) -> None:
        with one_line_errors(f"log {self.path}"), self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a log; a last line that a killed run left half written does not count."""
    rows = []
    try:
        for line in path.read_text().splitlines():
            rows.append(json.loads(line))
    except (FileNotFoundError, ValueError):
        pass
    return rows


class Progress:
    """One line that is drawn anew on a terminal; plain lines anywhere else, or none."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._status: Any = None

    def __enter__(self) -> Progress:
        if self._shown and sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("starting")
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self._shown:
            return
        if self._status is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._status.console.print(text, markup=False, highlight=False)

    def show(self, text: str) -> None:
        """The line of the moment."""
        if self._status is None:
            self.say(text)
        else:
            self._status.update(text)


def line(
    step: int, steps: int, loss: float, valid: float | None, rate: float, seconds: float
) -> str:
    """The progress line.

    >>> line(20, 1000, 3.21, 3.4, 1_500_000, 125)
    'step 20/1000 · loss 3.210 · val 3.400 · 1.50M tokens/s · 2:05 left'
    """
    parts = [f"step {step}/{steps}", f"loss {loss:.3f}"]
    if valid is not None and math.isfinite(valid):
        parts.append(f"val {valid:.3f}")
    return " · ".join([*parts, f"{_short(rate)} tokens/s", f"{duration(seconds)} left"])


def duration(seconds: float) -> str:
    """Minutes and seconds, and hours where there are some."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _short(count: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f}{unit}"
    return f"{count:.0f}"

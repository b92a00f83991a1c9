"""What the terminal is told while the server starts: progress, then one summary."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import rosellm
from rosellm.roseinfer import logs
from rosellm.roseinfer.messages import Progress, Ready

Show = Callable[[Progress], None]


def loading() -> AbstractContextManager[Show]:
    """Shows progress on stderr: a bar on a terminal, plain lines elsewhere."""
    return _bar() if sys.stderr.isatty() and not logs.is_json() else _lines()


def summary(name: str, ready: Ready, url: str, *, needs_key: bool, about: str = "") -> str:
    """What is served, what was decided and why, and how to try it.

    Args:
        about: what there is to say of the model beside its name.
    """
    promise = (
        "schedule-invariant: the same bits whatever else is running"
        if ready.invariant
        else "not schedule-invariant: they may depend on what else is running"
    )
    rows = [("model", name, about)]
    rows += [(each.name, each.value, each.reason) for each in ready.decisions]
    rows += [("outputs", promise, ""), ("fingerprint", ready.fingerprint, "")]
    return "\n".join(
        [
            f"rosellm {rosellm.__version__}",
            "",
            *_table(rows),
            "",
            f"  serving on {url}",
            "",
            f"  {curl(name, url, needs_key=needs_key, generates=ready.generates)}",
            "",
        ]
    )


def facts(name: str, ready: Ready, url: str) -> dict[str, Any]:
    """The same as the fields of a log line."""
    return {
        "version": rosellm.__version__,
        "model": name,
        "url": url,
        "decisions": {
            each.name: {"value": each.value, "reason": each.reason} for each in ready.decisions
        },
        "invariant": ready.invariant,
        "fingerprint": ready.fingerprint,
    }


def curl(name: str, url: str, *, needs_key: bool, generates: bool) -> str:
    """A command that can be pasted into a shell as it is."""
    body: dict[str, Any] = {"model": name}
    if generates:
        path = "/v1/chat/completions"
        body["messages"] = [{"role": "user", "content": "Hello! Who are you?"}]
        body["max_tokens"] = 64
    else:
        path = "/v1/embeddings"
        body["input"] = "Once upon a time"
    key = ' -H "Authorization: Bearer $ROSELLM_API_KEY"' if needs_key else ""
    return (
        f"curl {url}{path} -H 'Content-Type: application/json'{key} \\\n"
        f"    -d {shlex.quote(json.dumps(body))}"
    )


def _table(rows: list[tuple[str, str, str]]) -> Iterator[str]:
    width = max(len(name) for name, _, _ in rows)
    for name, value, reason in rows:
        yield f"  {name:<{width}}  {value}" + (f"  ({reason})" if reason else "")


def in_words(progress: Progress) -> str:
    """How far loading is, on one line."""
    percent = f", {100 * progress.done // progress.total} %" if progress.total else ""
    return progress.phase + percent


@contextmanager
def _bar() -> Iterator[Show]:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[size]}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None, size="")

        def show(progress: Progress) -> None:
            phase, done, total = progress.phase, progress.done, progress.total or None
            size = f"{decimal(done)} of {decimal(total)}" if total else ""
            bar.update(task, description=phase, completed=done, total=total, size=size)

        yield show


@contextmanager
def _lines() -> Iterator[Show]:
    """A line for every phase and every quarter of it."""
    shown: set[tuple[str, int]] = set()

    def show(progress: Progress) -> None:
        quarter = 4 * progress.done // progress.total if progress.total else 0
        if (progress.phase, quarter) not in shown:
            shown.add((progress.phase, quarter))
            percent = f" {25 * quarter} %" if progress.total else ""
            text = f"{progress.phase}{percent}"
            logs.say(text, "loading", phase=progress.phase, percent=25 * quarter)

    yield show

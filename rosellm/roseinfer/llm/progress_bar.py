"""A bar that shows how far many requests are. On a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rosellm.roseinfer.messages import Progress
from rosellm.roseinfer.server import report
from rosellm.roseinfer.server.report import Show

OnCount = Callable[[int, int, int], None]
"""Told what has been done since the last call: requests, tokens read, tokens generated."""


def loading() -> AbstractContextManager[Show]:
    """Shows how far loading is."""
    return report.loading() if sys.stderr.isatty() else nullcontext(_ignore)


def requests(total: int, wanted: bool) -> AbstractContextManager[OnCount]:
    """Shows requests done, and tokens a second in and out."""
    if not (wanted and sys.stderr.isatty()):
        return nullcontext(_ignore_counts)
    return _bar(total)


@contextmanager
def _bar(total: int) -> Iterator[OnCount]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("requests", total=total, speed="")
        read = generated = 0

        def count(requests: int, into: int, out: int) -> None:
            nonlocal read, generated
            read, generated = read + into, generated + out
            seconds = bar.tasks[task].elapsed or 1e-9
            speed = f"tokens/s: {read / seconds:,.0f} in, {generated / seconds:,.0f} out"
            bar.update(task, advance=requests, speed=speed)

        yield count


def _ignore(_: Progress) -> None:
    pass


def _ignore_counts(*_: int) -> None:
    pass

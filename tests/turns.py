"""Tests run in several processes at once, but one that watches the clock while no other does.

Each test takes a lock for its whole run, fixtures included: a shared one, or one of its own where
it is marked ``alone``. Files that lie here anyway are locked, so nothing is left to clean up, and
two runs in one checkout keep out of each other's way too. Knows nothing of how tests are shared
out; where one process runs them all, it finds every lock free.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOM = Path(__file__)
TURNSTILE = Path(__file__).parent / "conftest.py"


@contextmanager
def taken(*, alone: bool, room: Path = ROOM, turnstile: Path = TURNSTILE) -> Iterator[None]:
    """Wait for a turn, and have it until the block ends.

    Who waits to be alone keeps the turnstile, so that others cannot go on taking turns before it.
    """
    with room.open() as inside, turnstile.open() as before:
        fcntl.flock(before, fcntl.LOCK_EX)
        fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(before, fcntl.LOCK_UN)
        yield

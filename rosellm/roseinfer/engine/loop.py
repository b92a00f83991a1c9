"""Drives an engine core from a queue of messages: the body of its process or thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.messages import Abort, Add, Flush, Outputs

Item = TypeVar("Item")


_INTAKE_S = 0.005
"""Time for taking messages in between two steps; running streams do not wait for more."""


def run_engine(
    core: EngineCore,
    inbox: SimpleQueue[Item],
    decode: Callable[[Item], Add | Abort | Flush | None],
    emit: Callable[[Outputs], None],
) -> None:
    """Take messages in, step, hand outputs on; sleep while there is nothing to do.

    The state is announced once at the start, then after every step. Returns when a message
    decodes to None. Messages are decoded here, between steps: the thread that fills the inbox
    does nothing but move them.
    """
    emit(Outputs([], core.scheduler.stats()))
    while True:
        for item in _take(inbox, wait=not core.has_work):
            message = decode(item)
            if message is None:
                return
            if isinstance(message, Add):
                core.add(message)
            else:
                core.control(message)
        if core.has_work:
            emit(core.step())


def _take(inbox: SimpleQueue[Item], wait: bool) -> Iterator[Item]:
    """What is in the inbox by now, within bounds; with ``wait``, at least one item."""
    if wait:
        yield inbox.get()
    until = time.monotonic() + _INTAKE_S
    while time.monotonic() < until:
        try:
            yield inbox.get_nowait()
        except Empty:
            return

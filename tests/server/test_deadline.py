"""A connection's deadlines do not count the time in which nobody could look at it."""

from __future__ import annotations

import asyncio
import time

import pytest

from rosellm.roseinfer.server.edge import _Deadline


@pytest.mark.parametrize("arrives", [True, False])
def test_what_came_while_the_loop_stood_still_is_seen_first(arrives: bool) -> None:
    ended: list[float] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        deadline = _Deadline(loop, 0.05, lambda: ended.append(time.monotonic()))
        deadline.start()
        time.sleep(0.5)  # what the loop is kept from is the point
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not ended
        if arrives:
            deadline.stop()
        await asyncio.sleep(0.7)

    asyncio.run(run())
    assert len(ended) == (not arrives)


def test_it_ends_once_and_in_time_otherwise() -> None:
    ended: list[float] = []

    async def run() -> float:
        deadline = _Deadline(
            asyncio.get_running_loop(), 0.1, lambda: ended.append(time.monotonic())
        )
        began = time.monotonic()
        deadline.start()
        deadline.start()
        await asyncio.sleep(0.4)
        return began

    began = asyncio.run(run())
    assert len(ended) == 1
    assert 0.09 < ended[0] - began < 0.35

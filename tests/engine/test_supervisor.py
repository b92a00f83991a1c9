"""Engines that die, hang, fall silent or do not come up, as whoever has started them sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from rosellm.roseinfer.config import EngineConfig
from rosellm.roseinfer.engine import supervisor as supervising
from rosellm.roseinfer.engine.listener import EngineListener
from rosellm.roseinfer.engine.supervisor import Supervisor
from rosellm.roseinfer.errors import EngineDeadError, ModelError, RosellmError
from rosellm.roseinfer.messages import Abort, Progress, Ready

READY = Ready(128, 97, 640, "float32", "cpu", True, "fp_one")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (
        ("LOOK_S", 0.05), ("SILENT_S", 0.2), ("DEAD_S", 0.8), ("LOAD_S", 0.3),
    ):  # fmt: skip
        monkeypatch.setattr(supervising, name, seconds)


class Process:
    """What a supervisor starts, without a process."""

    def __init__(self, config: EngineConfig, outcome: Ready | RosellmError | None) -> None:
        self.config = config
        self.stuck = self.killed = self.stopped = False
        self.sent: list[Any] = []
        self.beating = True
        self._outcome = outcome
        self._heard = 0.0

    @property
    def heard(self) -> float:
        if self.beating:
            self._heard = asyncio.get_running_loop().time()
        return self._heard

    async def start(self, listener: EngineListener) -> Ready:
        self.die = listener.on_death
        self._heard = asyncio.get_running_loop().time()
        listener.on_progress(Progress("reading weights", 1, 2))
        await asyncio.sleep(0.02)
        if self._outcome is None:
            await asyncio.sleep(60)
        if isinstance(self._outcome, RosellmError):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def kill(self) -> None:
        self.killed = True

    async def stop(self) -> None:
        self.stopped = True


class Watched(EngineListener):
    """A supervisor of processes that come to what a test says, and who hears it."""

    def __init__(self, *outcomes: Ready | RosellmError | None, restarts: int = 3) -> None:
        self.processes: list[Process] = []
        self._outcomes = list(outcomes)
        self.restarts = 0
        self.explained = 0
        self.death = ""
        self.client = Supervisor(EngineConfig(), restarts, self._launch)  # type: ignore[arg-type]

    def _launch(self, config: EngineConfig) -> Process:
        self.processes.append(Process(config, self._outcomes.pop(0)))
        return self.processes[-1]

    def on_loss(self) -> int:
        return self.explained

    def on_restart(self) -> None:
        self.restarts += 1

    def on_death(self, reason: str) -> None:
        self.death = reason

    async def start(self) -> Ready:
        return await self.client.start(self)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.005)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_another_one_is_started_with_what_the_first_one_found_room_for() -> None:
    async def test() -> None:
        watched = Watched(READY, READY)
        assert watched.client.trouble
        assert await watched.start() == READY
        assert watched.client.trouble == ""
        first = watched.processes[0]
        first.die("killed by signal 9")
        assert "signal 9" in watched.client.trouble
        watched.client.send(Abort([1]))
        await watched.until(lambda: watched.restarts)
        second = watched.processes[1]
        assert watched.client.trouble == watched.death == ""
        assert first.stopped
        assert first.sent == second.sent == []
        assert second.config.model.max_model_len == READY.max_model_len
        watched.client.send(Abort([2]))
        assert second.sent == [Abort([2])]
        first.die("once more")  # of no interest any more
        assert watched.client.trouble == ""
        await watched.client.stop()
        assert second.stopped

    run(test())


@pytest.mark.parametrize("how", ["silent", "stuck"])
def test_one_that_does_not_get_on_is_killed_and_replaced(how: str) -> None:
    async def test() -> None:
        watched = Watched(READY, READY)
        await watched.start()
        first = watched.processes[0]
        first.stuck, first.beating = how == "stuck", how != "silent"
        if how == "silent":
            await watched.until(lambda: watched.client.trouble == "the engine does not answer")
            assert not first.killed
        await watched.until(lambda: watched.restarts)
        assert first.killed
        assert watched.client.trouble == ""
        await watched.client.stop()

    run(test())


def test_a_moment_of_silence_is_forgiven() -> None:
    async def test() -> None:
        watched = Watched(READY)
        await watched.start()
        watched.processes[0].beating = False
        await watched.until(lambda: watched.client.trouble)
        watched.processes[0].beating = True
        await watched.until(lambda: not watched.client.trouble)
        assert len(watched.processes) == 1
        await watched.client.stop()

    run(test())


def test_one_that_does_not_come_up_costs_of_the_budget_too() -> None:
    async def test() -> None:
        watched = Watched(READY, ModelError("no room"), EngineDeadError("killed"), READY)
        await watched.start()
        watched.processes[0].die("gone")
        await watched.until(lambda: watched.restarts)
        watched.processes[-1].die("gone again")
        await watched.until(lambda: watched.death)
        assert "gone again" in watched.death
        assert watched.client.trouble == watched.death
        assert len(watched.processes) == 4
        await watched.client.stop()

    run(test())


def test_the_budget_is_of_the_last_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "WINDOW_S", 0.05)

    async def test() -> None:
        watched = Watched(*[READY] * 4, restarts=1)
        await watched.start()
        for count in range(1, 4):
            await asyncio.sleep(0.06)
            watched.processes[-1].die("gone")
            await watched.until(lambda count=count: watched.restarts == count)
        assert watched.death == ""
        await watched.until(lambda: len(watched.client._tasks) == 1)  # nothing is kept of each
        await watched.client.stop()

    run(test())


def test_deaths_that_are_explained_cost_nothing_of_the_budget() -> None:
    async def test() -> None:
        watched = Watched(*[READY] * 5, restarts=2)
        await watched.start()
        for count, explained in enumerate((0, 0, 2, 0), start=1):
            watched.explained = explained
            watched.processes[-1].die("gone")
            await watched.until(lambda count=count: watched.restarts == count)
        watched.processes[-1].die("gone for good")
        await watched.until(lambda: watched.death)
        await watched.client.stop()

    run(test())


def test_a_first_one_that_cannot_serve_is_not_tried_again() -> None:
    async def test() -> None:
        watched = Watched(ModelError("no such model"))
        with pytest.raises(ModelError, match="no such model"):
            await watched.start()
        await watched.client.stop()
        assert len(watched.processes) == 1

    run(test())


def test_loading_that_does_not_get_on_is_given_up() -> None:
    async def test() -> None:
        watched = Watched(None)
        with pytest.raises(EngineDeadError, match="has not got on"):
            await watched.start()
        await watched.client.stop()

    run(test())


def test_another_model_in_the_same_place_is_not_served() -> None:
    async def test() -> None:
        watched = Watched(READY, replace_fingerprint("fp_two"))
        await watched.start()
        watched.processes[0].die("gone")
        await watched.until(lambda: watched.death)
        assert "fingerprint" in watched.death
        assert watched.restarts == 0
        await watched.client.stop()

    run(test())


def test_told_to_stop_while_it_starts_another_one_it_stops() -> None:
    async def test() -> None:
        watched = Watched(READY, None)
        await watched.start()
        watched.processes[0].die("gone")
        await watched.until(lambda: len(watched.processes) == 2)
        await watched.client.stop()
        assert watched.processes[1].stopped
        assert (watched.restarts, watched.death) == (0, "")

    run(test())


def replace_fingerprint(fingerprint: str) -> Ready:
    return Ready(128, 97, 640, "float32", "cpu", True, fingerprint)

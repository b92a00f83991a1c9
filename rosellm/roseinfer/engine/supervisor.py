"""An engine's process that is watched, and started again when it dies or hangs.

Knows nothing of requests. Whoever has sent some is told when there is a new engine, which knows
none of them, and sends them once more with what they have produced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace

from rosellm.roseinfer.config import EngineConfig
from rosellm.roseinfer.engine.client import ProcessClient
from rosellm.roseinfer.engine.listener import EngineListener, OnProgress
from rosellm.roseinfer.errors import EngineDeadError, RosellmError
from rosellm.roseinfer.messages import Abort, Add, Flush, Outputs, Progress, Ready

log = logging.getLogger(__name__)

LOOK_S = 0.2
SILENT_S = 1.0
"""Without a beat for so long, the engine does not count as ready."""
DEAD_S = 5.0
"""Without a beat for so long, it counts as dead."""
LOAD_S = 600.0
"""Without progress for so long while it loads, it counts as dead."""
WINDOW_S = 300.0
"""Restarts are counted over the last so many seconds."""

Launch = Callable[[EngineConfig], ProcessClient]


class Supervisor:
    """An ``EngineClient``.

    Args:
        config: what the engine loads. The first process is started by the constructor.
        restarts: how often it may be started again within ``WINDOW_S``.
        launch: starts a process.
    """

    def __init__(self, config: EngineConfig, restarts: int, launch: Launch = ProcessClient) -> None:
        self._config = config
        self._restarts = restarts
        self._launch = launch
        self._client = launch(config)
        self._begun: deque[float] = deque()  # when it was started again, lately
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving = False
        self._silent = False
        self._reason = "the engine is loading"

    @property
    def pid(self) -> int:
        """Of the present process."""
        return self._client.pid

    @property
    def trouble(self) -> str:
        if not self._serving:
            return self._reason
        return "the engine does not answer" if self._silent else ""

    async def start(self, listener: EngineListener) -> Ready:
        self._listener = listener
        self._ready = await self._load(listener.on_progress)
        # What was found room for is asked for again: then it is the same engine in every bit.
        model = replace(self._config.model, max_model_len=self._ready.max_model_len)
        self._config = replace(self._config, model=model)
        self._keep(self._watch())
        return self._ready

    def send(self, message: Add | Abort | Flush) -> None:
        """Pass it on; while there is no engine nothing is kept, see ``on_restart``."""
        if self._serving:
            self._client.send(message)

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        """Have it done beside everything else, until ``stop``."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        self._serving, self._reason = False, "the engine was stopped"
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end(now=self._silent)

    # -- one engine ----------------------------------------------------------------------------

    async def _load(self, on_progress: OnProgress) -> Ready:
        """Wait until the present process serves.

        Raises:
            ModelError, EngineDeadError: it cannot, or does not get on.
        """
        loop = asyncio.get_running_loop()
        client = self._client
        watch = _Watch(
            loop.time, on_progress, self._listener, lambda reason: self._lost(client, reason)
        )
        starting = asyncio.ensure_future(client.start(watch))
        try:
            while not starting.done():
                await asyncio.wait({starting}, timeout=LOOK_S)
                if loop.time() - watch.advanced > LOAD_S:
                    raise EngineDeadError(f"the engine has not got on for {LOAD_S:.0f} s")
            ready = starting.result()
        finally:
            starting.cancel()
        self._serving, self._silent = True, False
        return ready

    def _lost(self, client: ProcessClient, reason: str) -> None:
        """A process has ended; only the present one's end is news."""
        if self._serving and client is self._client:
            self._serving, self._reason = False, reason
            self._pay_back(self._listener.on_loss())
            self._keep(self._revive(reason))

    async def _watch(self) -> None:
        """Look after the process: one that is stopped or hangs says nothing of it."""
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(LOOK_S)
            if loop.time() - before > 2 * LOOK_S or not self._serving:
                continue  # what has been said in the meantime is still to be read
            silence = loop.time() - self._client.heard
            self._silent = silence > SILENT_S
            if silence > DEAD_S:
                self._give_up(f"the engine has said nothing for {silence:.0f} s")
            elif self._client.stuck:
                self._give_up("the engine hangs in a step")

    def _give_up(self, reason: str) -> None:
        self._client.kill()
        self._lost(self._client, reason)

    # -- the next one --------------------------------------------------------------------------

    async def _revive(self, reason: str) -> None:
        """Start a new process, and another one if that fails, while there is a budget."""
        while self._take_from_budget():
            log.error("%s; starting it again", reason)
            await self._end(now=True)
            self._client = self._launch(self._config)
            try:
                ready = await self._load(lambda _: None)
            except RosellmError as error:
                reason = str(error)
                continue
            if ready.fingerprint == self._ready.fingerprint:
                log.warning("the engine serves again")
                self._listener.on_restart()
                return
            self._serving = False
            reason = "the engine came up with another fingerprint: has the model been replaced?"
            break
        self._reason = reason
        self._listener.on_death(reason)

    def _take_from_budget(self) -> bool:
        now = asyncio.get_running_loop().time()
        while self._begun and now - self._begun[0] > WINDOW_S:
            self._begun.popleft()
        if len(self._begun) >= self._restarts:
            return False
        self._begun.append(now)
        return True

    def _pay_back(self, restarts: int) -> None:
        """The latest so many are not counted any more."""
        for _ in range(min(restarts, len(self._begun))):
            self._begun.pop()

    async def _end(self, *, now: bool) -> None:
        """Let go of the present process, dead or not."""
        if now:
            self._client.kill()
        with contextlib.suppress(OSError):
            await self._client.stop()


class _Watch(EngineListener):
    """Hears one process: how it gets on, and its end."""

    def __init__(
        self,
        clock: Callable[[], float],
        on_progress: OnProgress,
        listener: EngineListener,
        lost: Callable[[str], None],
    ) -> None:
        self.advanced = clock()
        self._clock = clock
        self._report = on_progress
        self._listener = listener
        self._lost = lost

    def on_progress(self, progress: Progress) -> None:
        self.advanced = self._clock()
        self._report(progress)

    def on_outputs(self, outputs: Outputs) -> None:
        self._listener.on_outputs(outputs)

    def on_death(self, reason: str) -> None:
        self._lost(reason)

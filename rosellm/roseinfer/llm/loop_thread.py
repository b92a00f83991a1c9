"""An asyncio loop on a thread of its own, for callers that have none. Knows nothing of models."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from rosellm.roseinfer.errors import EngineDeadError

T = TypeVar("T")

_END_S = 5.0


class LoopThread:
    """Runs coroutines for other threads. A daemon: Python can end while it runs.

    Args:
        name: of the thread.
        epitaph: what is said to whoever comes after ``close``.
    """

    def __init__(self, name: str, epitaph: str) -> None:
        self._epitaph = epitaph
        self._closed = False
        self._lock = threading.Lock()  # what begins before ``close`` is cancelled by it
        self._loop = asyncio.new_event_loop()
        # Of our own: Python would wait for the loop's default one when it ends.
        self._workers = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix=name)
        self._loop.set_default_executor(self._workers)
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def is_current(self) -> bool:
        """Whether the caller is on this very thread."""
        return threading.current_thread() is self._thread

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return the result.

        Whatever interrupts the waiting (Ctrl-C) cancels the work, and is raised once the work
        has ended: nothing of it is left behind.

        Raises:
            EngineDeadError: the loop is closed, or was meanwhile.
            RuntimeError: called on the loop's own thread, which would wait for itself.
        """
        begun = self.begin(work)
        try:
            return begun.result.result()
        except BaseException:
            if not begun.result.done():
                begun.cancel()
                concurrent.futures.wait([begun.result])
            raise

    async def run_elsewhere(self, work: Coroutine[Any, Any, T]) -> T:
        """``run`` for a caller on another loop; cancelling it cancels the work."""
        begun = self.begin(work)
        waiting = asyncio.wrap_future(begun.result)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            begun.cancel()
            await asyncio.wait([waiting])
            waiting.exception()  # seen
            raise

    def begin(self, work: Coroutine[Any, Any, T]) -> Begun[T]:
        """Run without waiting; for the errors see ``run``."""
        try:
            with self._lock:
                self._check()
                return Begun(self._loop, work, self._epitaph)
        except BaseException:
            work.close()
            raise

    def call(self, function: Callable[[], object]) -> None:
        """Have it called on the loop soon, from any thread; where that is closed, never."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """Cancel what runs and end the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._loop.call_soon_threadsafe(self._loop.stop)
        if not self.is_current:
            self._thread.join(_END_S)

    def _check(self) -> None:
        if self._closed:
            raise EngineDeadError(self._epitaph)
        if self.is_current:
            raise RuntimeError(
                "this would wait for the thread that it is called on; call it from another one"
                " (in a route, write `def` instead of `async def`)"
            )

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(_cancel_all())
        finally:
            self._workers.shutdown(wait=False)
            self._loop.close()


class Begun(Generic[T]):
    """A coroutine that runs on a loop, seen from another thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], epitaph: str
    ) -> None:
        self.result: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._loop = loop
        self._epitaph = epitaph
        loop.call_soon_threadsafe(self._start, work)

    def cancel(self) -> None:
        """Ask it to end; ``result`` tells when it has. Too late is no error."""
        with contextlib.suppress(RuntimeError):  # a closed loop has cancelled all
            self._loop.call_soon_threadsafe(self._cancel)

    def _start(self, work: Coroutine[Any, Any, T]) -> None:
        self._task = self._loop.create_task(work)
        self._task.add_done_callback(self._hand_over)

    def _cancel(self) -> None:
        self._task.cancel()

    def _hand_over(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.result.set_exception(EngineDeadError(self._epitaph))
        elif (error := task.exception()) is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result(task.result())


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)

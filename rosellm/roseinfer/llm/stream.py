"""One answer, piece by piece, for a caller that has no event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.llm.batch import Window
from rosellm.roseinfer.llm.gather import Gathered
from rosellm.roseinfer.llm.loop_thread import LoopThread
from rosellm.roseinfer.llm.results import Completion
from rosellm.roseinfer.server.answer import Answer
from rosellm.roseinfer.server.delta import Delta
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.pipeline import Pipeline
from rosellm.roseinfer.text.tokenizer import Tokenizer


class TextStream(Iterator[str]):
    """Pieces of an answer's text as they come; together they are ``Completion.text``.

    Closing it before its end aborts the request: leaving ``with``, ``close()``, Ctrl-C while
    waiting for a piece, or forgetting it.
    """

    def __init__(
        self, loop: LoopThread, source: Source, tokenizer: Tokenizer, owner: object
    ) -> None:
        self._loop = loop
        self._source = source
        self._tokenizer = tokenizer
        self._owner = owner  # which would close what it comes from, if it were forgotten

    def __next__(self) -> str:
        """
        Raises:
            RequestError, EngineDeadError: there will be no whole answer.
        """
        while (delta := self._loop.run(self._source.next())) is not None:
            if delta.text:
                return delta.text
        raise StopIteration

    @property
    def completion(self) -> Completion | None:
        """All there is to know of the answer, once its last piece has come."""
        if not self._source.complete:
            return None
        return self._source.gathered.completion(self._tokenizer)

    def close(self) -> None:
        """Abort what is unfinished. May be called twice."""
        self._loop.call(self._source.close)

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Source:
    """The stream's end on the loop."""

    def __init__(self, answer: Answer, job: Job, window: Window) -> None:
        self.gathered = Gathered(job)
        self.complete = False
        self._answer = answer
        self._window = window
        self._open = True

    @classmethod
    async def begin(
        cls, pipeline: Pipeline, window: Window, make: Callable[[], Awaitable[Job]]
    ) -> Source:
        """
        Raises:
            RequestError: the request is refused.
        """
        job = await make()
        if job.n != 1:
            raise RequestError(f"a stream has one choice: n must be 1, not {job.n}", param="n")
        await window.enter(1)
        try:
            return cls(await pipeline.generate([job]), job, window)
        except BaseException:
            window.leave(1)
            raise

    async def next(self) -> Delta | None:
        """The next news, or None at the end and after ``close``."""
        if not self._open:
            return None
        try:
            delta = await anext(self._answer, None)
        except BaseException:
            self.close()
            raise
        if delta is None:
            self.complete = True
            self.close()
        else:
            self.gathered.add(delta)
        return delta

    def close(self) -> None:
        if self._open:
            self._open = False
            self._answer.close()
            self._window.leave(1)

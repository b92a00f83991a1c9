"""The engine as a Python object: a thin synchronous face over the server's own pipeline.

The engine runs on a thread of this process and the pipeline on an event loop on another, so
calls may come from any thread, and from code that has a loop of its own.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from os import PathLike
from types import TracebackType
from typing import Any, TypeVar, overload

from rosellm.roseinfer.config import Device, DType, SchedulerConfig
from rosellm.roseinfer.engine.client import InprocClient
from rosellm.roseinfer.llm import jobs, progress_bar, scoring
from rosellm.roseinfer.llm.batch import Window, run_all
from rosellm.roseinfer.llm.embedding import check_dimensions, embedding
from rosellm.roseinfer.llm.gather import Gathered
from rosellm.roseinfer.llm.inputs import (
    Conversation,
    Params,
    Prompt,
    Prompts,
    is_conversation,
    one_or_many,
    paired,
    with_continuations,
)
from rosellm.roseinfer.llm.loop_thread import LoopThread
from rosellm.roseinfer.llm.params import SamplingParams
from rosellm.roseinfer.llm.results import Completion, Embedding, Score
from rosellm.roseinfer.llm.settings import read_settings
from rosellm.roseinfer.llm.stream import Source, TextStream
from rosellm.roseinfer.server.flags import Options
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.load import load_service
from rosellm.roseinfer.server.pipeline import Pipeline
from rosellm.roseinfer.server.service import Service

Item = TypeVar("Item")

CLOSED = "this LLM has been closed"


class LLM:
    """A model, loaded into this process.

    >>> with LLM("path/to/model") as llm:  # doctest: +SKIP
    ...     print(llm.generate("Once upon a time", SamplingParams(max_tokens=64)).text)

    One prompt gives one result, a list of prompts a list of results in the same order. A prompt
    is a text, or token ids. However many there are, the engine gets as many at a time as keep it
    busy. A prompt that is refused (too long, say) is an error before anything is generated.
    Ctrl-C aborts what is in flight, and the LLM stays usable.

    Args:
        model: a Hugging Face folder, a rosetrainer ``.pt`` checkpoint (which needs
            ``tokenizer``), or a hub id, ``org/name[@revision]``; None takes the small demo
            model that comes with rosellm.
        tokenizer: to use instead of the model's own: a folder, a file or a hub id.
        settings: every other field of ``ModelConfig``, ``CacheConfig``, ``SchedulerConfig`` and
            ``SamplingDefaults`` (``config.py``) by its name.

    Attributes:
        service: what answers, as the HTTP server has it. It lives on ``loop``.
        loop: a thread with an event loop.

    Raises:
        ConfigError: a setting that is none, or a value that cannot work.
        ModelError: the model cannot be served; the message says why.
    """

    def __init__(
        self,
        model: str | PathLike[str] | None = None,
        *,
        tokenizer: str | PathLike[str] | None = None,
        dtype: DType = "auto",
        device: Device = "auto",
        max_model_len: int | None = None,
        **settings: Any,
    ) -> None:
        own = {"model": model, "tokenizer": tokenizer, "dtype": dtype, "device": device}
        options = read_settings({**own, "max_model_len": max_model_len, **settings})
        self.loop, self.service = _load(options)
        self._window = Window(_window_size(options.engine.scheduler))
        # Also when it is forgotten and when Python ends: no thread may be computing then.
        self._close = weakref.finalize(self, _shut, self.loop, self.service.pipeline)

    # -- text --------------------------------------------------------------------------------

    @overload
    def generate(
        self, prompts: Prompt, params: SamplingParams | None = None, *, progress: bool = ...
    ) -> Completion: ...
    @overload
    def generate(
        self, prompts: Prompts, params: Params = None, *, progress: bool = ...
    ) -> list[Completion]: ...
    def generate(
        self, prompts: Prompt | Prompts, params: Params = None, *, progress: bool = True
    ) -> Completion | list[Completion]:
        """Continue prompts.

        Args:
            params: for all prompts, or one for each.
            progress: show a bar, if there are several prompts and stderr is a terminal.

        Raises:
            RequestError: a prompt or a parameter is refused; says which.
            EngineDeadError: the engine has failed, or the LLM is closed.
        """
        items, single = one_or_many(prompts)
        results = self._complete(jobs.completion, paired(items, params), progress)
        return results[0] if single else results

    @overload
    def chat(
        self,
        messages: Conversation,
        params: SamplingParams | None = None,
        *,
        progress: bool = ...,
    ) -> Completion: ...
    @overload
    def chat(
        self, messages: list[Conversation], params: Params = None, *, progress: bool = ...
    ) -> list[Completion]: ...
    def chat(
        self,
        messages: Conversation | list[Conversation],
        params: Params = None,
        *,
        progress: bool = True,
    ) -> Completion | list[Completion]:
        """Answer a conversation (a list of OpenAI's message objects), or each of several.

        The rest is as in ``generate``.
        """
        items, single = one_or_many(messages)
        results = self._complete(jobs.chat, paired(items, params), progress)
        return results[0] if single else results

    def stream(
        self, prompt: Prompt | Conversation, params: SamplingParams | None = None
    ) -> TextStream:
        """Continue one prompt, or answer one conversation: the text in pieces, as they come.

        >>> for piece in llm.stream("Once upon a time"):  # doctest: +SKIP
        ...     print(piece, end="", flush=True)

        Raises:
            RequestError: the prompt or a parameter is refused, ``n`` above 1 among them.
        """
        make: Callable[..., Awaitable[Job]] = jobs.completion
        if is_conversation(prompt):
            make = jobs.chat
        job = partial(make, self.service, prompt, params or SamplingParams())
        source = self.loop.run(Source.begin(self.service.pipeline, self._window, job))
        return TextStream(self.loop, source, self.service.prompts.tokenizer, self)

    # -- numbers -----------------------------------------------------------------------------

    @overload
    def score(
        self, text: Prompt, continuation: Prompt | None = None, *, progress: bool = ...
    ) -> Score: ...
    @overload
    def score(
        self,
        text: Prompt | Prompts,
        continuation: Prompts,
        *,
        progress: bool = ...,
    ) -> list[Score]: ...
    @overload
    def score(
        self, text: Prompts, continuation: None = None, *, progress: bool = ...
    ) -> list[Score]: ...
    def score(
        self,
        text: Prompt | Prompts,
        continuation: Prompt | Prompts | None = None,
        *,
        progress: bool = True,
    ) -> Score | list[Score]:
        """How likely the model finds texts, or what continues them.

        ``score(text)`` is about all of a text; ``score(prompt, continuation)`` about the
        continuation, given the prompt. Both may be lists, and one prompt may have several
        continuations. Prompt and continuation are tokenised as one text: a token that holds the
        end of the one and the beginning of the other counts as the continuation's.

        Raises:
            RequestError: a text is refused; says which.
            EngineDeadError: the engine has failed, or the LLM is closed.
        """
        if continuation is None:
            items, single = one_or_many(text)
            made = self._make(scoring.of_text, [(item,) for item in items])
        else:
            pairs, single = with_continuations(text, continuation)
            made = self._make(scoring.of_continuation, pairs)
        tokenizer = self.service.prompts.tokenizer
        answers = zip(made, self._run([each.job for each in made], progress), strict=True)
        results = [scoring.score(tokenizer, asked, gathered) for asked, gathered in answers]
        return results[0] if single else results

    @overload
    def embed(
        self, texts: Prompt, dimensions: int | None = None, *, progress: bool = ...
    ) -> Embedding: ...
    @overload
    def embed(
        self, texts: Prompts, dimensions: int | None = None, *, progress: bool = ...
    ) -> list[Embedding]: ...
    def embed(
        self, texts: Prompt | Prompts, dimensions: int | None = None, *, progress: bool = True
    ) -> Embedding | list[Embedding]:
        """Texts as vectors of unit length.

        Args:
            dimensions: keep only so many numbers of each vector, for models trained for that.

        Raises:
            RequestError: a text or ``dimensions`` is refused.
            EngineDeadError: the engine has failed, or the LLM is closed.
        """
        check_dimensions(dimensions, self.service.ready.embedding_size)
        items, single = one_or_many(texts)
        made = self._make(jobs.pooled, [(item,) for item in items])
        results = [embedding(each, dimensions) for each in self._run(made, progress)]
        return results[0] if single else results

    # -- life --------------------------------------------------------------------------------

    def close(self) -> None:
        """End what is in flight, and free the memory. May be called twice."""
        self._close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    # -- inside ------------------------------------------------------------------------------

    def _complete(
        self,
        make: Callable[..., Awaitable[Job]],
        pairs: Sequence[tuple[Any, SamplingParams]],
        progress: bool,
    ) -> list[Completion]:
        tokenizer = self.service.prompts.tokenizer
        made = self._make(make, pairs)
        return [gathered.completion(tokenizer) for gathered in self._run(made, progress)]

    def _make(
        self, make: Callable[..., Awaitable[Item]], arguments: Sequence[tuple[Any, ...]]
    ) -> list[Item]:
        """What is made of each, with the service as the first argument."""
        return self.loop.run(jobs.make_all(partial(make, self.service), arguments))

    def _run(self, made: Sequence[Job], progress: bool) -> list[Gathered]:
        with progress_bar.requests(len(made), wanted=progress and len(made) > 1) as count:
            return self.loop.run(run_all(self.service.pipeline, self._window, made, count))


def _load(options: Options) -> tuple[LoopThread, Service]:
    loop = LoopThread("rosellm", CLOSED)
    client = None
    try:
        with progress_bar.loading() as show:
            options = options.with_local_files(show)
            client = InprocClient(options.engine)
            return loop, loop.run(load_service(options, client, show))
    except BaseException as error:
        if client is not None:
            client.abandon() if isinstance(error, KeyboardInterrupt) else loop.run(client.stop())
        loop.close()
        raise


def _window_size(limits: SchedulerConfig) -> int:
    """Enough that the next ones wait at the engine; no more, so that others find room there."""
    return max(1, min(2 * limits.max_num_seqs, limits.max_queue))


def _shut(loop: LoopThread, pipeline: Pipeline) -> None:
    if loop.is_current:  # collected as garbage there: it cannot wait for itself
        threading.Thread(target=_shut, args=(loop, pipeline)).start()
        return
    loop.run(_end(pipeline))
    loop.close()


async def _end(pipeline: Pipeline) -> None:
    pipeline.on_death(CLOSED)
    await pipeline.stop()

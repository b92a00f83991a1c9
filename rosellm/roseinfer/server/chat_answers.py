"""Chat answers in OpenAI's shapes, whole and in pieces."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable, Iterator

from msgspec import UNSET

from rosellm.roseinfer.server.collect import Whole
from rosellm.roseinfer.server.generate import Delta, Job
from rosellm.roseinfer.server.logprobs import chat_logprobs
from rosellm.roseinfer.server.schemas.responses import (
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatMessage,
    FunctionCall,
    ToolCall,
)
from rosellm.roseinfer.server.spelling import Spelling
from rosellm.roseinfer.text.answer_parser import PLAIN
from rosellm.roseinfer.text.parts import Call
from rosellm.roseinfer.text.tokenizer import Tokenizer

LETTERS = string.ascii_letters + string.digits
SHORT_ID = 9


class ChatAnswers:
    """Makes all choices of one answer. Ask it either for ``whole`` or for ``pieces``."""

    def __init__(self, job: Job, tokenizer: Tokenizer) -> None:
        self._job = job
        self._tokenizer = tokenizer
        self._streams = [_Stream(self, Spelling(tokenizer)) for _ in range(job.n)]

    def whole(self, index: int, whole: Whole) -> ChatChoice:
        """A finished choice."""
        scored = self._job.params.logprobs is not None
        return ChatChoice(
            index=index,
            message=ChatMessage(
                content=whole.text if whole.text or not whole.has_more else None,
                reasoning_content=whole.reasoning or UNSET,
                reasoning=whole.reasoning or UNSET,
                tool_calls=[self.call(call) for call in whole.calls] or UNSET,
            ),
            logprobs=chat_logprobs(Spelling(self._tokenizer), whole.logprobs) if scored else None,
            finish_reason=whole.finish,
        )

    def pieces(self, delta: Delta) -> Iterator[ChatChunkChoice]:
        """What a stream sends on this news."""
        return self._streams[delta.index].pieces(delta)

    @property
    def is_plain(self) -> bool:
        """Whether all of an answer is content."""
        return self._job.format == PLAIN

    def call(self, call: Call) -> ToolCall:
        """A call under an id of its own."""
        return ToolCall(
            id=self._id(),
            type="function",
            function=FunctionCall(name=call.name, arguments=call.arguments),
        )

    def _id(self) -> str:
        tools = self._job.format.tools
        if tools is not None and tools.short_ids:
            return "".join(secrets.choice(LETTERS) for _ in range(SHORT_ID))
        return f"call_{secrets.token_hex(12)}"


class _Stream:
    """The pieces of one choice: the role, then what there is, then the finish."""

    def __init__(self, answers: ChatAnswers, spelling: Spelling) -> None:
        self._answers = answers
        self._spelling = spelling
        self._begun = False
        self._silent = True  # neither content nor anything in its place has been sent
        self._calls = 0

    def pieces(self, delta: Delta) -> Iterator[ChatChunkChoice]:
        if not self._begun:
            yield ChatChunkChoice(index=delta.index, delta=self._opening())
        logprobs = chat_logprobs(self._spelling, delta.logprobs) if delta.logprobs else None
        for each in self._deltas(delta):
            yield ChatChunkChoice(index=delta.index, delta=each, logprobs=logprobs)
            logprobs = None
        if delta.finish is not None:
            yield ChatChunkChoice(index=delta.index, delta=ChatDelta(), finish_reason=delta.finish)

    def _deltas(self, delta: Delta) -> Iterator[ChatDelta]:
        said = list(self._said(delta))
        if not said and delta.logprobs:
            said = [ChatDelta(content="" if self._answers.is_plain else None)]
        yield from said
        if delta.finish is not None and self._silent:  # the whole answer is an empty text too
            yield ChatDelta(content="")

    def _opening(self) -> ChatDelta:
        """Content is null until it is known whether there is any."""
        self._begun, self._silent = True, not self._answers.is_plain
        content = "" if self._answers.is_plain else None
        return ChatDelta(role="assistant", content=content, refusal=None)

    def _said(self, delta: Delta) -> Iterable[ChatDelta]:
        if delta.reasoning:
            yield ChatDelta(reasoning_content=delta.reasoning, reasoning=delta.reasoning)
        if delta.text:
            yield ChatDelta(content=delta.text)
        for call in delta.calls:
            yield from self._called(self._answers.call(call))
        self._silent = self._silent and not (delta.reasoning or delta.text or delta.calls)

    def _called(self, call: ToolCall) -> Iterable[ChatDelta]:
        """First the name, then the arguments."""
        arguments, call.function.arguments = call.function.arguments, ""
        call.index, self._calls = self._calls, self._calls + 1
        yield ChatDelta(tool_calls=[call])
        rest = ToolCall(index=call.index, function=FunctionCall(arguments=arguments))
        yield ChatDelta(tool_calls=[rest])

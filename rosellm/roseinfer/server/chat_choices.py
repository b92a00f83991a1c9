"""The choices of a chat answer in OpenAI's shapes, whole or as the pieces of a stream.

The text of each is that of its tokens; with ``echo``, behind the text that it continues. Where
there is none beside calls or reasoning, it is null, so a stream says null until there is some.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator, Sequence

from msgspec import UNSET, UnsetType

from rosellm.roseinfer.server.collect import Whole
from rosellm.roseinfer.server.delta import Delta
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.logprobs import chat_logprobs, prompt_logprobs
from rosellm.roseinfer.server.off_loop import off_loop
from rosellm.roseinfer.server.schemas.chat import ChatRequest
from rosellm.roseinfer.server.schemas.responses import (
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    FunctionCall,
    PromptLogprobs,
    TokenIds,
    ToolCall,
)
from rosellm.roseinfer.server.spelling import Spelling
from rosellm.roseinfer.text.answer_parser import PLAIN
from rosellm.roseinfer.text.parts import Call
from rosellm.roseinfer.text.tokenizer import Tokenizer

LETTERS = string.ascii_letters + string.digits
SHORT_ID = 9


class ChatChoices:
    """Makes all choices of one answer. Ask it either for ``whole`` or for ``pieces``."""

    def __init__(self, body: ChatRequest, job: Job, tokenizer: Tokenizer) -> None:
        self._body = body
        self._job = job
        self._tokenizer = tokenizer
        self._opening = body.messages[-1].text if body.echo else ""
        context = job.prompt if job.continues else ()
        self._spellings = [Spelling(tokenizer, context) for _ in range(job.n)]
        self._begun: set[int] = set()
        self._silent = set(range(job.n))  # choices that have sent nothing that counts
        self._calls = [0] * job.n

    @property
    def prompt_ids(self) -> TokenIds:
        """The prompt's token ids, if asked for."""
        return self._job.prompt if self._body.return_token_ids else UNSET

    async def whole(self, wholes: Sequence[Whole]) -> list[ChatChoice]:
        """The choices of a finished answer."""
        return await off_loop(
            sum(whole.scores for whole in wholes),
            lambda: [self._whole(index, whole) for index, whole in enumerate(wholes)],
        )

    async def prompt_scores(self, wholes: Sequence[Whole]) -> PromptLogprobs | UnsetType:
        """The prompt's log-probabilities, if asked for."""
        return await off_loop(
            wholes[0].scores,
            lambda: prompt_logprobs(
                self._tokenizer, self._job.prompt, wholes[0].prompt, self._body.prompt_logprobs
            ),
        )

    def pieces(self, delta: Delta) -> Iterator[ChatChunkChoice]:
        """What a stream sends on this news: the role, what there is, the finish, each by itself."""
        index = delta.index
        if index not in self._begun:
            self._begun.add(index)
            yield ChatChunkChoice(index=index, delta=self._first(index))
        logprobs, ids = self._logprobs(delta) if delta.logprobs else None, self._ids(delta)
        for each in self._news(delta):
            yield ChatChunkChoice(index=index, delta=each, logprobs=logprobs, token_ids=ids)
            logprobs, ids = None, UNSET
        if delta.finish is not None:
            yield ChatChunkChoice(index=index, delta=ChatDelta(), finish_reason=delta.finish)

    @property
    def _is_plain(self) -> bool:
        """Whether an answer is nothing but content."""
        return self._job.format == PLAIN

    def _first(self, index: int) -> ChatDelta:
        text = self._opening if self._opening or self._is_plain else None
        if text is not None:
            self._silent.discard(index)
        return ChatDelta(role="assistant", content=text, refusal=None)

    def _news(self, delta: Delta) -> Iterator[ChatDelta]:
        said = list(self._said(delta))
        if said:
            self._silent.discard(delta.index)
        elif delta.logprobs or (delta.ids and self._body.return_token_ids):
            said = [ChatDelta(content="" if self._is_plain else None)]
        yield from said
        if delta.finish is not None and delta.index in self._silent:
            yield ChatDelta(content="")

    def _said(self, delta: Delta) -> Iterator[ChatDelta]:
        if delta.reasoning:
            yield ChatDelta(reasoning_content=delta.reasoning, reasoning=delta.reasoning)
        if delta.text:
            yield ChatDelta(content=delta.text)
        for piece in delta.calls:
            yield from self._called(delta.index, piece)

    def _called(self, index: int, piece: Call) -> Iterator[ChatDelta]:
        """First the name, then the arguments as they come."""
        if piece.name:
            call = self._call(Call(piece.name, ""))
            call.index = self._calls[index]
            self._calls[index] += 1
            yield ChatDelta(tool_calls=[call])
        if piece.arguments:
            function = FunctionCall(arguments=piece.arguments)
            yield ChatDelta(tool_calls=[ToolCall(index=self._calls[index] - 1, function=function)])

    def _whole(self, index: int, whole: Whole) -> ChatChoice:
        asked = self._body.answer_logprobs is not None
        text = self._opening + whole.text
        return ChatChoice(
            index=index,
            message=ChatMessage(
                content=text if text or not whole.has_more else None,
                reasoning_content=whole.reasoning or UNSET,
                reasoning=whole.reasoning or UNSET,
                tool_calls=[self._call(call) for call in whole.calls] or UNSET,
            ),
            logprobs=chat_logprobs(self._spellings[index], whole.logprobs) if asked else None,
            finish_reason=whole.finish,
            token_ids=self._ids(whole),
        )

    def _call(self, call: Call) -> ToolCall:
        """A call under an id of its own."""
        tools = self._job.format.tool_format
        if tools is not None and tools.short_ids:
            id = "".join(secrets.choice(LETTERS) for _ in range(SHORT_ID))
        else:
            id = f"call_{secrets.token_hex(12)}"
        function = FunctionCall(name=call.name, arguments=call.arguments)
        return ToolCall(id=id, type="function", function=function)

    def _logprobs(self, delta: Delta) -> ChatLogprobs:
        return chat_logprobs(self._spellings[delta.index], delta.logprobs)

    def _ids(self, of: Delta | Whole) -> TokenIds:
        return of.ids if self._body.return_token_ids else UNSET

"""The choices of a chat answer in OpenAI's shapes, whole or as the pieces of a stream.

The text of each is that of its tokens; with ``echo``, behind the text that it continues.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import UNSET, UnsetType

from rosellm.roseinfer.server.collect import Whole
from rosellm.roseinfer.server.generate import Delta, Job
from rosellm.roseinfer.server.logprobs import chat_logprobs, prompt_logprobs
from rosellm.roseinfer.server.off_loop import off_loop
from rosellm.roseinfer.server.schemas.chat import ChatRequest
from rosellm.roseinfer.server.schemas.responses import (
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    PromptLogprobs,
    TokenIds,
)
from rosellm.roseinfer.server.spelling import Spelling
from rosellm.roseinfer.text.tokenizer import Tokenizer


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
        """What a stream sends on this news: the role, the text, the finish, each by itself."""
        index = delta.index
        if index not in self._begun:
            self._begun.add(index)
            opening = ChatDelta(role="assistant", content=self._opening, refusal=None)
            yield ChatChunkChoice(index=index, delta=opening)
        if delta.text or delta.logprobs or (delta.ids and self._body.return_token_ids):
            yield ChatChunkChoice(
                index=index,
                delta=ChatDelta(content=delta.text),
                logprobs=self._logprobs(delta) if delta.logprobs else None,
                token_ids=self._ids(delta),
            )
        if delta.finish is not None:
            yield ChatChunkChoice(index=index, delta=ChatDelta(), finish_reason=delta.finish)

    def _whole(self, index: int, whole: Whole) -> ChatChoice:
        asked = self._body.answer_logprobs is not None
        return ChatChoice(
            index=index,
            message=ChatMessage(content=self._opening + whole.text),
            logprobs=chat_logprobs(self._spellings[index], whole.logprobs) if asked else None,
            finish_reason=whole.finish,
            token_ids=self._ids(whole),
        )

    def _logprobs(self, delta: Delta) -> ChatLogprobs:
        return chat_logprobs(self._spellings[delta.index], delta.logprobs)

    def _ids(self, of: Delta | Whole) -> TokenIds:
        return of.ids if self._body.return_token_ids else UNSET

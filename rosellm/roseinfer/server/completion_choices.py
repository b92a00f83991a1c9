"""The choices of a completion, whole or piece by piece: echoed prompt, text, scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rosellm.roseinfer.messages import Logprobs
from rosellm.roseinfer.server.collect import Whole
from rosellm.roseinfer.server.delta import Delta, Finish, TokenLogprobs
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.logprobs import LegacyLogprobs, Scored, prompt_logprobs
from rosellm.roseinfer.server.off_loop import off_loop
from rosellm.roseinfer.server.schemas.completions import CompletionRequest
from rosellm.roseinfer.server.schemas.responses import CompletionChoice
from rosellm.roseinfer.text.tokenizer import Tokenizer


class CompletionChoices:
    """Makes all choices of one answer. Ask it either for ``whole`` or for ``pieces``."""

    def __init__(self, body: CompletionRequest, jobs: Sequence[Job], tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._body = body
        self._echo = bool(body.echo)
        self._top = body.logprobs
        self._prompt_top = body.prompt_logprobs
        self._prompts = list(_of_each_choice(jobs))
        self._begun: set[int] = set()
        self._logprobs = [] if self._top is None else list(self._scorers(self._top))

    async def whole(self, wholes: Sequence[Whole]) -> list[CompletionChoice]:
        """The choices of a finished answer."""
        for prompt, whole in zip(self._prompts, wholes, strict=True):
            prompt.scores += whole.prompt
        echoed = sum(len(prompt.ids) for prompt in self._prompts) if self._echo else 0
        kept = list(self._kept(wholes))
        return await off_loop(
            echoed + sum(whole.scores for whole in wholes),
            lambda: [self._whole(index, wholes[index], at) for at, index in enumerate(kept)],
        )

    def _kept(self, wholes: Sequence[Whole]) -> Iterator[int]:
        """Indices of the choices to show: all, or of each prompt the best, best first."""
        for first in range(0, len(wholes), self._body.made):
            made = list(range(first, first + self._body.made))
            if self._body.chooses:
                made.sort(key=lambda index: -wholes[index].mean_logprob)
            yield from made[: self._body.choices]

    async def pieces(self, delta: Delta) -> list[CompletionChoice]:
        """What a stream sends on this news: often one piece, none, or a whole prompt before it."""
        prompt = self._prompts[delta.index]
        prompt.scores += delta.prompt
        if prompt.is_echoed or not self._echo:
            return list(self._news([delta]))
        prompt.held.append(delta)
        if not prompt.is_scored:
            return []
        prompt.is_echoed = True
        echo = await off_loop(
            len(prompt.choices) * len(prompt.ids) * (1 + (self._top or 0)),
            lambda: [
                self._with_ids(self._piece(index, *self._echoed(prompt)), ())
                for index in prompt.choices
            ],
        )
        return [*echo, *self._news(prompt.held)]

    def _scorers(self, top: int) -> Iterator[LegacyLogprobs]:
        for prompt in self._prompts:
            yield LegacyLogprobs(self._tokenizer, () if self._echo else prompt.ids, top)

    def _whole(self, index: int, whole: Whole, shown_at: int) -> CompletionChoice:
        prompt = self._prompts[index]
        text, tokens = self._echoed(prompt) if self._echo else ("", [])
        tokens += _scored(whole.logprobs)
        choice = self._piece(index, text + whole.text, tokens, whole.finish)
        choice.prompt_logprobs = prompt_logprobs(
            self._tokenizer, prompt.ids, prompt.scores, self._prompt_top
        )
        choice.index = shown_at
        if self._body.return_token_ids:
            choice.prompt_token_ids, choice.token_ids = prompt.ids, whole.ids
        return choice

    def _news(self, deltas: Iterable[Delta]) -> Iterator[CompletionChoice]:
        for delta in deltas:
            ids = delta.ids if self._body.return_token_ids else ()
            if delta.text or delta.logprobs or ids or delta.finish is not None:
                tokens = _scored(delta.logprobs)
                piece = self._piece(delta.index, delta.text, tokens, delta.finish)
                yield self._with_ids(piece, ids)

    def _with_ids(self, piece: CompletionChoice, ids: Sequence[int]) -> CompletionChoice:
        """The same with its token ids, if asked for; the prompt's in the first piece of all."""
        if self._body.return_token_ids:
            piece.token_ids = ids
            if piece.index not in self._begun:
                piece.prompt_token_ids = self._prompts[piece.index].ids
        self._begun.add(piece.index)
        return piece

    def _echoed(self, prompt: _Prompt) -> tuple[str, list[Scored]]:
        text = self._tokenizer.decode(prompt.ids)
        if self._top is None:
            return text, []
        return text, list(zip(prompt.ids, [None, *prompt.scores], strict=True))

    def _piece(
        self, index: int, text: str, tokens: list[Scored], finish: Finish | None = None
    ) -> CompletionChoice:
        logprobs = self._logprobs[index].of(tokens) if self._logprobs else None
        return CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=finish)


class _Prompt:
    """A prompt while its answer arrives.

    Attributes:
        choices: indices of the choices that continue it.
        scores: of its tokens from the second on, as far as they have come; the first choice's
            news bring them.
        held: news that came before all of them, and wait because an echo comes first.
    """

    def __init__(self, job: Job, choices: range) -> None:
        self.ids = job.prompt
        self.choices = choices
        self.scores: list[Logprobs] = []
        self.held: list[Delta] = []
        self.is_echoed = False
        self._wanted = 0 if job.params.prompt_logprobs is None else len(job.prompt) - 1

    @property
    def is_scored(self) -> bool:
        return len(self.scores) >= self._wanted


def _of_each_choice(jobs: Iterable[Job]) -> Iterator[_Prompt]:
    """For each choice its prompt; the choices of one job share it."""
    first = 0
    for job in jobs:
        prompt = _Prompt(job, range(first, first + job.n))
        yield from [prompt] * job.n
        first += job.n


def _scored(entries: Iterable[TokenLogprobs]) -> list[Scored]:
    return [(entry.id, entry.scores) for entry in entries]

"""One prompt and what to make of it. Knows neither the engine nor HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field

from rosellm.roseinfer.messages import Want
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.text.answer_parser import PLAIN, AnswerFormat
from rosellm.roseinfer.text.shown_specials import ShownSpecials
from rosellm.roseinfer.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Job:
    """One prompt and what to make of it.

    Attributes:
        prompt: token ids, at least one.
        n: number of choices.
        stop: strings that end a choice; the text before the match is its answer.
        continues: whether the text goes on where the prompt's ends (completions), or is an
            answer that starts anew (chat).
        want: new tokens, or the prompt's vector (then only ``prompt`` counts).
        skip_special_tokens: whether special tokens give no text.
        format: what its answers hold beside text.
        include_stop: show the stop string, or the stop token's text, that ended the answer.
        grammar: what the answer must match, see ``Add``.
        prediction: token ids that its answers may turn out to be.
        tenant: who asks, see ``Add``.
        share: see ``Add``.
        deadline: see ``Add``.
    """

    prompt: list[int]
    params: SamplingParams
    n: int = 1
    stop: tuple[str, ...] = ()
    continues: bool = False
    priority: int = 0
    cache_salt: str = ""
    want: Want = "tokens"
    skip_special_tokens: bool = True
    format: AnswerFormat = PLAIN
    include_stop: bool = False
    grammar: str = ""
    prediction: list[int] = field(default_factory=list)
    tenant: str = ""
    share: float = 1.0
    deadline: float | None = None

    def reader(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer as it reads this job's tokens."""
        if not self.skip_special_tokens:
            return ShownSpecials(tokenizer)
        markers = {tokenizer.token_to_id(marker) for marker in self.format.markers}
        shown = tokenizer.special_ids.intersection(id for id in markers if id is not None)
        return ShownSpecials(tokenizer, shown) if shown else tokenizer

"""A request as the engine knows it: integers and numbers, never text."""

from __future__ import annotations

import msgspec

MAX_SEED = 2**63 - 1


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token is chosen and when a sequence ends.

    Attributes:
        seed: noise is keyed by (seed, choice, output position), see ``kernels/sampling.py``.
            The API side draws one for an unseeded request, so the engine always has it.
        temperature: 0 is greedy.
        top_k: 0 considers every token. Tokens equal to the k-th are kept.
        top_p: smallest set of likeliest tokens whose mass reaches it.
        min_p: least probability, relative to the likeliest token's.
        presence_penalty, frequency_penalty: over generated tokens (OpenAI).
        repetition_penalty: over prompt and generated tokens (CTRL, arXiv:1909.05858).
        logit_bias: (token id, bias) pairs, added before anything else.
        max_tokens: most tokens to generate; 0 only computes the prompt.
        min_tokens: stop tokens are impossible before this many.
        stop_token_ids: end-of-sequence and custom stop tokens, already merged.
        logprobs: number of likeliest tokens to report per position; None reports nothing,
            0 only the chosen token's log-probability.
        prompt_logprobs: the same for every prompt position but the first. Such a request
            does not read the prefix cache, since every position has to be computed.
    """

    seed: int
    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    @property
    def only_drawn(self) -> bool:
        """Whether tokens are drawn, and nothing is done to logits before or told of them after."""
        changed = self.logit_bias or self.min_tokens or self.needs_history
        return self.logprobs is None and not changed

    @property
    def needs_history(self) -> bool:
        """Whether the next token's distribution depends on which tokens came before."""
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )

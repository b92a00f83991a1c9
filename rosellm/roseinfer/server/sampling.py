"""From a request's sampling fields to the ``SamplingParams`` that the engine gets."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.request import MAX_SEED, SamplingParams
from rosellm.roseinfer.server.defaults import Defaults
from rosellm.roseinfer.server.schemas.sampling import SamplingFields

TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)


@dataclass(frozen=True)
class Sampling:
    """Resolves requests against the defaults and the model's limits."""

    defaults: Defaults
    vocab_size: int
    max_model_len: int

    def params(
        self,
        asked: SamplingFields,
        max_tokens: int,
        do_sample: bool | None = None,
        *,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        """What the engine is told.

        Args:
            logprobs, prompt_logprobs: see ``SamplingParams``.

        Raises:
            RequestError: a value that does not fit this model, or the others.
        """
        defaults = self.defaults
        top_k, top_p = self._truncation(asked)
        return SamplingParams(
            seed=_seed(asked.seed),
            max_tokens=max_tokens,
            temperature=defaults.temperature(asked.temperature, do_sample),
            top_k=top_k,
            top_p=top_p,
            min_p=defaults.min_p(asked.min_p),
            presence_penalty=asked.presence_penalty or 0.0,
            frequency_penalty=asked.frequency_penalty or 0.0,
            repetition_penalty=defaults.repetition_penalty(asked.repetition_penalty),
            logit_bias=self._bias(asked.logit_bias or {}),
            min_tokens=_min_tokens(asked.min_tokens, max_tokens),
            stop_token_ids=self._stop_tokens(asked),
            logprobs=self._likeliest(logprobs),
            prompt_logprobs=self._likeliest(prompt_logprobs),
        )

    def max_tokens(
        self, asked: int | None, prompt_tokens: int, *, default: int | None, param: str
    ) -> int:
        """How many tokens the answer may have; ``default`` None is to the end of the context.

        Raises:
            RequestError: ``context_length_exceeded``.
        """
        room = self.max_model_len - prompt_tokens
        if asked is None:
            return room if default is None else min(default, room)
        if asked > room:
            raise RequestError(
                f"the context holds {self.max_model_len} tokens, prompt and answer together; the"
                f" prompt has {prompt_tokens} and {param} asks for {asked} more",
                param=param,
                code="context_length_exceeded",
            )
        return asked

    def _truncation(self, asked: SamplingFields) -> tuple[int, float]:
        top_k, top_p = self.defaults.top_k(asked.top_k), self.defaults.top_p(asked.top_p)
        if top_p == 0:  # the smallest set of tokens that is not empty
            return 1, 1.0
        return top_k if 0 < top_k < self.vocab_size else 0, top_p

    def _bias(self, asked: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
        for key in asked:
            if not TOKEN_ID.fullmatch(key) or int(key) >= self.vocab_size:
                raise self._not_a_token(key[:20], "logit_bias")
        return tuple((int(key), bias) for key, bias in asked.items())

    def _stop_tokens(self, asked: SamplingFields) -> tuple[int, ...]:
        for token in asked.stop_token_ids or ():
            if not 0 <= token < self.vocab_size:
                raise self._not_a_token(str(token), "stop_token_ids")
        eos = (token for token in self.defaults.eos(asked.ignore_eos) if token < self.vocab_size)
        return _merged(asked.stop_token_ids or (), eos)

    def _likeliest(self, asked: int | None) -> int | None:
        return None if asked is None else min(asked, self.vocab_size)

    def _not_a_token(self, shown: str, param: str) -> RequestError:
        return RequestError(
            f"{param}: {shown!r} is not a token id; they go from 0 to {self.vocab_size - 1}",
            param=param,
            code="invalid_value",
        )


def _seed(asked: int | None) -> int:
    """Any int64 a client sends, folded into the engine's 63 bits; one of our own otherwise."""
    return secrets.randbits(63) if asked is None else asked & MAX_SEED


def _min_tokens(asked: int | None, max_tokens: int) -> int:
    if asked is not None and asked > max_tokens:
        raise RequestError(
            f"min_tokens ({asked}) is more than the answer may have ({max_tokens})",
            param="min_tokens",
            code="invalid_value",
        )
    return asked or 0


def _merged(*groups: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(token for group in groups for token in group))

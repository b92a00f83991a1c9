"""What a caller may pass: one thing or a list of them, with parameters for all or for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.llm.params import SamplingParams

Prompt = str | list[int]
"""A text, or its token ids."""

Prompts = list[str] | list[list[int]] | list[Prompt]

Conversation = list[dict[str, Any]]
"""OpenAI's message objects."""

Params = SamplingParams | Sequence[SamplingParams] | None

Item = TypeVar("Item")


def one_or_many(given: Any) -> tuple[list[Any], bool]:
    """A list of prompts or conversations, and whether one alone was given.

    >>> one_or_many("a"), one_or_many([5, 6]), one_or_many(["a", [5, 6]])
    ((['a'], True), ([[5, 6]], True), (['a', [5, 6]], False))

    Raises:
        RequestError: it is neither.
    """
    if isinstance(given, str):
        return [given], True
    if not isinstance(given, Sequence):
        raise RequestError(f"a text, token ids, messages or a list of these, not {given!r:.60}")
    single = len(given) > 0 and isinstance(given[0], int | Mapping)
    return ([given], True) if single else (list(given), False)


def is_conversation(given: Any) -> bool:
    """Whether it is one conversation, and not one prompt."""
    return not isinstance(given, str) and len(given) > 0 and isinstance(given[0], Mapping)


def paired(items: Sequence[Item], params: Params) -> list[tuple[Item, SamplingParams]]:
    """Each item with its parameters.

    Raises:
        RequestError: they are none, or their numbers differ.
    """
    if params is None:
        params = SamplingParams()
    every = [params] * len(items) if isinstance(params, SamplingParams) else list(params)
    for each in every:
        if not isinstance(each, SamplingParams):
            raise RequestError(
                f"params must be SamplingParams, or a list of them, not {params!r:.60}",
                param="params",
            )
    if len(every) != len(items):
        raise RequestError(
            f"there are {len(every)} params for {len(items)} prompts: pass one for all, or one"
            " for each",
            param="params",
        )
    return list(zip(items, every, strict=True))


def with_continuations(
    texts: Prompt | Prompts, continuations: Prompt | Prompts
) -> tuple[list[tuple[Prompt, Prompt]], bool]:
    """Each text with its continuation, or one text with each continuation.

    Raises:
        RequestError: their numbers differ.
    """
    before, one_text = one_or_many(texts)
    after, one_continuation = one_or_many(continuations)
    if one_text:
        before *= len(after)
    if len(before) != len(after):
        raise RequestError(
            f"there are {len(after)} continuations of {len(before)} texts", param="continuation"
        )
    return list(zip(before, after, strict=True)), one_text and one_continuation

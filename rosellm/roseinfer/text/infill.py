"""Prompts with a hole: what models that were trained to fill one expect.

Every form is the same with other tokens: the text before the hole, the text behind it, then the
answer ("prefix, suffix, middle" in arXiv:2207.14255). A tokenizer has the tokens of a form or not;
whether the model has learned their use, nobody can see from here.
"""

from __future__ import annotations

from collections.abc import Sequence

from rosellm.roseinfer.text.tokenizer import Tokenizer

FORMS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, cl100k
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)

Marks = tuple[int, int, int]


def marks_of(tokenizer: Tokenizer) -> Marks | None:
    """The three tokens that stand before the parts and the answer; None where there are none."""
    for form in FORMS:
        before, behind, answer = map(tokenizer.token_to_id, form)
        if before is not None and behind is not None and answer is not None:
            return before, behind, answer
    return None


def with_hole(tokenizer: Tokenizer, marks: Marks, prefix: Sequence[int], suffix: str) -> list[int]:
    """The prompt of what goes between a prefix and a suffix.

    Args:
        prefix: token ids, without those that the tokenizer adds to a text.

    Raises:
        RequestError: the suffix is not Unicode text.
    """
    before, behind, answer = marks
    begins = tokenizer.encode("a")[:1] == [tokenizer.bos_id]
    start = [tokenizer.bos_id] if begins and tokenizer.bos_id is not None else []
    tail = tokenizer.encode(suffix, add_special_tokens=False)
    return [*start, before, *prefix, behind, *tail, answer]

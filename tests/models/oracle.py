"""The models as transformers runs them, and what must equal them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rosellm.roseinfer.engine.core import EngineCore
from tests.tiny_models import all_logits, build, generate, greedy, random_prompts, read_spec

LENGTHS = (1, 37, 5, 60, 16)
NEW = 8
BLOCK = 16


class Oracle:
    """The model as transformers runs it: fp32, eager, the whole sequence anew each time."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
        ).eval()

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        logits: Tensor = self._model(torch.tensor([list(tokens)])).logits[0]
        return logits

    def greedy_after(self, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        """The likeliest token at each position of an answer, given what is before it.

        An answer that equals them is the greedy one.
        """
        logits = self.logits([*prompt, *answer])
        likeliest: list[int] = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
        return likeliest


def assert_equals_transformers(
    folder: Path,
    *,
    max_model_len: int | None = None,
    lengths: Sequence[int] = LENGTHS,
    long: int = 150,
    first: int = 0,
) -> None:
    """Logits and greedy answers: whole, in chunks, over a prefix hit, preempted.

    Args:
        lengths: of the prompts.
        long: length of the text whose every logit is compared.
        first: length of a text that transformers sees before all others.
    """
    oracle, vocab_size = Oracle(folder), read_spec(folder).vocab_size
    if first:
        oracle.logits(random_prompts([first], vocab_size, seed=2)[0])
    whole = build(folder, max_model_len=max_model_len)
    text = random_prompts([long], vocab_size, seed=1)[0]
    wanted = oracle.logits(text)
    for chunk in (None, 64, 7):
        torch.testing.assert_close(all_logits(whole, text, chunk), wanted, rtol=1e-4, atol=1e-4)

    prompts = random_prompts(lengths, vocab_size)
    answers = _answers(whole, prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer == oracle.greedy_after(prompt, answer)
    assert _answers(whole, prompts, cached=True) == answers
    in_chunks = build(folder, max_model_len=max_model_len, max_num_batched_tokens=7)
    assert _answers(in_chunks, prompts) == answers
    assert_preempting_changes_nothing(folder, max_model_len)


def assert_preempting_changes_nothing(folder: Path, max_model_len: int | None) -> None:
    """Short prompts whose answers outgrow a small pool together."""
    length, new, block_size = 12, 14, 2
    # Frequencies of a scaled rope may depend on the longest sequence: it must fit.
    longest = max_model_len or length + new
    blocks = max(45, -(-longest // block_size))
    prompts = random_prompts([length] * (blocks // 7), read_spec(folder).vocab_size, seed=3)
    small = build(folder, num_blocks=blocks, block_size=block_size, max_model_len=longest)
    results = generate(small, prompts, greedy(new))
    assert results == generate(build(folder, max_model_len=longest), prompts, greedy(new))
    window = min(group.window or longest for group in read_spec(folder).kv_groups)
    assert small.scheduler.stats().preemptions > 0 or window < block_size


def _answers(core: EngineCore, prompts: list[list[int]], cached: bool = False) -> list[list[int]]:
    results = generate(core, prompts, greedy(NEW))
    if cached:
        hits = [result.cached[0] for result in results]
        assert hits == [(len(prompt) - 1) // BLOCK * BLOCK for prompt in prompts]
    return [result.tokens[0] for result in results]

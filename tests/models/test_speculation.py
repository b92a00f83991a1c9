"""Speculative = plain, in bits, whoever shares the batch; and fewer steps where drafts are right.

The requests are those of the other promises (``test_invariance.py``): greedy and seeded, with
filters, penalties, biases and stop tokens, some of which end an answer in the middle of a draft.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rosellm.roseinfer.engine.core import EngineCore
from tests.models.architectures import BASES, write_model
from tests.models.test_invariance import GPT2_ODD, LLAMA_ODD, Subject
from tests.tiny_models import Generated, generate, greedy, write_gpt2, write_llama

NEW = 14
COUNT = 10
slow = pytest.mark.slow


@pytest.fixture(
    scope="module",
    params=[
        ("llama-odd", "float32", "auto"),
        pytest.param(("llama-odd", "float32", "reference"), marks=slow),
        ("gpt2-odd", "bfloat16", "auto"),
        ("gemma3", "float32", "auto"),  # with windows
        pytest.param(("gpt2-odd", "bfloat16", "reference"), marks=slow),
        pytest.param(("gemma3", "bfloat16", "reference"), marks=slow),
        pytest.param(("mistral", "bfloat16", "auto"), marks=slow),
    ],
    ids="-".join,
)
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Speculating:
    kind, dtype, kernels = request.param
    folder = tmp_path_factory.mktemp(kind)
    if kind in BASES:
        write_model(folder, BASES[kind])
    else:
        write = write_llama if kind.startswith("llama") else write_gpt2
        write(folder, std=0.2, **(LLAMA_ODD if kind.startswith("llama") else GPT2_ODD))
    return Speculating(folder, dtype, kernels)


class Speculating:
    """A model, what it answers without drafts, and predictions of that."""

    def __init__(self, folder: Path, dtype: str, kernels: str) -> None:
        self._subject = Subject(folder, dtype)
        self._kernels = kernels
        cycle = self._subject.prompts(COUNT)
        # Each repeats a few of its tokens, so that there is something to look up.
        self.prompts = [prompt[:50] + prompt[:8] + prompt[:5] for prompt in cycle]
        self.params = self._subject.params(COUNT, max_tokens=NEW)
        plain = self.build(num_speculative_tokens=0)
        self.wanted = [
            generate(plain, [prompt], own, n=2)[0]
            for prompt, own in zip(self.prompts, self.params, strict=True)
        ]
        assert plain.scheduler.stats().drafted == 0

    def build(self, **settings: Any) -> EngineCore:
        return self._subject.build(kernels=self._kernels, **settings)

    def run(self, core: EngineCore, **how: Any) -> list[Generated]:
        return generate(core, self.prompts, self.params, n=2, **how)

    @property
    def predictions(self) -> list[list[int]]:
        """What the first choices come to, some of it changed, put in or left out."""
        rng = random.Random(1)
        return [edited(answer.tokens[0], i % 3, rng) for i, answer in enumerate(self.wanted)]


def edited(tokens: Sequence[int], edits: int, rng: random.Random) -> list[int]:
    result = list(tokens)
    for _ in range(edits):
        at = rng.randrange(len(result) + 1)
        result[at : at + rng.randrange(3)] = [rng.randrange(97) for _ in range(rng.randrange(3))]
    return result


def test_predicted_equals_plain(subject: Speculating) -> None:
    core = subject.build()
    assert subject.run(core, predictions=subject.predictions) == subject.wanted
    stats = core.scheduler.stats()
    assert stats.drafted > stats.accepted > 30
    again = subject.run(core, predictions=subject.predictions)  # from the prefix cache
    assert again == subject.wanted
    assert sum(result.cached[0] for result in again) > 100


def test_looked_up_equals_plain(subject: Speculating) -> None:
    core = subject.build(speculate="ngram", num_speculative_tokens=5)
    assert subject.run(core) == subject.wanted
    stats = core.scheduler.stats()
    assert stats.drafted > stats.accepted > 0


def test_with_everything_else_at_once(subject: Speculating) -> None:
    """Both kinds of drafts, chunked prompts, a pool that is too small, and arrivals in between."""
    core = subject.build(
        block_size=4,
        num_blocks=40,
        max_model_len=96,
        max_num_batched_tokens=24,
        max_num_seqs=7,
        speculate="ngram",
    )
    for turn in range(2):
        arrivals = [(11 * i + turn) % 31 for i in range(COUNT)]
        results = subject.run(core, predictions=subject.predictions, arrivals=arrivals)
        assert results == subject.wanted
    stats = core.scheduler.stats()
    assert stats.accepted > 20
    assert stats.blocks_used == 0


def test_the_right_prediction_takes_few_steps(subject: Speculating) -> None:
    """The longest draft is of 16 tokens: 40 tokens are 4 + 1, 8 + 1, 16 + 1 and the rest."""
    prompt, params = subject.prompts[0], greedy(40)
    plain, predicted = subject.build(prefix_cache=False), subject.build(prefix_cache=False)
    [wanted] = generate(plain, [prompt], params)
    assert generate(predicted, [prompt], params, predictions=wanted.tokens) == [wanted]
    assert plain.scheduler.stats().steps == 40
    assert predicted.scheduler.stats().steps == 4
    stats = predicted.scheduler.stats()
    assert (stats.drafts, stats.drafted, stats.accepted) == (4, 36, 36)

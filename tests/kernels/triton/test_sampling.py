"""Sampling and log-probabilities in Triton, by its interpreter, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.kernels import logprobs as reference_logprobs
from rosellm.roseinfer.kernels import noise
from rosellm.roseinfer.kernels import sampling as reference
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.step import LogitRow

from tests.kernels.triton import interpreted  # isort: skip
import triton  # isort: skip
import triton.language as tl  # isort: skip
from rosellm.roseinfer.kernels.triton import logprobs, sampling  # isort: skip

assert interpreted.triton.knobs.runtime.interpret
# numpy tells of infinities that the kernels mean
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

VOCABULARY = 4999  # two pieces, the second one not full
WANTED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 3},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.1},
    {"temperature": 1.1, "top_k": 40, "top_p": 0.6},
    {"temperature": 2.0, "top_k": 7, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1e-30, "top_p": 0.5},
    {"temperature": 1.0, "top_p": 0.0},
]


def rows(wanted: list[dict[str, Any]], position: int = 0) -> list[LogitRow]:
    return [
        LogitRow(0, SamplingParams(seed=(i * 7919) << 31, max_tokens=9, **each), i % 3, position)
        for i, each in enumerate(wanted)
    ]


def logits(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, VOCABULARY, generator=generator) * 3


def bits(allowed: Tensor) -> Tensor:
    """int32 words of bool [R, vocabulary]."""
    padded = torch.nn.functional.pad(allowed, (0, -allowed.shape[1] % 32))
    packed = np.packbits(padded.numpy(), axis=1, bitorder="little")
    return torch.from_numpy(packed.view(np.int32))


def test_tokens_are_the_references() -> None:
    scores = logits(len(WANTED))
    for position in range(2):
        wanted = rows(WANTED, position)
        assert torch.equal(
            sampling.draw(scores, wanted, None), reference.draw(scores, wanted, None)
        )


def test_equal_logits_are_kept_together_and_the_lowest_id_comes_first() -> None:
    scores = (logits(len(WANTED), seed=1) / 2).round()  # as bf16 has many
    wanted = rows(WANTED)
    assert torch.equal(sampling.draw(scores, wanted, None), reference.draw(scores, wanted, None))


def test_only_allowed_tokens() -> None:
    scores = logits(len(WANTED), seed=2)
    allowed = torch.rand(scores.shape, generator=torch.Generator().manual_seed(3)) < 0.01
    allowed[1] = False
    allowed[1, 4100] = True
    wanted, words = rows(WANTED), bits(allowed)
    found = sampling.draw(scores, wanted, words)
    assert torch.equal(found, reference.draw(scores, wanted, words))
    assert found[1] == 4100


def test_a_rows_token_is_its_own() -> None:
    scores, wanted = logits(len(WANTED), seed=4), rows(WANTED)
    together = sampling.draw(scores, wanted, None)
    for i in (0, 2, 6):
        assert sampling.draw(scores[i : i + 1], wanted[i : i + 1], None) == together[i]


def test_rows_that_are_no_numbers_give_some_token() -> None:
    scores = logits(2)
    scores[0] = torch.nan
    scores[1] = -torch.inf
    found = sampling.draw(scores, rows([{"temperature": 1.0, "top_p": 0.9}] * 2), None)
    assert ((found >= 0) & (found < VOCABULARY)).all()


@triton.jit
def _noise_kernel(out, seed, choice, position, COUNT: tl.constexpr):
    token = tl.arange(0, COUNT)
    drawn = sampling._noise(token, tl.load(seed), tl.load(choice), tl.load(position))
    tl.store(out + token, drawn)


def test_noise_is_the_cpus() -> None:
    parts = [torch.tensor([value]) for value in (-(2**62) + 12345, 3, 70000)]
    found = torch.empty(64)
    _noise_kernel[(1,)](found, *parts, COUNT=64)
    torch.testing.assert_close(found, noise.gumbel(*parts, 64)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [0, 1, 20])
def test_logprobs(width: int) -> None:
    raw = logits(3, seed=5)
    raw[1] = (raw[1] / 2).round()
    raw[2, :5] = torch.tensor([0.0, -0.0, 90.0, -0.0, 90.0])
    tokens = torch.tensor([4998, 0, 17])
    found = logprobs.logprobs_of(raw, tokens, width)
    wanted = reference_logprobs.logprobs_of(raw, tokens, width)
    assert torch.equal(found[1], wanted[1])
    for ours, theirs in zip(found[::2], wanted[::2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    alone = logprobs.logprobs_of(raw[1:2], tokens[1:2], width)
    assert all(torch.equal(a[0], b[1]) for a, b in zip(alone, found, strict=True))

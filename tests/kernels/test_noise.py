"""Noise is Philox, uniform, and a function of its key alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.kernels import noise

# Known answers of philox4x32-10, from Random123's distribution (examples/kat_vectors).
ONES = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def key_of(low: int, high: int) -> Tensor:
    unsigned = high << 32 | low
    return torch.tensor([unsigned - (1 << 64) if unsigned >> 63 else unsigned])


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    words = noise.philox(tuple(torch.tensor([word]) for word in counter), key_of(*key))
    assert tuple(word.item() for word in words) == answer


def keys(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    seeds = torch.randint(2**62, (count,), generator=generator)
    return seeds, torch.arange(count) % 3, torch.arange(count) * 7


@pytest.mark.parametrize("vocab_size", [1, 3, 4, 97, 1000])
def test_a_row_does_not_depend_on_the_batch(vocab_size: int) -> None:
    seeds, choices, positions = keys(23)
    together = noise.gumbel(seeds, choices, positions, vocab_size)
    assert together.shape == (23, vocab_size)
    assert together.dtype == torch.float32
    for row in range(23):
        own = slice(row, row + 1)
        alone = noise.gumbel(seeds[own], choices[own], positions[own], vocab_size)
        assert torch.equal(alone[0], together[row])


def test_a_larger_vocabulary_starts_with_the_same_noise() -> None:
    small, large = (noise.gumbel(*keys(5), size) for size in (97, 512))
    assert torch.equal(large[:, :97], small)


def test_every_part_of_the_key_counts() -> None:
    base = [7, 1, 5]
    rows = [base, [8, 1, 5], [7, 2, 5], [7, 1, 6], [7 + (1 << 40), 1, 5], [1, 7, 5]]
    parts = torch.tensor(rows).T
    drawn = noise.gumbel(parts[0], parts[1], parts[2], 64)
    for first in range(len(rows)):
        for second in range(first):
            assert (drawn[first] == drawn[second]).sum() == 0


def chi_square(uniform: Tensor, bins: int) -> float:
    counts = torch.bincount((uniform * bins).long().clamp(0, bins - 1), minlength=bins).double()
    expected = uniform.numel() / bins
    return ((counts - expected) ** 2 / expected).sum().item()


def test_uniform_within_a_row_and_along_positions() -> None:
    count = 200_000
    one = torch.tensor([11])
    along_tokens = noise.gumbel(one, one, one, count)[0]
    steps = torch.arange(count)
    along_positions = noise.gumbel(one.expand(count), one.expand(count), steps, 1)[:, 0]
    for drawn in (along_tokens, along_positions):
        uniform = torch.exp(-torch.exp(-drawn.double()))
        # 99 degrees of freedom: above 149 once in a thousand.
        assert chi_square(uniform, 100) < 149
        neighbours = torch.corrcoef(torch.stack([uniform[:-1], uniform[1:]]))[0, 1]
        assert neighbours.abs() < 5 / count**0.5
        # Mean and variance of the standard Gumbel distribution.
        assert drawn.double().mean().item() == pytest.approx(0.5772, abs=0.01)
        assert drawn.double().var().item() == pytest.approx(1.6449, abs=0.03)


@pytest.mark.parametrize("word", [0, 1, ONES - 1, ONES, 0x7FFFFFFF, 0x80000000])
def test_no_word_makes_an_infinity(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An infinite noise would choose its token whatever its probability, even zero."""

    def constant(counter: tuple[Tensor, ...], key: Tensor) -> list[Tensor]:
        return [torch.full_like(counter[0], word)] * 4

    monkeypatch.setattr(noise, "philox", constant)
    drawn = noise.gumbel(*keys(2), 5)
    assert drawn.isfinite().all()
    assert drawn.abs().max() < 20

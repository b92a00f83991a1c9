"""Native sampling against its specification, at every level.

Where fp32 and fp64 could take different sides of a threshold, or noise brings two tokens as close
as roundings, either outcome is right.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.kernels import sampling
from rosellm.roseinfer.kernels.cpu.matrix import Matrix, Shape
from rosellm.roseinfer.kernels.cpu.sampling import NativeSampling
from rosellm.roseinfer.kernels.noise import gumbel
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.step import LogitRow
from tests.sampling import FILTERS, VOCAB, make_logits, make_row, tops_of

SIZES = [1, 7, 64, 97, 4099]
CLOSE = 1e-5
NEAR = {"rtol": 3e-7, "atol": 3e-7}


@pytest.fixture
def native(library):
    return NativeSampling(library)


# -- what may come out ------------------------------------------------------------


def bound(odds: np.ndarray, params: SamplingParams, slack: float) -> float:
    """The least odds that are kept, if every comparison is off by `slack` in favour of a token."""
    ordered = -np.sort(-odds)
    kept = ordered >= float(np.float32(params.min_p)) * (1 - slack)
    count = max(int(kept.sum()), 1)
    if params.top_k:
        count = min(count, params.top_k)
    mass = np.cumsum(ordered[:count])
    if params.top_p < 1:
        before = np.append(0.0, mass[:-1])
        count = int((before < float(np.float32(params.top_p)) * mass[-1] * (1 + slack)).sum())
    least: float = ordered[max(count, 1) - 1]
    return least


def check(logits: np.ndarray, row: LogitRow, token: int) -> None:
    """A token is kept by any reading of the filters, and none that surely is scores higher."""
    params = row.params
    wide = logits.astype(np.float64)
    if params.temperature == 0:
        assert token == int(logits.argmax())
        return
    x = (wide - wide.max()) / max(params.temperature, 1.2e-38)
    odds = np.exp(x)
    key = (torch.tensor([part]) for part in (params.seed, row.choice, row.position))
    scores = x + gumbel(*key, len(x))[0].double().numpy()
    assert odds[token] >= bound(odds, params, CLOSE) * (1 - CLOSE)
    sure = odds >= bound(odds, params, -CLOSE) * (1 + CLOSE)
    best = scores[sure].max(initial=-np.inf)
    assert scores[token] >= best - CLOSE * max(1.0, abs(best))


def wild_params(rng: random.Random, vocab_size: int) -> dict[str, Any]:
    """Extremes of everything, and what lies between."""
    params: dict[str, Any] = {
        "seed": rng.choice([0, 1, 2**63 - 1, rng.getrandbits(63)]),
        "temperature": rng.choice([0.0, 1e-6, 0.3, 1.0, 1.0, 10.0, 10 ** rng.uniform(-6, 1)]),
    }
    filters = {
        "top_k": rng.choice([1, 2, vocab_size, vocab_size + 5, rng.randint(1, vocab_size), 50]),
        "top_p": rng.choice([0.0, 1e-9, 0.5, 0.9, 0.999999, rng.random()]),
        "min_p": rng.choice([1.0, 1e-9, 0.05, rng.random()]),
    }
    return params | {name: value for name, value in filters.items() if rng.random() < 0.4}


def wild_rows(count: int, vocab_size: int, seed: int) -> list[LogitRow]:
    rng = random.Random(seed)
    return [
        make_row(position=i * 7, choice=i % 3, **wild_params(rng, vocab_size)) for i in range(count)
    ]


def wild_logits(count: int, vocab_size: int, seed: int = 0) -> Tensor:
    """Peaked rows and flat ones, with ties and without, some with tokens that cannot be."""
    logits = make_logits(count, vocab_size, seed)
    logits *= torch.tensor([0.01, 0.3, 1.0, 3.0, 30.0]).repeat(count)[:count, None]
    logits[1::3] = logits[1::3].bfloat16().float()
    logits[2::7, 1::2] = -torch.inf
    return logits + torch.tensor([0.0, 500.0, -60.0]).repeat(count)[:count, None]


@pytest.mark.parametrize("vocab_size", SIZES)
def test_any_mix_of_parameters(native, level, vocab_size):
    count = 60 if vocab_size > 1000 else 300
    logits, rows = wild_logits(count, vocab_size), wild_rows(count, vocab_size, seed=vocab_size)
    found = native.draw(logits, rows, None).tolist()
    for own, row, token in zip(logits.numpy(), rows, found, strict=True):
        check(own, row, token)


def test_the_tokens_are_the_references(native, level):
    """All but those that a threshold or a tie to the last bit decides."""
    logits, rows = make_logits(400, 997), wild_rows(400, 997, seed=1)
    same = native.draw(logits, rows, None) == sampling.draw(logits, rows, None)
    assert same.sum() >= 398


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
def test_a_large_vocabulary(native, level, scale):
    logits = make_logits(3, 151_936, scale=scale)
    for params in ({}, {"top_k": 50, "top_p": 0.9}, {"top_p": 0.95}, {"top_k": 9000}):
        rows = [make_row(seed=i, **params) for i in range(3)]
        found = native.draw(logits, rows, None).tolist()
        for own, row, token in zip(logits.numpy(), rows, found, strict=True):
            check(own, row, token)


# -- filters ----------------------------------------------------------------------


def drawn(native: NativeSampling, logits: Tensor, params: dict[str, Any], draws: int) -> list[int]:
    """Every token that is drawn at all."""
    rows = [make_row(**{**params, "seed": i}) for i in range(draws)]
    return sorted(set(native.draw(logits.expand(draws, -1), rows, None).tolist()))


@pytest.mark.parametrize("params", FILTERS, ids=str)
def test_filters_keep_exactly_what_they_should(native, level, params):
    """Of a distribution so flat that every token that is kept is drawn now and then."""
    logits = make_logits(1, VOCAB, scale=0.5)[0]
    params = {**params, "temperature": params.get("temperature", 1.0) / 2}
    x = (logits.double().numpy() - logits.max().item()) / params["temperature"]
    wanted = np.flatnonzero(np.exp(x) >= bound(np.exp(x), make_row(**params).params, 0.0))
    assert drawn(native, logits, params, 4000) == wanted.tolist()


@pytest.mark.parametrize("params", [{"top_k": 2}, {"top_p": 0.6}, {"top_k": 3, "top_p": 0.8}])
def test_ties_are_kept_together(native, level, params):
    logits = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0, 0.0])
    assert drawn(native, logits, params, 200) == [0, 1, 2, 3]


@pytest.mark.parametrize("params", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}])
def test_the_strictest_filters_leave_the_likeliest(native, level, params):
    logits = make_logits(1, 997, scale=0.1)[0]
    logits[[500, 700]] = 5.0
    assert drawn(native, logits, params, 100) == [500, 700]


@pytest.mark.parametrize("params", [{"top_k": 30}, {"top_p": 0.5}, {"min_p": 0.9}, {}])
def test_equal_tokens_are_all_kept(native, level, params):
    assert drawn(native, torch.full((40,), -7.5), params, 1000) == list(range(40))


@dataclass(frozen=True)
class Words:
    """A bit for each token, set with some likelihood."""

    bits: np.ndarray

    @classmethod
    def random(cls, rows: int, vocab_size: int, share: float) -> Words:
        return cls(np.random.default_rng(0).random((rows, vocab_size)) < share)

    def packed(self) -> Tensor:
        rows, size = self.bits.shape
        padded = np.zeros((rows, -(-size // 32) * 32), dtype=np.uint8)
        padded[:, :size] = self.bits
        return torch.from_numpy(np.packbits(padded, axis=1, bitorder="little").view(np.int32))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("vocab_size", [1, 33, 97, 4099])
def test_only_allowed_tokens(native, level, vocab_size, share):
    count = 40
    logits, rows = make_logits(count, vocab_size), wild_rows(count, vocab_size, seed=5)
    words = Words.random(count, vocab_size, share)
    found = native.draw(logits, rows, words.packed())
    possible = torch.from_numpy(words.bits)
    forbidden = logits.masked_fill(~possible, -torch.inf)
    assert torch.equal(found, native.draw(forbidden, rows, None))
    assert torch.equal(
        sampling.draw(logits, rows, words.packed()), sampling.draw(forbidden, rows, None)
    )
    allowed = possible.gather(1, found[:, None])[:, 0]
    assert (allowed | ~possible.any(dim=1)).all()


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_the_tokens_are_the_references_with_a_mask_too(native, level, share):
    logits, rows = make_logits(400, 997), wild_rows(400, 997, seed=6)
    allowed = Words.random(400, 997, share).packed()
    same = native.draw(logits, rows, allowed) == sampling.draw(logits, rows, allowed)
    assert same.sum() >= 398


# -- what should not be -----------------------------------------------------------


def broken_logits() -> Tensor:
    logits = make_logits(9, 1000)
    logits[0] = torch.nan
    logits[1, [200, 900]] = torch.nan
    logits[2, [300, 301]] = torch.inf
    logits[3] = torch.inf
    logits[4] = -torch.inf
    logits[5, 3:] = -torch.inf
    logits[6, 700], logits[6, 100] = torch.inf, -torch.inf
    logits[7, 10], logits[7, 800] = torch.inf, torch.nan
    logits[8, 5], logits[8, 6] = 3e38, -3e38
    return logits


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, *FILTERS], ids=str)
def test_a_broken_row_gives_what_the_reference_gives(native, level, params):
    logits, rows = broken_logits(), [make_row(**params)] * 9
    found = native.draw(logits, rows, None)
    assert torch.equal(found, sampling.draw(logits, rows, None))


@pytest.mark.parametrize("vocab_size", [1, 31, 64, 97, 4099, 33_001])
def test_tops_change_nothing(native, level, threads, vocab_size):
    logits, rows = wild_logits(25, vocab_size), wild_rows(25, vocab_size, seed=6)
    tops = tops_of(logits)
    assert torch.equal(native.draw(logits, rows, None, None, tops), native.draw(logits, rows, None))
    allowed = Words.random(25, vocab_size, 0.5).packed()
    found = native.draw(logits, rows, allowed, None, tops)
    assert torch.equal(found, native.draw(logits, rows, allowed))


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, *FILTERS], ids=str)
def test_tops_of_a_broken_row_change_nothing(native, level, params):
    logits, rows = broken_logits(), [make_row(**params)] * 9
    tops = tops_of(logits)
    assert torch.equal(native.draw(logits, rows, None, None, tops), native.draw(logits, rows, None))


def test_what_tops_say_is_not_read_again(native, level):
    """Or else they would gain nothing."""
    logits = make_logits(3, 4099)
    tops = tops_of(logits)
    token = int(logits[1].argmax())
    logits[1, (token + 2000) % 4099] = torch.nan
    assert native.draw(logits, [make_row(temperature=0.0)] * 3, None, None, tops)[1] == token


def head(library, logits):
    """One that gives these logits times its only input."""
    return Matrix.of(library, Shape("fp32", len(logits), 1), logits[:, None])


@pytest.mark.parametrize("row", range(9))
def test_whether_a_row_is_numbers(library, level, row):
    logits = broken_logits()[row]
    found = head(library, logits).logits(torch.ones(1, 1))
    assert torch.equal(found.values[0].nan_to_num(), logits.nan_to_num())
    assert torch.equal(found.finite, sampling.sound(logits[None]))


@pytest.mark.parametrize("rows", [1, 9, 40])
def test_which_rows_are_numbers(library, level, rows):
    x = torch.ones(rows, 1)
    x[2::5] = torch.nan
    found = head(library, make_logits(1, 4099)[0]).logits(x)
    assert torch.equal(found.finite, ~x[:, 0].isnan())


@pytest.mark.parametrize("place", [0, 1, 4097, 151_935])
def test_a_row_with_one_number_missing_is_found(library, level, place):
    logits = make_logits(1, 151_936)[0]
    logits[place] = torch.nan
    assert head(library, logits).logits(torch.ones(2, 1)).finite.tolist() == [False, False]


def test_logprobs_of_a_broken_row(native, level):
    logits = broken_logits()
    chosen, ids, values = native.logprobs_of(logits, torch.zeros(9, dtype=torch.int64), 4)
    for row in (0, 1, 2, 3, 4, 6, 7):
        assert chosen[row].isnan()
        assert values[row].isnan().all()
    assert ((ids >= 0) & (ids < 1000)).all()
    assert ids[2, :2].tolist() == [300, 301]
    assert (values[5, 3].item(), ids[5, 3].item()) == (-torch.inf, 3)


# -- log-probabilities ------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", SIZES)
@pytest.mark.parametrize("width", [0, 1, 5, 20, 5000])
def test_logprobs(native, level, vocab_size, width):
    logits = make_logits(25, vocab_size).bfloat16().float()
    logits[0] = 0.0
    logits[1, ::2] = -0.0
    tokens = torch.arange(25) * 31 % vocab_size
    chosen, ids, values = native.logprobs_of(logits, tokens, width)
    wanted = logits.double().log_softmax(-1)
    order = (-logits).sort(dim=-1, stable=True).indices[:, :width]
    assert torch.equal(ids, order)
    torch.testing.assert_close(chosen.double(), wanted.gather(1, tokens[:, None])[:, 0], **NEAR)
    torch.testing.assert_close(values.double(), wanted.gather(1, order), **NEAR)


@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_logprobs_of_a_large_vocabulary(native, level, threads, scale):
    logits = make_logits(2, 151_936, scale=scale)
    tokens = torch.tensor([7, 151_935])
    chosen, ids, values = native.logprobs_of(logits, tokens, 20)
    wanted = logits.double().log_softmax(-1)
    torch.testing.assert_close(chosen.double(), wanted.gather(1, tokens[:, None])[:, 0], **NEAR)
    assert torch.equal(ids, wanted.topk(20).indices)
    torch.testing.assert_close(values.double(), wanted.topk(20).values, **NEAR)


# -- bits -------------------------------------------------------------------------


def moved(logits: Tensor, by: int) -> Tensor:
    """The same rows elsewhere in memory, further apart."""
    wide = torch.full((len(logits), logits.shape[1] + 19), 99.0)
    inner = wide[:, by : by + logits.shape[1]]
    return inner.copy_(logits)


@pytest.mark.parametrize("vocab_size", [97, 4099, 33_001])
def test_bits_are_the_rows_own(native, level, threads, vocab_size):
    count = 12 if vocab_size > 10_000 else 70
    logits, rows = wild_logits(count, vocab_size, seed=2), wild_rows(count, vocab_size, seed=3)
    tokens = native.draw(logits, rows, None)
    parts = native.logprobs_of(logits, tokens, 9)
    for height in (1, 2, 5):
        for begin in range(0, count, height):
            own = slice(begin, begin + height)
            alone = moved(logits[own], by=begin % 17)
            assert torch.equal(native.draw(alone, rows[own], None), tokens[own])
            for part, whole in zip(native.logprobs_of(alone, tokens[own], 9), parts, strict=True):
                assert torch.equal(part.view(torch.int32), whole[own].view(torch.int32))


def test_threads_change_nothing(library, native, level):
    logits, rows = wild_logits(7, 70_001), wild_rows(7, 70_001, seed=4)
    before, answers = library.threads, []
    for threads in (1, 2, 4, 7):
        library.set_threads(threads)
        tokens = native.draw(logits, rows, None)
        chosen, ids, values = native.logprobs_of(logits, tokens, 5)
        parts = (chosen.view(torch.int32), ids, values.view(torch.int32))
        answers.append([tokens.tolist(), *(part.tolist() for part in parts)])
    library.set_threads(before)
    assert all(answer == answers[0] for answer in answers)


def test_no_rows(native, level):
    assert native.draw(torch.empty(0, 50), [], None).tolist() == []
    found = native.logprobs_of(torch.empty(0, 50), torch.empty(0, dtype=torch.int64), 3)
    assert [part.shape for part in found] == [(0,), (0, 3), (0, 3)]

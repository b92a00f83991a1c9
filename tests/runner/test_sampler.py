"""The sampler against an oracle that does one row at a time, on plain torch and natively."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.config import Kernels
from rosellm.roseinfer.kernels.logits import Logits
from rosellm.roseinfer.kernels.table import choose_ops
from rosellm.roseinfer.kernels.upload import at_once
from rosellm.roseinfer.runner import sampler
from rosellm.roseinfer.runner.rows import Wishes
from rosellm.roseinfer.step import LogitRow, Sample
from tests.sampling import (
    VOCAB,
    chi_square,
    kept,
    make_logits,
    make_row,
    oracle,
    random_rows,
    tops_of,
)

Run = Callable[[Tensor, Sequence[LogitRow]], list[Sample]]


@pytest.fixture(params=["reference", "auto"])
def run(request: pytest.FixtureRequest) -> Run:
    """Return the sampler on one of the implementations."""
    wanted: Kernels = request.param
    ops = choose_ops(torch.device("cpu"), wanted)
    if wanted == "auto" and ops.name == "reference":
        pytest.skip(ops.reason)

    def run(logits: Tensor, rows: Sequence[LogitRow]) -> list[Sample]:
        scores = Logits(logits.clone(), tops_of(logits) if ops.name == "native" else None)
        wishes = Wishes.of(rows, logits.shape[1], ops, at_once(logits.device))
        return sampler.to_samples(rows, sampler.sample(scores, wishes, ops).tensors)

    return run


# -- tokens -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_any_mix_of_parameters(run: Run, seed: int) -> None:
    """One batch of 150 rows, each with parameters of its own, equals the oracle row by row."""
    rows, logits = random_rows(150, seed), make_logits(150, seed=seed)
    found = [sample.token for sample in run(logits, rows)]
    assert found == [oracle(own, row) for own, row in zip(logits.numpy(), rows, strict=True)]


def test_greedy_takes_the_first_of_equals(run: Run) -> None:
    logits = torch.zeros(2, VOCAB)
    logits[1, [5, 40, 96]] = 1.0
    assert [s.token for s in run(logits, [make_row(temperature=0.0)] * 2)] == [0, 5]


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 1e-39, 1e-45, 1e-60])
@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}], ids=str)
def test_the_smallest_temperatures_are_greedy(
    run: Run, temperature: float, params: dict[str, Any]
) -> None:
    logits = make_logits(8)
    rows = [make_row(temperature=temperature, seed=i, **params) for i in range(8)]
    assert [s.token for s in run(logits, rows)] == logits.argmax(-1).tolist()


def test_a_broken_row_harms_no_other(run: Run) -> None:
    """NaN or infinities in a row's logits do not stop the batch or change another row."""
    rows = random_rows(40, seed=9)
    logits = make_logits(40)
    wanted = run(logits, rows)
    broken = logits.clone()
    broken[::4] = torch.nan
    broken[1::4] = torch.inf
    broken[2::4, 3:] = -torch.inf
    found = run(broken, rows)
    assert found[3::4] == wanted[3::4]
    assert all(0 <= sample.token < VOCAB for sample in found)


# -- each parameter by itself -----------------------------------------------------


def test_bias_is_added_once_for_each_entry(run: Run) -> None:
    logits = torch.zeros(1, VOCAB)
    row = make_row(temperature=0.0, logit_bias=((3, 1.0), (9, 2.0), (3, 1.5)))
    assert run(logits, [row])[0].token == 3


@pytest.mark.parametrize(("position", "token"), [(0, 1), (3, 1), (4, 0), (9, 0)])
def test_stop_tokens_wait_for_min_tokens(run: Run, position: int, token: int) -> None:
    logits = torch.arange(VOCAB, 0, -1.0)[None]
    row = make_row(temperature=0.0, position=position, min_tokens=4, stop_token_ids=(0, 7))
    assert run(logits, [row])[0].token == token


def test_penalties_tell_prompt_from_output(run: Run) -> None:
    """Presence and frequency look at the output, repetition at everything."""
    logits = torch.full((1, VOCAB), -5.0)
    logits[0, [10, 20, 30]] = torch.tensor([3.0, 2.9, 2.8])

    def choose(**params: Any) -> int:
        row = make_row(temperature=0.0, prompt=[10], output=[20, 20], **params)
        return run(logits, [row])[0].token

    assert choose() == 10
    assert choose(presence_penalty=2.0, frequency_penalty=2.0) == 10
    assert choose(repetition_penalty=1.1) == 30
    assert choose(frequency_penalty=-0.1) == 20  # twice -0.1
    assert choose(presence_penalty=-0.1) == 10  # once, and not enough


# -- log-probabilities ------------------------------------------------------------


def test_logprobs_are_the_models_own(run: Run) -> None:
    """Whatever the row's parameters did to the choice."""
    rows, logits = random_rows(60, seed=3), make_logits(60, seed=3)
    wanted = logits.double().log_softmax(-1)
    for sample, row, own in zip(run(logits, rows), rows, wanted, strict=True):
        if row.params.logprobs is None:
            assert sample.logprobs is None
            continue
        assert sample.logprobs is not None
        assert sample.logprobs.chosen == pytest.approx(own[sample.token].item(), abs=1e-5)
        ids = torch.argsort(own, descending=True)[: row.params.logprobs]
        assert sample.logprobs.top_ids == ids.tolist()
        assert sample.logprobs.top == pytest.approx(own[ids].tolist(), abs=1e-5)


def test_equal_logprobs_come_in_order_of_id(run: Run) -> None:
    """However many another row asks for: bf16 models have many equal logits."""
    logits = make_logits(30, vocab_size=3000).bfloat16().float()
    logits[0] = 0.0
    logits[1, ::2] = -0.0
    counts = [1, 2, 3, 5, 8, 20, 50, 3000, 4000]
    rows = [make_row(temperature=0.0, logprobs=counts[i % len(counts)]) for i in range(30)]
    for index, (sample, row) in enumerate(zip(run(logits, rows), rows, strict=True)):
        values = logits[index].tolist()
        order = sorted(range(3000), key=lambda token, values=values: (-values[token], token))
        assert sample.logprobs is not None
        assert sample.logprobs.top_ids == order[: row.params.logprobs]
        assert sample.token == order[0]


# -- distribution -----------------------------------------------------------------


MIXES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.8, "top_k": 12},
    {"top_p": 0.8},
    {"min_p": 0.05, "top_p": 0.95},
]


@pytest.mark.parametrize(
    ("key", "params"),
    [
        pytest.param(key, params, marks=pytest.mark.slow if params and key != "seed" else ())
        for key in ("position", "seed", "choice")
        for params in MIXES
    ],
    ids=str,
)
def test_draws_follow_the_distribution(run: Run, key: str, params: dict[str, Any]) -> None:
    """20 000 draws over one part of the noise's key."""
    draws = 20_000
    logits = make_logits(1, vocab_size=50, scale=1.5)
    if key == "seed":
        rows = [make_row(seed=i, **params) for i in range(draws)]
    else:
        rows = [make_row(seed=5, **{key: i}, **params) for i in range(draws)]
    tokens = [sample.token for sample in run(logits.expand(draws, 50), rows)]
    scores = logits[0].double().numpy()
    mask = kept(scores, rows[0].params)
    probabilities = np.exp(scores / rows[0].params.temperature) * mask
    probabilities /= probabilities.sum()
    statistic, freedom = chi_square(np.bincount(tokens, minlength=50), probabilities)
    # Mean plus four standard deviations of the chi-square distribution.
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


# -- batches ----------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [VOCAB, 512, 33_001])
def test_a_row_does_not_depend_on_the_batch(run: Run, vocab_size: int) -> None:
    """Tokens and log-probabilities in bits; 33 001 is beyond what torch sums on one thread."""
    count = 12 if vocab_size > 1000 else 60
    rows, logits = random_rows(count, seed=1), make_logits(count, vocab_size).bfloat16().float()
    together = run(logits, rows)
    for begin, end in [*((i, i + 1) for i in range(count)), (0, 5), (3, 9), (count - 7, count)]:
        assert run(logits[begin:end], rows[begin:end]) == together[begin:end]

"""The specification of sampling: that its thresholds are found the same way whatever is sorted, and
that what it takes from torch goes row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.kernels import sampling
from rosellm.roseinfer.kernels.upload import at_once
from rosellm.roseinfer.step import LogitRow
from tests.sampling import FILTERS, VOCAB, kept, make_logits, make_row, oracle, random_rows


def draw(logits: Tensor, rows: Sequence[LogitRow]) -> list[int]:
    return sampling.draw(logits, rows, None).tolist()


CHOOSING = ("seed", "temperature", "top_k", "top_p", "min_p")


@pytest.mark.parametrize("seed", range(4))
def test_few_candidates_are_enough(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CANDIDATES", 4)
    rows, logits = random_rows(150, seed), make_logits(150, seed=seed)
    plain = [make_row(**{name: getattr(row.params, name) for name in CHOOSING}) for row in rows]
    wanted = [oracle(own, row) for own, row in zip(logits.numpy(), plain, strict=True)]
    assert draw(logits, plain) == wanted


def support(logits: Tensor, row: LogitRow, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens that can be chosen at all: each is given, in a row of its own, noise that wins."""
    size = logits.shape[-1]
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "gumbel", lambda *_: torch.eye(size) * 1e9)
        found = draw(logits.expand(size, size), [row] * size)
    return [token for token, drawn in enumerate(found) if drawn == token]


@pytest.mark.parametrize("candidates", [1, 7, 50, 1024])
@pytest.mark.parametrize("params", FILTERS, ids=str)
def test_filters_keep_exactly_what_they_should(
    params: dict[str, Any], candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "CANDIDATES", candidates)
    logits, row = make_logits(1)[0], make_row(**params)
    wanted = np.flatnonzero(kept(logits.double().numpy(), row.params)).tolist()
    assert support(logits, row, monkeypatch) == wanted


def test_candidates_and_full_sort_agree_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nearly equal thresholds and a nearly flat distribution."""
    logits = make_logits(60, vocab_size=700, scale=0.05)
    rows = [make_row(temperature=1.0, seed=i, top_p=0.01 * i + 0.3) for i in range(60)]
    answers = []
    for candidates in (16, 100, 300, 1024):
        monkeypatch.setattr(sampling, "CANDIDATES", candidates)
        drawing = sampling.lay_out(rows, 700, at_once(logits.device))
        assert drawing is not None
        assert drawing.filters is not None
        thresholds = sampling._threshold(logits.softmax(-1), drawing.filters)
        answers.append((thresholds.flatten().tolist(), draw(logits, rows)))
    assert all(answer == answers[0] for answer in answers)


def test_ties_are_kept_together(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0, 0.0])
    for params in ({"top_k": 2}, {"top_p": 0.6}, {"top_k": 3, "top_p": 0.8}):
        assert support(logits, make_row(**params), monkeypatch) == [0, 1, 2, 3]


@pytest.mark.parametrize("vocab_size", [VOCAB, 33_001, 128_256])
@pytest.mark.parametrize(
    "op",
    [
        lambda x: x.softmax(-1),
        lambda x: x.log_softmax(-1),
        lambda x: x.softmax(-1).topk(64).values,
        lambda x: x.softmax(-1).cumsum(-1),
        lambda x: x - x.amax(-1, keepdim=True),
    ],
    ids=["softmax", "log_softmax", "topk", "cumsum", "amax"],
)
def test_the_torch_functions_in_use_go_row_by_row(
    op: Callable[[Tensor], Tensor], vocab_size: int
) -> None:
    """Not all do: a single row of more than 32768 is summed on several threads."""
    logits = make_logits(8, vocab_size)
    together = op(logits)
    for row in range(8):
        assert torch.equal(op(logits[row : row + 1])[0], together[row])

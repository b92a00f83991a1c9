"""Which of a step's hidden states its logit rows look at."""

from __future__ import annotations

import msgspec
import pytest
import torch

from rosellm.roseinfer.kernels.table import choose_ops
from rosellm.roseinfer.kernels.upload import at_once
from rosellm.roseinfer.runner.rows import lay_out_rows
from rosellm.roseinfer.step import StepPlan, Work
from tests.sampling import VOCAB, make_row


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ([[0], [0], [0]], None),
        ([[0], [0, 1, 2]], None),
        ([[0], [2], [0]], [0, 3, 4]),
        ([[1, 1]], [1, 1]),  # as many as there are tokens, and not these
        ([[1], [0, 0]], [1, 2, 2]),
    ],
)
def test_rows_are_named_unless_they_are_all_tokens_one_by_one(offsets, expected):
    work = tuple(
        Work(number, 0, tuple(range(own[-1] + 1)), (), tuple(_row(each) for each in own))
        for number, own in enumerate(offsets)
    )
    device = torch.device("cpu")
    rows = lay_out_rows(StepPlan(work), VOCAB, choose_ops(device), at_once(device)).rows
    assert (None if rows is None else rows.tolist()) == expected


def _row(offset):
    return msgspec.structs.replace(make_row(), offset=offset)

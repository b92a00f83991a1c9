"""From hidden states to a vector of unit length."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.messages import Pooling
from rosellm.roseinfer.runner.pooling import pool

KINDS: list[Pooling] = ["mean", "cls", "last"]


def states(count: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(count * 1000 + width)
    return torch.randn(count, width, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("count", "width"), [(1, 1), (1, 48), (2, 45), (33, 384), (513, 7)])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_fp64(kind: Pooling, count: int, width: int, dtype: torch.dtype) -> None:
    hidden = states(count, width, dtype)
    exact = {"mean": hidden.double().mean(0), "cls": hidden[0], "last": hidden[-1]}[kind].double()
    found = pool(hidden, kind)
    assert found.dtype == torch.float32
    assert found.shape == (width,)
    torch.testing.assert_close(found.double(), exact / exact.norm(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequences_place_in_the_batch_does_not_show(kind: Pooling) -> None:
    hidden = states(37, 45)
    alone = pool(hidden.clone(), kind)
    for before in range(1, 20):
        batch = torch.cat([states(before, 45), hidden, states(5, 45)])
        assert torch.equal(pool(batch[before : before + 37], kind), alone)


@pytest.mark.parametrize("kind", KINDS)
def test_extremes(kind: Pooling) -> None:
    assert torch.equal(pool(torch.zeros(3, 5), kind), torch.zeros(5))
    for scale in (1e-12, 1e12):
        length = pool(states(3, 5) * scale, kind).norm().item()
        assert length == pytest.approx(1, rel=1e-5)
    assert pool(torch.full((4, 3), torch.nan), kind).isnan().all()

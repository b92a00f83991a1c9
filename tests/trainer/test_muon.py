"""Muon beside torch's own, which computes in bfloat16 everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rosellm.rosetrainer.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    made = orthogonalised(matrix)
    values = torch.linalg.svdvals(made)
    assert 0.6 < values.min() < values.max() < 1.3
    within = left.t() @ made @ right.t()
    assert torch.allclose(within, within.diag().diag(), atol=1e-4)


def test_its_steps_are_those_of_torch() -> None:
    torch.manual_seed(0)
    start = torch.randn(24, 40)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    steppers = (
        Muon([ours], lr=0.02, weight_decay=0.1),
        torch.optim.Muon(
            [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
    )
    for _ in range(4):
        grad = torch.randn(24, 40)
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        for stepper in steppers:
            stepper.step()
    moved, apart = (ours - start).norm(), (ours - theirs).norm()
    assert apart < 0.02 * moved

"""AdamW with decay on matrices only, and the learning rate of every step."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW

from rosellm.rosetrainer.config import OptimizerSection


def make_optimizer(model: nn.Module, section: OptimizerSection) -> AdamW:
    """AdamW (Loshchilov & Hutter, 2019). Gains and biases are vectors and do not decay."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": section.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return AdamW(
        groups,
        lr=section.lr,
        betas=(section.beta1, section.beta2),
        eps=section.eps,
        fused=True,
    )


def learning_rate(step: int, steps: int, section: OptimizerSection) -> float:
    """Of a step, counted from zero: a straight warm-up, then half a cosine down to the least.

    It depends on nothing but its arguments, so there is no state to resume.
    """
    if step < section.warmup_steps:
        return section.lr * (step + 1) / section.warmup_steps
    done = (step - section.warmup_steps) / max(steps - section.warmup_steps, 1)
    least = section.lr * section.min_lr_ratio
    return least + (section.lr - least) * (1 + math.cos(math.pi * min(done, 1.0))) / 2

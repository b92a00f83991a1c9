"""AdamW or Muon, with decay on matrices only, and the learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from rosellm.rosetrainer.config import OptimizerSection
from rosellm.rosetrainer.muon import Muon


def make_optimizer(model: nn.Module, section: OptimizerSection) -> Optimizer:
    """AdamW (Loshchilov & Hutter, 2019) for everything, or Muon for the matrices of the blocks.

    Gains and biases are vectors and do not decay.
    """
    named = list(model.named_parameters())
    inner = [p for name, p in named if section.name == "muon" and _is_inner(name, p)]
    taken = {id(p) for p in inner}
    rest = [p for _name, p in named if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": section.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = section.beta1, section.beta2
    adamw = AdamW(groups, lr=section.lr, betas=betas, eps=section.eps, fused=True)
    if not inner:
        return adamw
    return Together([adamw, Muon(inner, section.lr, section.weight_decay)])


def _is_inner(name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix of a block: no embedding and no head."""
    return parameter.dim() == 2 and (".layers." in name or "blocks." in name)


class Together(Optimizer):
    """Optimizers of different parameters as one, for a loop that knows of one."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self._parts = parts
        groups = [group for part in parts for group in part.param_groups]
        super().__init__([{**group} for group in groups], {})
        self.param_groups = groups  # the parts' own: what is set here is set there

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures: not ours
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]


def learning_rate(step: int, steps: int, section: OptimizerSection) -> float:
    """Of a step, counted from zero: a straight warm-up, then half a cosine down to the least.

    It depends on nothing but its arguments, so there is no state to resume.
    """
    if step < section.warmup_steps:
        return section.lr * (step + 1) / section.warmup_steps
    done = (step - section.warmup_steps) / max(steps - section.warmup_steps, 1)
    least = section.lr * section.min_lr_ratio
    return least + (section.lr - least) * (1 + math.cos(math.pi * min(done, 1.0))) / 2

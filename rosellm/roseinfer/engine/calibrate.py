"""Quantises a model while a text goes through it: each matrix when the text first reaches it.

By then everything before it is quantised, so it sees the inputs that it will see when served, and
its codes make up for what it can of the errors before it. One matrix is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rosellm.roseinfer.attention.reference import ReferenceAttention
from rosellm.roseinfer.cache.storage import KVGroup, KVStorage, KVTensor
from rosellm.roseinfer.kernels import reference
from rosellm.roseinfer.kernels.reference import PackedLinear
from rosellm.roseinfer.kernels.table import Ops, reference_ops
from rosellm.roseinfer.layers.linear import Linear, Matrix
from rosellm.roseinfer.loading.assign import OnBytes, OnDemand
from rosellm.roseinfer.models.skeleton import Model
from rosellm.roseinfer.quant.feedback import quantize_for
from rosellm.roseinfer.quant.formats import Format
from rosellm.roseinfer.quant.scales import quantize
from rosellm.roseinfer.quant.tensor import QuantizedTensor
from rosellm.roseinfer.runner.model_runner import ModelRunner
from rosellm.roseinfer.step import StepPlan, Work

_BLOCK = 16
_CPU = torch.device("cpu")


def calibration_ops() -> Ops:
    """Plain torch in large products: rows need not have the same bits in any batch here."""
    return replace(reference_ops("for calibration"), linear=_linear)


def quantize_by_text(
    model: Model,
    weights: OnDemand,
    windows: Sequence[Sequence[int]],
    on_bytes: OnBytes = lambda _: None,
) -> None:
    """Fill all modules of a model, the matrices for the inputs that the text gives them.

    Args:
        model: on ``calibration_ops``, in fp32, not filled.
        windows: token ids of stretches of text, each read on its own.
    """
    named = dict(model.own_modules())

    def fill(name: str, how: Callable[[Tensor, Format], QuantizedTensor] = quantize) -> None:
        on_bytes(weights.fill(name, how))

    for name in weights.waiting:
        if not isinstance(named[name], Matrix):  # norms, some of which nobody calls
            fill(name)
    hooks = []
    for name in weights.waiting:
        hooks.append(named[name].register_forward_pre_hook(partial(_before, fill, name)))
        hooks.append(named[name].register_forward_hook(_after))
    hidden = _runner(model, windows).hidden_states(_plan(model, windows))
    for hook in hooks:
        hook.remove()
    for name in weights.waiting:  # the head, and experts that no token chose
        fill(name, partial(_for_inputs, hidden) if name == "head" else quantize)


def _before(fill: Callable[..., None], name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
    fill(name, partial(_for_inputs, args[0]) if isinstance(module, Linear) else quantize)


def _after(module: nn.Module, _args: Any, _result: Any) -> None:
    assert isinstance(module, Matrix)
    module.let_go()


def _for_inputs(inputs: Tensor, weight: Tensor, format: Format) -> QuantizedTensor:
    wide = inputs.float()
    return quantize_for(weight, format, wide.t() @ wide / len(wide))


def _linear(x: Tensor, packed: PackedLinear) -> Tensor:
    weight = packed.weight[: packed.out_features, : packed.in_features]
    bias = None if packed.bias is None else packed.bias[: packed.out_features]
    product = F.linear(x, weight, bias)
    return (
        product if packed.activation is None else reference.ACTIVATIONS[packed.activation](product)
    )


class _Scratch(KVStorage):
    """Keys and values of one layer of each group: the next layer writes over them."""

    def __init__(self, groups: Sequence[KVGroup], num_blocks: int) -> None:
        first = [replace(group, layers=group.layers[:1]) for group in groups]
        super().__init__(first, [num_blocks] * len(first), _BLOCK, torch.float32, _CPU)
        self._first = {layer: group.layers[0] for group in groups for layer in group.layers}

    def layer(self, index: int) -> tuple[KVTensor, KVTensor]:
        return super().layer(self._first[index])


def _blocks(window: Sequence[int]) -> int:
    return -(-len(window) // _BLOCK)


def _runner(model: Model, windows: Sequence[Sequence[int]]) -> ModelRunner:
    storage = _Scratch(model.spec.kv_groups, sum(map(_blocks, windows)))
    longest = model.spec.max_positions  # some rope scalings depend on it
    backend = ReferenceAttention(_BLOCK, _CPU)
    return ModelRunner(model, calibration_ops(), storage, backend, _CPU, longest)


def _plan(model: Model, windows: Sequence[Sequence[int]]) -> StepPlan:
    work = []
    first = 0
    for sequence, window in enumerate(windows):
        table = tuple(range(first, first + _blocks(window)))
        work.append(Work(sequence, 0, tuple(window), (table,) * len(model.spec.kv_groups)))
        first += _blocks(window)
    return StepPlan(tuple(work))

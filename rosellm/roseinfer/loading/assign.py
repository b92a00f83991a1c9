"""Put named tensors into a model's parameters: each exactly once, none left over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.layers.linear import Linear
from rosellm.roseinfer.models.skeleton import Model
from rosellm.roseinfer.models.spec import WeightMap


@dataclass(frozen=True)
class Target:
    """Rows of a parameter that one checkpoint tensor fills."""

    rows: Tensor
    transposed: bool

    def fill(self, name: str, source: Tensor) -> None:
        if source.layout is not torch.strided or source.is_meta or source.is_nested:
            raise ModelError(f"tensor {name}: expected dense values")
        source = source.t() if self.transposed and source.dim() == 2 else source
        if source.shape != self.rows.shape:
            wanted, found = list(self.rows.shape), list(source.shape)
            raise ModelError(f"tensor {name}: expected shape {wanted}, found {found}")
        if not source.is_floating_point():
            raise ModelError(f"tensor {name}: expected floats, found {source.dtype}")
        self.rows.copy_(source)


def load_weights(
    model: Model,
    weights: WeightMap,
    tensors: Iterable[tuple[str, Tensor]],
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Fill every parameter of ``model``; raise ModelError naming what does not fit."""
    targets = _targets(model, weights)
    filled: set[str] = set()
    for full_name, tensor in tensors:
        name = _strip(full_name, weights.prefixes)
        if name in targets and name not in filled:
            with torch.no_grad():
                targets[name].fill(shown(full_name), tensor)
            filled.add(name)
        elif not _is_ignored(name, weights, model):
            known = "twice in the checkpoint" if name in filled else "not part of this model"
            raise ModelError(f"tensor {shown(full_name)}: {known}")
        on_bytes(tensor.numel() * tensor.itemsize)
    missing = [name for name in targets if name not in filled]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ModelError(f"tensor {missing[0]}: missing from the checkpoint{more}")


def _targets(model: Model, weights: WeightMap) -> dict[str, Target]:
    """What each checkpoint name fills."""
    targets: dict[str, Target] = {}
    for source, target in weights.names.items():
        for layer in range(model.spec.num_layers) if "{i}" in source else [0]:
            pairs = [(source, target), (_bias(source), _bias(target))]
            for checkpoint_name, ours in pairs:
                rows = _rows(model, ours.replace("{i}", str(layer)))
                if rows is not None:
                    name = checkpoint_name.replace("{i}", str(layer))
                    targets[name] = Target(rows, checkpoint_name in weights.transposed)
    return targets


def _bias(name: str) -> str:
    return name.replace(".weight", ".bias")


def _rows(model: Model, target: str) -> Tensor | None:
    """The parameter, or the named part of it; None if the model has no such parameter."""
    path, _, part = target.partition(":")
    owner, _, attribute = path.rpartition(".")
    if model.spec.tied and owner == "head":
        return None
    module = model.get_submodule(owner)
    parameter = getattr(module, attribute, None)
    if not isinstance(parameter, nn.Parameter):
        return None
    if not part:
        return parameter.data
    assert isinstance(module, Linear)
    rows: Tensor = module.part(parameter.data, part)
    return rows


def _strip(name: str, prefixes: tuple[str, ...]) -> str:
    while (found := next((p for p in prefixes if name.startswith(p)), None)) is not None:
        name = name[len(found) :]
    return name


def _is_ignored(name: str, weights: WeightMap, model: Model) -> bool:
    tied_head = model.spec.tied and weights.names.get(name) == "head.weight"
    return tied_head or any(re.fullmatch(pattern, name) for pattern in weights.ignored)

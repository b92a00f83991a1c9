"""Put named tensors into a model's parameters: each exactly once, none left over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.layers.linear import Linear
from rosellm.roseinfer.models.skeleton import Model
from rosellm.roseinfer.models.spec import ModelSpec, WeightMap


@dataclass(frozen=True)
class Target:
    """Rows of a parameter that one checkpoint tensor fills.

    Attributes:
        transposed: whether the tensor is stored [in, out].
        head_dim: rows of a head where the tensor goes through all parts of one head after
            another; None where it goes through all heads of one part after another.
    """

    rows: Tensor
    transposed: bool
    head_dim: int | None = None

    def fill(self, name: str, source: Tensor) -> None:
        if source.layout is not torch.strided or source.is_meta or source.is_nested:
            raise ModelError(f"tensor {name}: expected dense values")
        source = source.t() if self.transposed and source.dim() == 2 else source
        if source.shape != self.rows.shape:
            wanted, found = list(self.rows.shape), list(source.shape)
            raise ModelError(f"tensor {name}: expected shape {wanted}, found {found}")
        if not source.is_floating_point():
            raise ModelError(f"tensor {name}: expected floats, found {source.dtype}")
        self.rows.copy_(source if self.head_dim is None else self._part_by_part(source))

    def _part_by_part(self, source: Tensor) -> Tensor:
        """Rows in the order (head, part, row in head), reordered to (part, head, row)."""
        by_part: Tensor = source.unflatten(0, (-1, 3, self.head_dim)).transpose(0, 1)
        return by_part.flatten(0, 2)


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
        name = _today(_strip(full_name, weights.prefixes), weights.endings)
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
        pairs = [(source, target), (_bias(source), _bias(target))]
        for marks in _marks(source, model.spec):
            for checkpoint_name, ours in pairs:
                rows = _rows(model, _replace(ours, marks))
                if rows is not None:
                    name = _replace(checkpoint_name, marks)
                    head_dim = model.spec.head_dim if source in weights.by_head else None
                    targets[name] = Target(rows, checkpoint_name in weights.transposed, head_dim)
    covered = sum(target.rows.numel() for target in targets.values())
    assert covered == model.num_weights(), "the weight map leaves parameters out"
    return targets


def _marks(source: str, spec: ModelSpec) -> Iterator[dict[str, str]]:
    """What the marks in a name stand for, one after another."""
    layers = range(spec.num_layers if "{i}" in source else 1)
    experts = range(spec.experts.count if spec.experts and "{e}" in source else 1)
    return ({"{i}": str(i), "{e}": str(e)} for i in layers for e in experts)


def _replace(name: str, marks: Mapping[str, str]) -> str:
    for mark, value in marks.items():
        name = name.replace(mark, value)
    return name


def _bias(name: str) -> str:
    return name.replace(".weight", ".bias")


def _rows(model: Model, target: str) -> Tensor | None:
    """The parameter, or the named part of it; None if this layer has no such parameter."""
    path, _, part = target.partition(":")
    owner, _, attribute = path.rpartition(".")
    if model.spec.tied and owner == "head":
        return None
    module = _submodule(model, owner)
    parameter = getattr(module, attribute, None)
    if not isinstance(parameter, nn.Parameter):
        return None
    if not part:
        return parameter.data
    assert isinstance(module, Linear)
    rows: Tensor = module.part(parameter.data, part)
    return rows


def _submodule(model: Model, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _today(name: str, endings: Mapping[str, str]) -> str:
    for old, new in endings.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _strip(name: str, prefixes: tuple[str, ...]) -> str:
    while (found := next((p for p in prefixes if name.startswith(p)), None)) is not None:
        name = name[len(found) :]
    return name


def _is_ignored(name: str, weights: WeightMap, model: Model) -> bool:
    tied_head = model.spec.tied and weights.names.get(name) == "head.weight"
    return tied_head or any(re.fullmatch(pattern, name) for pattern in weights.ignored)

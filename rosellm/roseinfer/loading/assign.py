"""Put named tensors into a model's parameters: each exactly once, none left over.

A module is laid out for the kernels as soon as all of its tensors are there, quantised before if
its format asks for that, and its plain weights are let go of: so beside the model no more than a
few modules' weights are in memory at a time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.layers.linear import Linear, Matrix
from rosellm.roseinfer.layers.norm import RMSNorm
from rosellm.roseinfer.models.skeleton import Model
from rosellm.roseinfer.models.spec import ModelSpec, WeightMap
from rosellm.roseinfer.quant.formats import Format
from rosellm.roseinfer.quant.scales import quantize
from rosellm.roseinfer.quant.tensor import QuantizedTensor

OnBytes = Callable[[int], None]
"""Told how many bytes of the checkpoint have been taken in."""

Quantize = Callable[[Tensor, Format], QuantizedTensor]
"""How a weight becomes one of few bits: ``scales.quantize``, or with more knowledge of it."""

Keep = Callable[[str, Tensor], None]
"""Given every tensor under our name for it, as it is before it is laid out; ``Store.put``."""


@dataclass(frozen=True)
class Place:
    """Where weights go, and as what."""

    dtype: torch.dtype
    device: torch.device


def load_weights(
    model: Model,
    weights: WeightMap,
    tensors: Iterable[tuple[str, Tensor]],
    place: Place,
    on_bytes: OnBytes = lambda _: None,
    keep: Keep | None = None,
    *,
    packed: bool = False,
) -> None:
    """Fill every parameter of ``model``; raise ModelError naming what does not fit.

    Args:
        packed: whether quantised weights are kept in the kernels' layout.
    """
    targets = _targets(model, weights, place)

    def complete(name: str, module: nn.Module) -> None:
        _complete(name, module, place, keep, quantize, packed)

    counted = _counted(tensors, on_bytes)
    _fill(targets, _named(model, weights, targets, counted), complete)
    model.finish()


class OnDemand:
    """Fills one module after another, in the order in which they are asked for.

    Args:
        tensors: all of the checkpoint's, as views: they are looked at when their module's turn
            comes.
    """

    def __init__(
        self,
        model: Model,
        weights: WeightMap,
        tensors: Iterable[tuple[str, Tensor]],
        place: Place,
        keep: Keep,
    ) -> None:
        self._place = place
        self._keep = keep
        self._waiting: dict[str, list[tuple[Target, str, Tensor]]] = {}
        targets = _targets(model, weights, place)
        for target, name, tensor in _matched(targets, _named(model, weights, targets, tensors)):
            self._waiting.setdefault(target.module[0], []).append((target, name, tensor))

    @property
    def waiting(self) -> list[str]:
        """Names of the modules that have not been filled."""
        return list(self._waiting)

    def fill(self, module: str, quantize: Quantize = quantize) -> int:
        """Fill a module, quantise its weight if its format says so, keep it, lay it out.

        Returns:
            How many bytes of the checkpoint that took in.

        Raises:
            ModelError: naming the tensor that does not fit.
        """
        taken = 0
        for target, name, tensor in self._waiting.pop(module):
            target.fill(shown(name), tensor)
            taken += tensor.nbytes
        _complete(*target.module, self._place, self._keep, quantize)
        return taken


def load_quantized(
    model: Model,
    tensors: Iterable[tuple[str, Tensor]],
    place: Place,
    on_bytes: OnBytes = lambda _: None,
    *,
    packed: bool = False,
) -> None:
    """The same from tensors that were kept (``Keep``) when the model had the same formats.

    Args:
        packed: whether they are in the kernels' layout; then they are used where they are.
    """
    stored: dict[str, dict[str, Tensor]] = {}
    targets = _targets_of_kept(model, place, stored, packed)

    def complete(name: str, module: nn.Module) -> None:
        if not isinstance(module, Matrix) or module.format is None:
            _pack(module)
        elif packed:
            module.take_packed(stored.pop(name)["packed"], place.dtype)
        else:
            columns = module.weight.shape[1]
            weight = QuantizedTensor(module.format, columns, **stored.pop(name))
            if not weight.is_sound():
                raise ModelError(f"tensor {name}.weight: its scales are damaged; quantise it again")
            module.pack_quantized(weight.to(place.device), place.dtype)

    counted = _counted(tensors, on_bytes)
    _fill(targets, ((name, name, tensor) for name, tensor in counted), complete)
    model.finish()


class Target(Protocol):
    """What one tensor of a checkpoint fills."""

    @property
    def module(self) -> tuple[str, nn.Module]: ...

    def fill(self, name: str, source: Tensor) -> None: ...


def _fill(
    targets: Mapping[str, Target],
    tensors: Iterable[tuple[str | None, str, Tensor]],
    complete: Callable[[str, nn.Module], None],
) -> None:
    """Fill all targets from (name as in ``targets`` or None, full name, tensor).

    Args:
        complete: told of every module when its last target has been filled.
    """
    waiting = Counter(target.module[0] for target in targets.values())
    for target, full_name, tensor in _matched(targets, tensors):
        with torch.no_grad():
            target.fill(shown(full_name), tensor)
            waiting[target.module[0]] -= 1
            if not waiting[target.module[0]]:
                complete(*target.module)


def _counted(
    tensors: Iterable[tuple[str, Tensor]], on_bytes: OnBytes
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        yield name, tensor
        on_bytes(tensor.nbytes)


def _matched(
    targets: Mapping[str, Target], tensors: Iterable[tuple[str | None, str, Tensor]]
) -> Iterator[tuple[Target, str, Tensor]]:
    """Each target with its tensor and that one's full name; ModelError unless all have one."""
    filled: set[str] = set()
    for name, full_name, tensor in tensors:
        if name is None:
            continue
        if name not in targets or name in filled:
            known = "twice in the checkpoint" if name in filled else "not part of this model"
            raise ModelError(f"tensor {shown(full_name)}: {known}")
        filled.add(name)
        yield targets[name], full_name, tensor
    missing = [name for name in targets if name not in filled]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ModelError(f"tensor {missing[0]}: missing from the checkpoint{more}")


def _named(
    model: Model,
    weights: WeightMap,
    targets: Mapping[str, Target],
    tensors: Iterable[tuple[str, Tensor]],
) -> Iterator[tuple[str | None, str, Tensor]]:
    """Tensors with their names as in ``targets``, or None where they carry nothing to load."""
    for full_name, tensor in tensors:
        name = _today(_strip(full_name, weights.prefixes), weights.endings)
        is_ignored = name not in targets and _is_ignored(name, weights, model)
        yield None if is_ignored else name, full_name, tensor


def _complete(
    name: str,
    module: nn.Module,
    place: Place,
    keep: Keep | None,
    quantize: Quantize,
    packed: bool = False,
) -> None:
    """Quantise a module's weight if its format says so, keep what it has, lay it out."""
    quantized = None
    if isinstance(module, Matrix) and module.format is not None:
        quantized = quantize(_checked(name, module.weight.data), module.format)
    if keep is not None:
        for each, tensor in _to_keep(module, quantized):
            if not (packed and each.startswith("weight.")):
                keep(f"{name}.{each}", tensor)
    if quantized is None:
        _pack(module)
    elif isinstance(module, Matrix):
        module.pack_quantized(quantized, place.dtype)
        if keep is not None and packed:
            keep(f"{name}.weight.packed", module.packed_data())


def _checked(name: str, weight: Tensor) -> Tensor:
    if not weight.sum(dtype=torch.float32).isfinite():
        raise ModelError(f"{name}: holds numbers that are not finite; it cannot be quantised")
    return weight


def _to_keep(module: nn.Module, quantized: QuantizedTensor | None) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters(recurse=False):
        if name == "weight" and quantized is not None:
            yield from ((f"weight.{part}", tensor) for part, tensor in quantized.named_parts())
        else:
            yield name, parameter.data


def _pack(module: nn.Module) -> None:
    if isinstance(module, Matrix | RMSNorm):
        module.pack()


# -- what a tensor fills ---------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Rows of a parameter, which gets its memory when its first rows are filled.

    Attributes:
        module: its name and itself.
        attribute: of the module.
        rows: those that are filled.
        shape: of them together.
        transposed: whether the tensor is stored [in, out].
        head_dim: rows of a head where the tensor goes through all parts of one head after
            another; None where it goes through all heads of one part after another.
    """

    module: tuple[str, nn.Module]
    attribute: str
    place: Place
    rows: slice
    shape: tuple[int, ...]
    transposed: bool = False
    head_dim: int | None = None

    def fill(self, name: str, source: Tensor) -> None:
        _check(name, source)
        source = source.t() if self.transposed and source.dim() == 2 else source
        _check_shape(name, source, self.shape)
        if not source.is_floating_point():
            raise ModelError(f"tensor {name}: expected floats, found {source.dtype}")
        if self.head_dim is not None:
            source = self._part_by_part(source)
        if self._is_quantized and self._is_whole and source.is_contiguous():
            self._set(source.to(self.place.device))  # no copy: it is only looked at
        else:
            self._memory(source.dtype)[self.rows].copy_(source)

    def _part_by_part(self, source: Tensor) -> Tensor:
        """Rows in the order (head, part, row in head), reordered to (part, head, row)."""
        by_part: Tensor = source.unflatten(0, (-1, 3, self.head_dim)).transpose(0, 1)
        return by_part.flatten(0, 2)

    @property
    def _is_quantized(self) -> bool:
        module = self.module[1]
        return isinstance(module, Matrix) and bool(module.format) and self.attribute == "weight"

    @property
    def _is_whole(self) -> bool:
        return self.shape == tuple(getattr(self.module[1], self.attribute).shape)

    def _memory(self, stored: torch.dtype) -> Tensor:
        """The parameter's; what will be quantised has the type that it is stored in till then."""
        parameter: nn.Parameter = getattr(self.module[1], self.attribute)
        if parameter.is_meta:
            dtype = stored if self._is_quantized else self.place.dtype
            # not to_empty: that looks at the meta tensor, for which torch imports sympy
            return self._set(torch.empty(parameter.shape, dtype=dtype, device=self.place.device))
        return parameter.data

    def _set(self, values: Tensor) -> Tensor:
        setattr(self.module[1], self.attribute, nn.Parameter(values, requires_grad=False))
        return values


@dataclass(frozen=True)
class Piece:
    """One of the tensors that a quantised weight consists of; put into ``store`` as it is."""

    module: tuple[str, nn.Module]
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    store: dict[str, Tensor] = field(repr=False)

    def fill(self, name: str, source: Tensor) -> None:
        _check(name, source)
        _check_shape(name, source, self.shape)
        if source.dtype != self.dtype:
            raise ModelError(f"tensor {name}: expected {self.dtype}, found {source.dtype}")
        self.store[self.name] = source


def _check(name: str, source: Tensor) -> None:
    if source.layout is not torch.strided or source.is_meta or source.is_nested:
        raise ModelError(f"tensor {name}: expected dense values")


def _check_shape(name: str, source: Tensor, shape: Sequence[int]) -> None:
    if source.shape != torch.Size(shape):
        raise ModelError(f"tensor {name}: expected shape {list(shape)}, found {list(source.shape)}")


# -- which tensor fills what -----------------------------------------------------------------


def _targets(model: Model, weights: WeightMap, place: Place) -> dict[str, Target]:
    """What each checkpoint name fills."""
    modules = dict(model.own_modules())
    targets: dict[str, Target] = {}
    covered = 0
    for source, target in weights.names.items():
        pairs = [(source, target), (_bias(source), _bias(target))]
        head_dim = model.spec.head_dim if source in weights.by_head else None
        for marks in _marks(source, model.spec):
            for checkpoint_name, ours in pairs:
                transposed = checkpoint_name in weights.transposed
                rows = _rows(modules, _replace(ours, marks), place, transposed, head_dim)
                if rows is not None:
                    targets[_replace(checkpoint_name, marks)] = rows
                    covered += torch.Size(rows.shape).numel()
    assert covered == model.num_weights(), "the weight map leaves parameters out"
    return targets


def _targets_of_kept(
    model: Model, place: Place, stored: dict[str, dict[str, Tensor]], packed: bool
) -> dict[str, Target]:
    """What our own names fill; the pieces of each quantised weight go into ``stored``."""
    targets: dict[str, Target] = {}
    for name, module in model.own_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            shape = tuple(parameter.shape)
            if isinstance(module, Matrix) and module.format and attribute == "weight":
                store = stored.setdefault(name, {})
                for piece, (extent, dtype) in module.kept_parts(packed).items():
                    full_name = f"{name}.weight.{piece}"
                    targets[full_name] = Piece((name, module), piece, extent, dtype, store)
            else:
                rows = Rows((name, module), attribute, place, slice(None), shape)
                targets[f"{name}.{attribute}"] = rows
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


def _rows(
    modules: Mapping[str, nn.Module],
    target: str,
    place: Place,
    transposed: bool,
    head_dim: int | None,
) -> Rows | None:
    """The parameter, or the named part of it; None if this layer has no such parameter."""
    path, _, part = target.partition(":")
    owner, _, attribute = path.rpartition(".")
    module = modules.get(owner)
    parameter = getattr(module, attribute, None)
    if module is None or not isinstance(parameter, nn.Parameter):
        return None
    rows, shape = slice(None), tuple(parameter.shape)
    if part:
        assert isinstance(module, Linear)
        rows = module.rows_of(part)
        shape = (rows.stop - rows.start, *shape[1:])
    return Rows((owner, module), attribute, place, rows, shape, transposed, head_dim)


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

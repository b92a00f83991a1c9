"""Which scales, steps and offsets stand for a matrix best: a search in each group of numbers.

Rounding to nearest takes the scale at which the largest number just fits. What is looked for here
is that of least weighted squared error: over a grid of candidates, the codes are rounded and the
best real parameters for them taken in closed form (weighted least squares). Scales are rounded to
fp16 before the codes are chosen at last, so that what is stored is what was measured; and rounding
to nearest is the first candidate, so that no group comes out worse than by it.

Grids of scales are known from ggml's k-quants; codes and parameters in turn from Lloyd ("Least
squares quantization in PCM", 1982); steps that are whole multiples of a coarser scale from
double quantisation (arXiv:2305.14314).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from rosellm.roseinfer.kernels.cpu.library import Library, load
from rosellm.roseinfer.kernels.float8 import rows_to_codes
from rosellm.roseinfer.quant.formats import PART, Format, parts_of
from rosellm.roseinfer.quant.native import search4
from rosellm.roseinfer.quant.tensor import (
    MOST_CODE4,
    MOST_CODE8,
    MOST_POINT,
    MOST_STEP,
    ZERO,
    QuantizedTensor,
    pack_pairs,
)

_CHUNK = 1 << 17
"""Numbers looked at together, so that what is made of them stays in a core's cache."""

_LEAST_SCALE, _MOST_SCALE = 2.0**-24, 65504.0

_SPANS = tuple(13.0 + 0.5 * step for step in range(10))
"""In how many steps a part's range is tried to be divided; beyond 15, its ends are cut off."""

_GRIDS = (0.92, 0.96, 1.0, 1.02, 1.04, 1.06, 1.08, 1.1, 1.12, 1.14)
"""Scales tried for a group, relative to the one at which its numbers just fit the grid."""


@dataclass(frozen=True)
class Scales8:
    """Parameters of M groups of 8 bits: scale [M]."""

    scale: Tensor

    def codes(self, x: Tensor) -> Tensor:
        """The nearest codes, as fp32, of numbers [G, M]."""
        return (x * _over(1.0, self.scale)).round_().clamp_(-MOST_CODE8, MOST_CODE8)

    def numbers(self, codes: Tensor) -> Tensor:
        return codes * self.scale


@dataclass(frozen=True)
class Scales4:
    """Parameters of M groups of P parts in 4 bits: scale [M]; step and offset [P, M]."""

    scale: Tensor
    step: Tensor
    offset: Tensor

    def codes(self, x: Tensor) -> Tensor:
        """The nearest codes, as fp32, of numbers [32, P, M]."""
        points = x * _over(1.0, self.scale)
        points += ZERO - self.offset
        return points.mul_(_over(1.0, self.step)).round_().clamp_(0, MOST_CODE4)

    def numbers(self, codes: Tensor) -> Tensor:
        return (codes * self.step + (self.offset - ZERO)) * self.scale


Scales: TypeAlias = Scales8 | Scales4


def quantize(
    weight: Tensor, format: Format, importance: Tensor | None = None, *, search: bool = True
) -> QuantizedTensor:
    """A matrix in few bits.

    Args:
        weight: [N, K], any float dtype, finite.
        importance: [K], how much the squared error of a column counts, at least 0: the mean
            square of what it is multiplied with, where that is known. None: all the same.
        search: whether to look for better scales than those of rounding to nearest.
    """
    columns = weight.shape[1]
    if format.kind == "float":
        return _floats(weight, format)
    if search and format.bits == 4 and weight.device.type == "cpu":
        library = load()
        if isinstance(library, Library):
            return search4(library, weight, format, importance)
    if importance is None:
        importance = torch.ones(columns, device=weight.device)
    parts = []
    for rows in weight.split(max(1, _CHUNK // columns)):
        groups = Groups.of(rows.float(), importance.float(), format)
        scales = groups.search() if search else groups.nearest()
        parts.append(groups.quantized(scales))
    return join(parts)


def _floats(weight: Tensor, format: Format) -> QuantizedTensor:
    """The largest number of a row becomes the largest code: floats are as fine at any scale, so
    there is little to search for."""
    parts = [rows_to_codes(rows) for rows in weight.split(max(1, _CHUNK // weight.shape[1]))]
    codes, scales = (torch.cat(part) for part in zip(*parts, strict=True))
    return QuantizedTensor(format, weight.shape[1], codes, scales[:, None])


def join(parts: list[QuantizedTensor]) -> QuantizedTensor:
    """One matrix of the rows of several."""
    named = [dict(part.named_parts()) for part in parts]
    whole = {name: torch.cat([part[name] for part in named]) for name in named[0]}
    return QuantizedTensor(parts[0].format, parts[0].columns, **whole)


@dataclass(frozen=True)
class Groups:
    """M groups of numbers, side by side as columns: sums over a group are sums of rows.

    Attributes:
        format: theirs.
        columns: of the matrix that they are from.
        x: the numbers, [G, M] in 8 bits and [32, P, M] in 4.
        h: their importance, as wide as x; 0 for what only fills the last group up.
    """

    format: Format
    columns: int
    x: Tensor
    h: Tensor

    @classmethod
    def of(cls, weight: Tensor, importance: Tensor, format: Format) -> Groups:
        """The groups of rows [N, K] in fp32."""
        rows, columns = weight.shape
        size = format.group
        missing = -columns % size
        # what fills up repeats the last column, so that no group's range changes
        x = F.pad(weight[None], (0, missing), mode="replicate")[0] if missing else weight
        h = F.pad(importance, (0, missing)).expand(rows, -1)
        shape = (-1, size) if format.bits == 8 else (-1, size // PART, PART)
        x, h = (each.reshape(shape).movedim(0, -1) for each in (x, h))
        if format.bits == 4:
            x, h = x.transpose(0, 1), h.transpose(0, 1)
        return cls(format, columns, x.contiguous(), h.contiguous())

    def nearest(self) -> Scales:
        """The parameters of rounding to nearest."""
        return _nearest8(self.x) if self.format.bits == 8 else _nearest4(self.x)

    def search(self) -> Scales:
        """Those of least error that are found."""
        return _search8(self.x, self.h) if self.format.bits == 8 else _search4(self.x, self.h)

    def quantized(self, scales: Scales) -> QuantizedTensor:
        """The matrix with these parameters."""
        codes = self.rows_of(scales.codes(self.x))[:, : self.columns]
        scale = self.rows_of(scales.scale).half()
        if isinstance(scales, Scales8):
            return QuantizedTensor(self.format, self.columns, codes.to(torch.int8), scale)
        step, offset = (
            self.rows_of(each)[:, : parts_of(self.columns)].to(torch.uint8)
            for each in (scales.step, scales.offset)
        )
        return QuantizedTensor(self.format, self.columns, pack_pairs(codes), scale, step, offset)

    def rows_of(self, each: Tensor) -> Tensor:
        """What groups have, [..., M], as rows of the matrix, what fills up included."""
        if each.dim() == 3:
            each = each.transpose(0, 1)
        groups = self.format.groups(self.columns)
        return each.movedim(-1, 0).reshape(each.shape[-1] // groups, -1)


# -- 8 bits ----------------------------------------------------------------------------------


def _nearest8(x: Tensor) -> Scales8:
    return Scales8(_storable(x.abs().amax(0) / MOST_CODE8))


def _search8(x: Tensor, h: Tensor) -> Scales8:
    """The scale that is best for the codes at rounding to nearest: there is little to be had."""
    first = _nearest8(x)
    codes = first.codes(x)
    fitted = _over((x * h).mul_(codes).sum(0), codes.square().mul_(h).sum(0))
    second = Scales8(_storable(fitted))
    better = _error(second, x, h) < _error(first, x, h)
    return Scales8(torch.where(better, second.scale, first.scale))


# -- 4 bits ----------------------------------------------------------------------------------


def _nearest4(x: Tensor) -> Scales4:
    """Each part's range is divided into 15 steps or somewhat fewer, as its step is whole."""
    least, most = x.amin(0), x.amax(0)
    scale = _storable(_fitting(x, (most - least) / MOST_CODE4))
    step = ((most - least) * _over(1.0 / MOST_CODE4, scale)).ceil().clamp(1, MOST_STEP)
    return Scales4(scale, step, _offset(least * _over(1.0, scale) + ZERO, step))


def _search4(x: Tensor, h: Tensor) -> Scales4:
    best = _nearest4(x)
    least_error = _error(best, x, h).sum(0)
    slope, start = _real_steps(x, h)
    fitting = _fitting(x, slope)
    for factor in _GRIDS:
        tried = _on_grid(x, h, _storable(fitting * factor), slope, start)
        error = _error(tried, x, h).sum(0)
        best = _choose(error < least_error, tried, best)
        least_error = least_error.minimum(error)
    return best


def _fitting(x: Tensor, slope: Tensor) -> Tensor:
    """The least scales [M] at which the grid reaches all numbers, and steps [P, M] are in range."""
    reach = x.abs().amax((0, 1)) / (MOST_POINT - ZERO + 0.5)
    return reach.maximum(slope.amax(0) / MOST_STEP)


def _real_steps(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The best step and start [P, M] of each part, as if neither had to be on a grid."""
    total = h.sum(0)
    mean = _over((x * h).sum(0), total)
    centred = x - mean  # no digits are lost where a part is far from 0
    least = centred.amin(0)
    span = centred.amax(0) - least
    weighted = centred * h
    best, slope, start = torch.full_like(span, -1.0), span / MOST_CODE4, least
    for count in _SPANS:
        found, step, base = _least_squares(centred, h, total, weighted, span / count, least)
        better = found > best
        slope, start = torch.where(better, step, slope), torch.where(better, base, start)
        best = best.maximum(found)
    _, slope, start = _least_squares(centred, h, total, weighted, slope, start)
    return slope, start + mean


def _least_squares(
    x: Tensor, h: Tensor, total: Tensor, weighted: Tensor, step: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """For the codes at a step and start: how much of the squares of x, whose weighted mean is 0,
    the best step and start explain; and which these are."""
    codes = (x - start).mul_(_over(1.0, step)).round_().clamp_(0, MOST_CODE4)
    product = (weighted * codes).sum(0)
    counted = codes * h
    mean = _over(counted.sum(0), total)
    square = counted.mul_(codes).sum(0) - mean.square() * total
    fitted = _over(product, square)
    return fitted * product, fitted, -fitted * mean


def _on_grid(x: Tensor, h: Tensor, scale: Tensor, slope: Tensor, start: Tensor) -> Scales4:
    """Of the whole steps below and above the real one, the better for each part."""
    ratio = slope * _over(1.0, scale)
    below, above = (
        _renewed(x, h, scale, step.clamp(1, MOST_STEP), start)
        for step in (ratio.floor(), ratio.ceil())
    )
    return _choose(_error(above, x, h) < _error(below, x, h), above, below)


def _renewed(x: Tensor, h: Tensor, scale: Tensor, step: Tensor, start: Tensor) -> Scales4:
    """With the offset that is best for the codes at a step and start."""
    inverse = _over(1.0, scale)
    first = Scales4(scale, step, _offset(start * inverse + ZERO, step))
    rest = (x - first.codes(x).mul_(step).mul_(scale)).mul_(h).sum(0)
    return Scales4(scale, step, _offset(_over(rest, h.sum(0)) * inverse + ZERO, step))


def _offset(point: Tensor, step: Tensor) -> Tensor:
    """The whole offset next to a point of the grid, such that all codes stay on the grid."""
    return point.round().clamp(min=0).minimum(MOST_POINT - MOST_CODE4 * step)


def _choose(first: Tensor, one: Scales4, other: Scales4) -> Scales4:
    """``one`` where ``first`` [M] or [P, M] says so; by part only for those of the same scale."""
    scale = one.scale if first.dim() == 2 else torch.where(first, one.scale, other.scale)
    step = torch.where(first, one.step, other.step)
    return Scales4(scale, step, torch.where(first, one.offset, other.offset))


# -- both ------------------------------------------------------------------------------------


def _error(scales: Scales, x: Tensor, h: Tensor) -> Tensor:
    """Weighted squared error of each group, or part."""
    return scales.numbers(scales.codes(x)).sub_(x).square_().mul_(h).sum(0)


def _over(a: Tensor | float, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    return torch.where(b == 0, 0.0, a / b)


def _storable(scale: Tensor) -> Tensor:
    """Scales [M] rounded to fp16; not to 0 unless they are, since that would lose the group."""
    least = torch.where(scale == 0, 0.0, _LEAST_SCALE)
    return scale.clamp(max=_MOST_SCALE).half().float().maximum(least)

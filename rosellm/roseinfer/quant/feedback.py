"""Codes that make up for one another's errors on the inputs that a matrix really sees.

What matters of a matrix W is its product with inputs x. Columns are rounded one after another, and
the error of each is taken up by those still to come, as much as their inputs go together: GPTQ
(arXiv:2210.17323), after "Optimal Brain Surgeon" (Hassibi and Stork, 1993). Scales come from the
same search as without, in each group as it is when its turn comes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rosellm.roseinfer.quant.formats import PART, Format
from rosellm.roseinfer.quant.scales import Scales, Scales4, Scales8, quantize
from rosellm.roseinfer.quant.tensor import (
    MOST_CODE4,
    MOST_CODE8,
    ZERO,
    QuantizedTensor,
    pack_pairs,
)

_DAMPING = 0.01
"""Of the mean square of the inputs: as if each had so much noise of its own."""


def quantize_for(weight: Tensor, format: Format, moment: Tensor) -> QuantizedTensor:
    """A matrix in few bits, for inputs like those that were seen.

    Args:
        weight: [N, K], any float dtype, finite.
        moment: [K, K], fp32: the mean of x x^T over inputs x.
    """
    columns = weight.shape[1]
    importance = moment.diagonal().clone()
    factor = _inverse_factor(moment)
    rest = weight.t().float().contiguous()  # [K, N]: a column of the matrix lies together
    codes = torch.empty_like(rest, dtype=torch.int8 if format.bits == 8 else torch.uint8)
    found: list[Scales] = []
    for start in range(0, columns, PART):
        part = slice(start, min(start + PART, columns))
        if start % format.group == 0:
            group = slice(start, start + format.group)
            found.append(_parameters(quantize(rest[group].t(), format, importance[group])))
        slope, base = _line(found[-1], start % format.group // PART)
        codes[part], error = _round(rest[part], factor[part, part], slope, base, format)
        rest[part.stop :] -= factor[part, part.stop :].t() @ error
    return _assemble(format, codes, found)


def _parameters(group: QuantizedTensor) -> Scales:
    """Of a matrix of one group a row."""
    scale = group.scales[:, 0].float()
    if group.steps is None or group.offsets is None:
        return Scales8(scale)
    return Scales4(scale, group.steps.t().float(), group.offsets.t().float())


def _inverse_factor(moment: Tensor) -> Tensor:
    """Upper triangular U with U^T U the inverse of the damped moment."""
    mean = moment.diagonal().mean().clamp(min=1e-20)
    damping = _DAMPING
    while True:
        damped = moment + torch.eye(len(moment)) * (damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper: Tensor
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper
        damping *= 10  # fp32 sees a direction without any input as one of less than none


def _line(scales: Scales, part: int) -> tuple[Tensor, Tensor]:
    """Slope and base [N] of the line from codes to numbers, in one part of a group."""
    if isinstance(scales, Scales8):
        return scales.scale, torch.zeros_like(scales.scale)
    return scales.scale * scales.step[part], scales.scale * (scales.offset[part] - ZERO)


def _round(
    columns: Tensor, factor: Tensor, slope: Tensor, base: Tensor, format: Format
) -> tuple[Tensor, Tensor]:
    """Round columns [C, N] in turn, each error passed on to the next ones; what they hold after
    that is of no more use.

    Returns:
        Codes [C, N], and errors [C, N] for the columns beyond.
    """
    low, high = (-MOST_CODE8, MOST_CODE8) if format.bits == 8 else (0, MOST_CODE4)
    inverse = torch.where(slope == 0, 0.0, 1.0 / slope)
    codes, errors = torch.empty_like(columns), torch.empty_like(columns)
    for index, column in enumerate(columns):
        torch.sub(column, base, out=codes[index])
        codes[index].mul_(inverse).round_().clamp_(low, high)
        torch.addcmul(base, codes[index], slope, out=errors[index])
        torch.sub(column, errors[index], out=errors[index]).div_(factor[index, index])
        columns[index + 1 :].addr_(factor[index, index + 1 :], errors[index], alpha=-1)
    return codes, errors


def _assemble(format: Format, codes: Tensor, found: list[Scales]) -> QuantizedTensor:
    columns = len(codes)
    scales = torch.stack([each.scale for each in found], dim=1).half()
    if format.bits == 8:
        return QuantizedTensor(format, columns, codes.t().contiguous(), scales)
    steps, offsets = (
        torch.cat([getattr(each, name) for each in found])[: -(-columns // PART)]
        for name in ("step", "offset")
    )
    return QuantizedTensor(
        format,
        columns,
        pack_pairs(codes.t()),
        scales,
        steps.t().to(torch.uint8).contiguous(),
        offsets.t().to(torch.uint8).contiguous(),
    )

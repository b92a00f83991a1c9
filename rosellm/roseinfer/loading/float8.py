"""Checkpoints in fp8 as Hugging Face has them: codes in e4m3, with their scales beside them.

A weight ``x.weight`` in e4m3 comes with ``x.weight_scale`` or ``x.weight_scale_inv``, by which its
codes are multiplied, both: one for all, one for each row, or one for each block. They are given on
as plain numbers, so whatever follows knows nothing of it, and may quantise them again. Scales for
activations, keys and values are left out: those are found as they come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.kernels import float8

_SCALES = ("_scale", "_scale_inv")
_UNUSED = (".input_scale", ".k_scale", ".v_scale", ".q_scale", ".input_scale_ub", ".output_scale")
_ROWS = 1024


def plain_tensors(
    tensors: Iterable[tuple[str, Tensor]], config: Mapping[str, Any], dtype: str
) -> Iterator[tuple[str, Tensor]]:
    """The same with every weight in e4m3 as the numbers that it means.

    Args:
        dtype: of those, such as "bfloat16".

    Raises:
        ModelError: a weight has no scale, or one that does not fit it.
    """
    block, kind = _block(config), getattr(torch, dtype)
    codes: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    for name, tensor in tensors:
        weight = next((name.removesuffix(s) for s in _SCALES if name.endswith(f".weight{s}")), None)
        if name.endswith(_UNUSED):
            continue
        if weight is None and tensor.dtype != float8.TYPE:
            yield name, tensor
            continue
        weight = weight or name
        (codes if weight == name else scales)[weight] = tensor
        if weight in codes and weight in scales:
            yield weight, _numbers(weight, codes.pop(weight), scales.pop(weight), block, kind)
    for name in (*codes, *scales):
        missing = "has no scale" if name in codes else "has a scale, and is not there in fp8"
        raise ModelError(f"tensor {shown(name)}: {missing}")


def _block(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a scale, where the config says so."""
    about = config.get("quantization_config")
    sizes = about.get("weight_block_size") if isinstance(about, dict) else None
    match sizes:
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
        case _:
            return None


def _numbers(
    name: str, codes: Tensor, scale: Tensor, block: tuple[int, int] | None, dtype: torch.dtype
) -> Tensor:
    scales, height = _by_row(name, codes, scale.float(), block)
    result = torch.empty(codes.shape, dtype=dtype)
    for start in range(0, len(codes), _ROWS):  # so that little fp32 is there at a time
        rows = slice(start, start + _ROWS)
        lines = torch.arange(start, min(start + _ROWS, len(codes))) // height
        result[rows] = codes[rows].float() * scales[lines]
    return result


def _by_row(
    name: str, codes: Tensor, scale: Tensor, block: tuple[int, int] | None
) -> tuple[Tensor, int]:
    """Scales [lines, 1 or K] of codes [N, K], and how many rows share a line."""
    if codes.dim() != 2:
        raise ModelError(f"tensor {shown(name)}: expected a matrix in fp8")
    rows, columns = codes.shape
    if scale.numel() == 1:
        return scale.reshape(1, 1), max(rows, 1)
    if scale.numel() == rows and len(scale) == rows:
        return scale.reshape(rows, 1), 1
    if block is not None and tuple(scale.shape) == (-(-rows // block[0]), -(-columns // block[1])):
        return scale.repeat_interleave(min(block[1], columns), dim=1)[:, :columns], block[0]
    found = f"{list(scale.shape)} scales for {list(codes.shape)} codes"
    raise ModelError(f"tensor {shown(name)}: {found}, and the config has no such blocks")

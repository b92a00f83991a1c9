"""The search for scales of 4 bits on the native kernels: the same as in ``scales``, many times as
fast; sums come in another order, so where candidates are as good as equal it may take the other."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from rosellm.roseinfer.kernels.cpu.library import Library, address
from rosellm.roseinfer.kernels.cpu.structs import Plain, Searched
from rosellm.roseinfer.quant.formats import Format, parts_of
from rosellm.roseinfer.quant.tensor import QuantizedTensor

_PLAIN = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def search4(
    library: Library, weight: Tensor, format: Format, importance: Tensor | None
) -> QuantizedTensor:
    """See ``scales.quantize``; the format has 4 bits, and the weight is on the CPU."""
    rows, columns = weight.shape
    weight = weight if weight.dtype in _PLAIN else weight.float()
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    counts = None if importance is None else importance.float().contiguous()
    codes = torch.zeros(rows, format.row_bytes(columns), dtype=torch.uint8)
    scales = torch.empty(rows, format.groups(columns))
    steps = torch.empty(rows, parts_of(columns), dtype=torch.uint8)
    offsets = torch.empty_like(steps)
    plain = Plain(_PLAIN[weight.dtype], 0, weight.data_ptr(), weight.stride(0))
    parts = (scales, steps, offsets, codes)
    found = Searched(rows, columns, format.group, *(address(part) for part in parts))
    library.c.rose_search4(byref(plain), address(counts), byref(found))
    return QuantizedTensor(format, columns, codes, scales.half(), steps, offsets)

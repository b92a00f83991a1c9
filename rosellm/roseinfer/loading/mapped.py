"""Tensors of a safetensors file as views of its mapping; what has been read is forgotten again.

The pages of a mapping count as the process's memory for as long as they are mapped in, so those
of a tensor are given back when the next one is asked for: whoever still holds the tensor may read
it as before, the kernel brings them back from the file.

Trusts the header: ``safetensors`` has looked at the file before.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rosellm.roseinfer import large_pages

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
    "BOOL": torch.bool,
}
_LENGTH_BYTES = 8


def mapped_tensors(path: Path) -> Iterator[tuple[str, Tensor | None]]:
    """Names and tensors in the order of the file; None for a type that has no views here."""
    with path.open("rb") as file:
        # copy-on-write, since torch warns of memory that cannot be written; nobody does
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    large_pages.prefer(memory)
    length = int.from_bytes(memory[:_LENGTH_BYTES], "little")
    header: dict[str, Any] = json.loads(memory[_LENGTH_BYTES : _LENGTH_BYTES + length])
    header.pop("__metadata__", None)
    base = _LENGTH_BYTES + length
    for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = (base + offset for offset in about["data_offsets"])
        dtype = _DTYPES.get(about["dtype"])
        if dtype is None or start % dtype.itemsize:
            yield name, None
            continue
        yield name, _view(memory, dtype, start, stop).view(about["shape"])
        _forget(memory, start, stop)


def _view(memory: mmap.mmap, dtype: torch.dtype, start: int, stop: int) -> Tensor:
    if start == stop:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(
        memory, dtype=dtype, count=(stop - start) // dtype.itemsize, offset=start
    )


def _forget(memory: mmap.mmap, start: int, stop: int) -> None:
    start -= start % mmap.PAGESIZE
    if hasattr(mmap, "MADV_DONTNEED") and stop > start:
        memory.madvise(mmap.MADV_DONTNEED, start, stop - start)

"""Writes a quantised model: config.json and model.safetensors of a folder that loads directly.

The tensors have our own names, fused as the engine holds them. They are written one by one, in any
order: all sizes are known before, so none has to wait in memory for the others.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rosellm.roseinfer import large_pages
from rosellm.roseinfer.layers.linear import Matrix
from rosellm.roseinfer.models.skeleton import Model
from rosellm.roseinfer.quant.formats import Recipe
from rosellm.roseinfer.quant.section import section

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3",
}
_LENGTH_BYTES = 8
_ALIGNMENT = 64

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class Store:
    """The files of one model, being written.

    Args:
        folder: exists, and is empty.
        model: not loaded yet; its formats are set (``Model.hold``).
        dtype: of what is not quantised.
        packed: whether quantised weights are in the kernels' layout.
    """

    def __init__(
        self, folder: Path, model: Model, dtype: torch.dtype, *, packed: bool = False
    ) -> None:
        self._folder = folder
        self._shapes = _shapes(model, dtype, packed)
        header, self._offsets = _layout(self._shapes)
        self._missing = set(self._shapes)
        self._file = (folder / "model.safetensors").open("wb")
        self._file.write(header)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor. Raises OSError."""
        shape, dtype = self._shapes[name]
        assert tuple(tensor.shape) == shape, name
        self._file.seek(self._offsets[name])
        values = tensor.to(dtype).contiguous().flatten().view(torch.uint8).cpu().numpy()
        self._file.write(values.data)
        self._missing.remove(name)

    def finish(self, config: Mapping[str, Any], recipe: Recipe, dtype: str) -> None:
        """Write the rest, once every tensor has been put.

        Args:
            config: of the model that this one was made from, "architectures" included.
            dtype: that its weights had.
        """
        assert not self._missing, self._missing
        self._file.flush()
        os.fsync(self._file.fileno())
        large_pages.hold_again(Path(self._file.name))
        text = json.dumps({**config, **section(recipe, dtype)}, indent=2)
        (self._folder / "config.json").write_text(text + "\n")

    def close(self) -> None:
        """Let go of the file, finished or not."""
        with contextlib.suppress(OSError):  # of a file that is given up; ``finish`` complained
            self._file.close()


def _shapes(model: Model, dtype: torch.dtype, packed: bool) -> Shapes:
    """Shape and type of every tensor, by name, in the order of the file.

    Packed weights come first, which are whole lines of the processor's cache, then wide numbers:
    so each tensor starts at a multiple of what it has to.
    """
    found = dict(_each_shape(model, dtype, packed))
    return dict(
        sorted(
            found.items(), key=lambda item: (not item[0].endswith(".packed"), -item[1][1].itemsize)
        )
    )


def _each_shape(
    model: Model, dtype: torch.dtype, packed: bool
) -> Iterator[tuple[str, tuple[tuple[int, ...], torch.dtype]]]:
    for name, module in model.own_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            shape = tuple(parameter.shape)
            full_name = f"{name}.{attribute}"
            if isinstance(module, Matrix) and module.format and attribute == "weight":
                for piece, about in module.kept_parts(packed).items():
                    yield f"{full_name}.{piece}", about
            else:
                yield full_name, (shape, dtype)


def _layout(shapes: Shapes) -> tuple[bytes, dict[str, int]]:
    """The file's beginning, and where in it each tensor begins."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets = {}
    end = 0
    for name, (shape, dtype) in shapes.items():
        offsets[name], end = end, end + math.prod(shape) * dtype.itemsize
        about = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [offsets[name], end]}
        header[name] = about
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % _ALIGNMENT)
    begin = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    return begin, {name: len(begin) + offset for name, offset in offsets.items()}

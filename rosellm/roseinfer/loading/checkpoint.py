"""A checkpoint on disk: what it is, and its tensors one at a time.

Knows nothing of architectures, and imports no torch. Everything read here is untrusted: nothing
is unpickled beyond torch's weights-only subset, and no path leaves the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.messages import Pooling
from rosellm.roseinfer.quant.formats import Recipe

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """Where weights come from.

    Attributes:
        architecture: name for the registry.
        config: the checkpoint's own config.
        dtype: type of the weights as stored, such as "float32".
        num_bytes: size of all tensors as stored.
        tensors: yields (name, tensor) pairs; tensors may be views of a mapped file.
        pooling: how vectors are made, where the checkpoint says so.
        recipe: how it is quantised, where it is one that rosellm wrote; its tensors are then
            for ``load_quantized``.
    """

    architecture: str
    config: Mapping[str, Any]
    dtype: str
    num_bytes: int
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    pooling: Pooling | None = None
    recipe: Recipe | None = None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    value = parse_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object")
    return value


def parse_json(path: Path) -> Any:
    """Any JSON value from a file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON ({shown(str(error))})") from None

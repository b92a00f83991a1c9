"""The checkpoint that rosetrainer saves: a dict with ``model`` and ``config``.

Read with ``weights_only`` (no code runs) and memory-mapped, so that optimizer state
beside the weights costs nothing.
"""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.loading.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

CONFIG_KEYS = frozenset(
    ["vocab_size", "max_position_embeddings", "n_layers", "n_heads", "d_model", "d_ff", "dropout"]
)


def open_torch_file(path: Path) -> Checkpoint:
    """Map the file and take its model and config."""
    content = _load(path)
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a dict with 'model' and 'config'")
    state, config = content.get("model"), content.get("config")
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise ModelError(f"{path}: 'model' is missing or is not a state dict of tensors")
    if not isinstance(config, dict):
        raise ModelError(f"{path}: 'config' is missing or is not a dict")
    if "architecture" in config:
        raise ModelError(f"{path}: only a GPT-2 is served as it is; `rosellm export` it first")
    ignored = sorted(str(key) for key in config if key not in CONFIG_KEYS)
    if ignored:
        logger.info("%s: config keys without effect: %s", path.name, shown(", ".join(ignored)))
    kinds: Counter[str] = Counter()
    for tensor in state.values():
        kinds[str(tensor.dtype)] += tensor.numel()
    dtype = kinds.most_common(1)[0][0].removeprefix("torch.") if kinds else "float32"
    return Checkpoint(
        architecture="RoseGPT",
        config=config,
        dtype=dtype,
        num_bytes=sum(t.numel() * t.itemsize for t in state.values()),
        tensors=lambda: iter(state.items()),
    )


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path}: holds objects other than tensors, numbers, strings and containers; "
            "save plain dicts (config too)"
        ) from None
    except Exception as error:  # torch's unpickler lets all kinds through for a damaged file
        reason = shown(str(error).split("\n")[0]) or type(error).__name__
        raise ModelError(f"{path}: not a readable torch checkpoint ({reason})") from None

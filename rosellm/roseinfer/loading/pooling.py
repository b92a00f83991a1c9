"""What a folder in the form of sentence-transformers says of its vectors.

``modules.json`` lists the stages from tokens to a vector; ``1_Pooling/config.json`` says how
hidden states become one. Vectors always come out at unit length here, whether or not a stage
for that is listed: a cosine does not see it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.loading.checkpoint import parse_json, read_json
from rosellm.roseinfer.messages import Pooling

_STAGES = {"Transformer", "Pooling", "Normalize"}

# By flag in most folders, by name in new ones.
_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
}


def read_pooling(folder: Path) -> Pooling | None:
    """How the folder's vectors are pooled, or None where it does not say.

    Raises:
        ModelError: in a way that is not built, or with further stages.
    """
    _check_stages(folder / "modules.json")
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return None
    modes = _modes(read_json(path))
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        found = shown(", ".join(modes)) or "none"
        raise ModelError(f"{path}: pooling {found}; supported: one of mean, cls and lasttoken")
    return _POOLINGS[modes[0]]


def _modes(config: dict[str, Any]) -> list[str]:
    named = config.get("pooling_mode")
    if isinstance(named, str):
        return [named]
    return [key for key, on in config.items() if key.startswith("pooling_mode_") and on]


def _check_stages(path: Path) -> None:
    """A dense stage, for instance, would make other vectors."""
    if not path.exists():
        return
    stages = parse_json(path)
    for stage in stages if isinstance(stages, list) else [stages]:
        name = str(stage.get("type") if isinstance(stage, dict) else stage)
        if name.rpartition(".")[2] not in _STAGES:
            raise ModelError(f"{path}: a stage of type {shown(repr(name))} is not supported")

"""Recognises the form of a checkpoint; each form has a module of its own."""

from __future__ import annotations

from pathlib import Path

from rosellm.roseinfer.errors import ModelError
from rosellm.roseinfer.loading.checkpoint import Checkpoint


def open_checkpoint(path: str) -> Checkpoint:
    """Recognise what is at ``path``: a Hugging Face folder or a ``.pt`` file."""
    source = Path(path).expanduser()
    if source.is_dir():
        from rosellm.roseinfer.loading.safetensors import open_folder

        return open_folder(source)
    if source.is_file():
        from rosellm.roseinfer.loading.torch_file import open_torch_file

        return open_torch_file(source)
    raise ModelError(f"{path}: no such model folder or checkpoint file")

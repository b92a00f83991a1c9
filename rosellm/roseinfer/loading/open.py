"""Recognises the form of a checkpoint; each form has a module of its own."""

from __future__ import annotations

import zipfile
from pathlib import Path

from rosellm.roseinfer.errors import ModelError
from rosellm.roseinfer.loading.checkpoint import Checkpoint
from rosellm.roseinfer.models.registry import check_supported

_NO_CHECKPOINTS = {
    ".gguf": "GGUF files cannot be read: pass a folder of the same model with safetensors",
    ".safetensors": "pass the folder that it is in, which has its config.json too",
}


def open_checkpoint(path: str) -> Checkpoint:
    """Recognise what is at ``path``: a Hugging Face folder or a ``.pt`` file."""
    source = Path(path).expanduser()
    if source.is_dir():
        from rosellm.roseinfer.loading.safetensors import open_folder

        return open_folder(source)
    if source.is_file():
        _check_file(source)
        from rosellm.roseinfer.loading.torch_file import open_torch_file

        return open_torch_file(source)
    raise ModelError(f"{path}: no such model folder or checkpoint file")


def check_checkpoint(path: str) -> None:
    """Find out, as far as can be without torch, whether a checkpoint can be served.

    Raises:
        ModelError: it cannot.
    """
    source = Path(path).expanduser()
    if source.is_file():
        _check_file(source)
    else:
        check_supported(open_checkpoint(path).config)


def check_file_name(file: Path) -> None:
    """Refuse a file that by its name is no checkpoint. Raises ModelError."""
    if file.suffix in _NO_CHECKPOINTS:
        raise ModelError(f"{file}: {_NO_CHECKPOINTS[file.suffix]}")


def _check_file(file: Path) -> None:
    check_file_name(file)
    if not _is_archive(file):
        raise ModelError(
            f"{file}: not a readable torch checkpoint: no zip archive, as torch.save writes since "
            "1.6; if it is incomplete, copy it again"
        )


def _is_archive(file: Path) -> bool:
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # Python says so of an end that claims to be on another disk
        return False

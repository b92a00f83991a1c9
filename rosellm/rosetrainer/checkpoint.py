"""The checkpoint file: one dict of plain containers and tensors, written whole or not at all.

``model``, ``optimizer``, ``step``, ``config``, ``scheduler``, ``scaler`` and ``extra``, loadable
without running code (``weights_only``).
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from rosellm.roseinfer.errors import ConfigError, shown
from rosellm.rosetrainer.files import one_line_errors, write_file

KEYS = ("model", "optimizer", "step", "config", "scheduler", "scaler", "extra")


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; the one that was there stays until the new one is on the disk.

    Raises:
        ConfigError: the disk does not take it.
    """

    def write(file: Any) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own, while it tidies up after the disk's
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    with one_line_errors(f"checkpoint {path}"):
        write_file(path, write)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        ConfigError: it is not there, or is not one of ours.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such checkpoint") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = shown(str(error).split("\n")[0])
        raise ConfigError(f"{path}: not a readable checkpoint ({reason})") from None
    if not isinstance(content, dict) or not content.keys() >= set(KEYS):
        raise ConfigError(f"{path}: expected a checkpoint with {', '.join(KEYS)}")
    return content

"""Weights that a fresh run begins with: a checkpoint's, or those of an exported folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rosellm.roseinfer.errors import ConfigError
from rosellm.rosetrainer.checkpoint import load_checkpoint
from rosellm.rosetrainer.export import hf_name
from rosellm.rosetrainer.model import LanguageModel

_PARTS = ("embed_tokens.stems", "embed_tokens.forms")


def take_weights(model: LanguageModel, path: Path) -> None:
    """Fill a model from a checkpoint or from a Hugging Face folder that ``export`` wrote.

    Raises:
        ConfigError: it is not there, or its weights are not this model's.
    """
    try:
        if path.is_dir():
            _from_folder(model, path)
        else:
            model.load_state_dict(load_checkpoint(path)["model"])
    except (KeyError, RuntimeError):
        raise ConfigError(
            f"run.start_from: the weights of {path} do not fit this model and tokenizer"
        ) from None


@torch.no_grad()
def _from_folder(model: LanguageModel, folder: Path) -> None:
    weights = _read(folder / "model.safetensors")
    for name, parameter in model.named_parameters():
        if name.endswith(_PARTS):  # the folder has the sum, which stands in the tokens' own part
            parameter.zero_()
            continue
        there, as_stored = hf_name(name, parameter)
        source = weights[there]
        if source.shape != as_stored.shape:
            raise RuntimeError(there)
        as_stored.copy_(source)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"run.start_from: {file}: cannot be read ({error})") from None

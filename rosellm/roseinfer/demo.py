"""The small model that comes with rosellm, and is meant wherever no model is named.

Knows where its folder is and that its files are there, not what is in them.
"""

from __future__ import annotations

from pathlib import Path

from rosellm.roseinfer.errors import ConfigError

NAME = "rosellm-demo"
ABOUT = "the small demo model that comes with rosellm"

_FOLDER = Path(__file__).parents[1] / "data" / NAME
_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def demo_model() -> str:
    """The demo model's folder.

    Raises:
        ConfigError: this installation lacks it.
    """
    if not all((_FOLDER / file).is_file() for file in _FILES):
        raise ConfigError(
            "which model? pass a folder, a checkpoint or a hub id:"
            " this installation carries no demo model"
        )
    return str(_FOLDER)


def is_demo(model: str) -> bool:
    """Whether a path is the demo model's folder."""
    return Path(model) == _FOLDER


def model_or_demo(model: str | None, tokenizer: str | None = None) -> str:
    """The model that was asked for; the demo model for none, and by its name.

    A folder of that name in the working directory comes first, as it does for a hub id.

    Raises:
        ConfigError: a tokenizer is given and no model that it could be for, or there is no
            demo model.
    """
    if model is None and tokenizer is not None:
        raise ConfigError("which model? the demo model has its own tokenizer: name the other one")
    if model is None or (model == NAME and not Path(NAME).exists()):
        return demo_model()
    return model

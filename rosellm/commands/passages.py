"""A text file as token ids, for commands that let a model read one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rosellm.roseinfer.config import ModelConfig
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.text.load import load_tokenizer

if TYPE_CHECKING:
    from rosellm.roseinfer.engine.passage import Passage


def read_text(file: str | Path, flag: str) -> str:
    """The text. Raises ConfigError, which names the flag."""
    try:
        return Path(file).expanduser().read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag} {file}: not UTF-8 text: byte {error.start} is not") from None
    except OSError as error:
        raise ConfigError(f"{flag} {file}: {error.strerror or error}") from None


def tokenized(model: ModelConfig, text: str, most: int) -> Passage:
    """The first tokens of a text, as the model's tokenizer has them; each window begins as every
    text does for this model."""
    from rosellm.roseinfer.engine.passage import Passage

    tokenizer = load_tokenizer(model.tokenizer or model.model)
    ids = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
    begins = tokenizer.bos_id is not None and tokenizer.bos_id in tokenizer.encode("")
    return Passage(ids[:most], tokenizer.bos_id if begins else None)


def at_least_two(value: str) -> int:
    """A number of tokens, as argparse reads it."""
    if not value.isdecimal() or int(value) < 2:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 2, not {value}")
    return int(value)

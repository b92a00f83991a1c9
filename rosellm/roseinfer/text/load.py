"""The one function that loads a tokenizer.

Each form on disk has a module of its own; this one knows their names, not
their libraries, which are imported when a tokenizer of that form is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rosellm.roseinfer.errors import ModelError, RosellmError, shown
from rosellm.roseinfer.text.tokenizer import Tokenizer
from rosellm.roseinfer.text.tokenizer_config import TokenizerConfig, read_tokenizer_config
from rosellm.roseinfer.text.tokenizer_files import find_tokenizer_file

MOST_TOKENS = 1 << 22
"""Ids of a vocabulary: many times what any model has. All of them are gone through at start."""


def load_tokenizer(source: str, chat_template: str | None = None) -> Tokenizer:
    """Load the tokenizer at ``source``, a folder or a file.

    Args:
        chat_template: another template than the model's own, or the name of one of its own.

    Raises:
        ModelError: nothing is there, or a file is broken.
    """
    path = find_tokenizer_file(source)
    config = _read_config(path, chat_template)
    try:
        return _checked(path, _load(path, config))
    except (RosellmError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the libraries let all kinds through, a panic of Rust's too
        reason = shown(str(error) or type(error).__name__)
        raise ModelError(f"{path} cannot be used as a tokenizer: {reason}") from None


def check_chat_template(source: str, chat_template: str) -> None:
    """Find out, before anything is loaded, whether ``load_tokenizer`` will find this template.

    Raises:
        ModelError: it will not; one line that names the file.
    """
    _read_config(find_tokenizer_file(source), chat_template)


def _read_config(path: Path, chat_template: str | None) -> TokenizerConfig:
    config = read_tokenizer_config(path.parent)
    if chat_template is None:
        return config
    from rosellm.roseinfer.text.chat import choose_template

    return replace(config, chat_template=choose_template(chat_template, config.chat_template))


def _load(path: Path, config: TokenizerConfig) -> Tokenizer:
    if path.suffix != ".json":
        return _load_model_file(path, config)
    from rosellm.roseinfer.text.huggingface_form import load_gpt2_files, load_tokenizer_json

    load = load_gpt2_files if path.name == "vocab.json" else load_tokenizer_json
    return load(path, config)


def _checked(path: Path, tokenizer: Tokenizer) -> Tokenizer:
    if tokenizer.vocab_size > MOST_TOKENS:
        last = tokenizer.vocab_size - 1
        raise ModelError(f"{path}: token id {last} is too large; ids go up to {MOST_TOKENS - 1}")
    return tokenizer


def _load_model_file(path: Path, config: TokenizerConfig) -> Tokenizer:
    """Two forms go by the name ``tokenizer.model``: SentencePiece's and tiktoken's ranks."""
    from rosellm.roseinfer.text.tiktoken_form import holds_ranks, load_tiktoken

    if holds_ranks(path):
        return load_tiktoken(path, config)
    from rosellm.roseinfer.text.sentencepiece_form import load_sentencepiece

    return load_sentencepiece(path, config)

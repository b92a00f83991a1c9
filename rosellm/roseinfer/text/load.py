"""The one function that loads a tokenizer.

Each form on disk has a module of its own; this one knows their names, not
their libraries, which are imported when a tokenizer of that form is loaded.
"""

from __future__ import annotations

from rosellm.roseinfer.text.tokenizer import Tokenizer
from rosellm.roseinfer.text.tokenizer_config import read_tokenizer_config
from rosellm.roseinfer.text.tokenizer_files import find_tokenizer_file


def load_tokenizer(source: str) -> Tokenizer:
    """Load the tokenizer at ``source``: a folder, a file, or a hub id (``org/name[@revision]``).

    Raises:
        ModelError: nothing is there, the hub cannot be reached, or a file is broken.
    """
    path = find_tokenizer_file(source)
    config = read_tokenizer_config(path.parent)
    if path.suffix != ".json":
        from rosellm.roseinfer.text.sentencepiece_form import load_sentencepiece

        return load_sentencepiece(path, config)
    from rosellm.roseinfer.text.huggingface_form import load_gpt2_files, load_tokenizer_json

    load = load_gpt2_files if path.name == "vocab.json" else load_tokenizer_json
    return load(path, config)

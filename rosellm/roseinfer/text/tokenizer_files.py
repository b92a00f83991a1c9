"""Finds a tokenizer's files: in a folder, beside a file, or on the Hugging Face hub.

Knows file names only, not what is in the files.
"""

from __future__ import annotations

import re
from pathlib import Path

from rosellm.roseinfer.errors import ModelError

# In order of preference: the first is the most explicit about how text is to be cut.
_MAIN_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_HUB_PATTERNS = [
    *_MAIN_FILES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
]
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")


def find_tokenizer_file(source: str) -> Path:
    """The main file of the tokenizer at ``source``; the others lie beside it.

    Args:
        source: a folder, a file, or a hub id with an optional ``@revision``.

    Raises:
        ModelError: there is no such path, the folder holds no tokenizer, or the hub failed.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _main_file_for(path)
    if path.is_dir():
        return _main_file_in(path)
    hub_id = _HUB_ID.fullmatch(source)
    if hub_id is None or source.startswith("."):
        raise ModelError(f"no tokenizer at {source}: no such file or folder")
    return _main_file_in(_download(hub_id["repo"], hub_id["revision"]))


def _main_file_in(folder: Path) -> Path:
    for name in _MAIN_FILES:
        if (folder / name).is_file():
            return _main_file_for(folder / name)
    raise ModelError(
        f"no tokenizer in {folder}: expected tokenizer.json, tokenizer.model, "
        "or vocab.json with merges.txt"
    )


def _main_file_for(path: Path) -> Path:
    if path.name not in ("vocab.json", "merges.txt"):
        return path
    for name in ("vocab.json", "merges.txt"):
        if not path.with_name(name).is_file():
            raise ModelError(f"{path} needs {name} beside it, which is missing")
    return path.with_name("vocab.json")


def _download(repo: str, revision: str | None) -> Path:
    """Folder of the repository's tokenizer files, from the hub or its local cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_HUB_PATTERNS))
    except Exception as error:  # the hub client raises errors of half a dozen libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"cannot get the tokenizer of {repo!r}, which is no local path, from the hub: {reason} "
            "(pass a local folder, or set HF_TOKEN for a gated model)"
        ) from error

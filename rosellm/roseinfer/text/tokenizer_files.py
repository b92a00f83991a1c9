"""Finds a tokenizer's files: in a folder, beside a file, or among those of a repository.

Knows file names only, not what is in the files.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from rosellm.roseinfer.errors import ModelError

# In order of preference: the first is the most explicit about how text is to be cut.
MAIN_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "*.tiktoken")
_BESIDE = (
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)


def tokenizer_files(available: Iterable[str]) -> list[str]:
    """Which of a repository's files make up its tokenizer, the main one first; none if none do."""
    names = sorted(available)
    main = _first(names)
    if main is None:
        return []
    beside = [name for name in names if any(fnmatchcase(name, known) for known in _BESIDE)]
    return [main, *beside]


def _first(names: Iterable[str]) -> str | None:
    """The main file to prefer among several."""
    for pattern in MAIN_FILES:
        for name in names:
            if "/" not in name and fnmatchcase(name, pattern):
                return name
    return None


def find_tokenizer_file(source: str) -> Path:
    """The main file of the tokenizer at ``source``; the others lie beside it.

    Args:
        source: a folder or a file.

    Raises:
        ModelError: there is no such path, or the folder holds no tokenizer.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _main_file_for(path)
    if path.is_dir():
        return _main_file_in(path)
    raise ModelError(f"no tokenizer at {source}: no such file or folder")


def _main_file_in(folder: Path) -> Path:
    name = _first(sorted(path.name for path in folder.iterdir()))
    if name is None:
        raise ModelError(
            f"no tokenizer in {folder}: expected tokenizer.json, tokenizer.model, "
            "a .tiktoken file, or vocab.json with merges.txt"
        )
    return _main_file_for(folder / name)


def _main_file_for(path: Path) -> Path:
    if path.name not in ("vocab.json", "merges.txt"):
        return path
    for name in ("vocab.json", "merges.txt"):
        if not path.with_name(name).is_file():
            raise ModelError(f"{path} needs {name} beside it, which is missing")
    return path.with_name("vocab.json")

"""Reads the small files beside a tokenizer: special tokens, chat templates, bos and eos.

These files have grown for years, so one fact can have several homes. Where two
disagree, the newer home wins: ``tokenizer_config.json`` over
``special_tokens_map.json`` and ``added_tokens.json``, ``chat_template.jinja``
over both of its elders.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rosellm.roseinfer.errors import ModelError, shown

MOST_TOKENS = 1 << 24
"""Ids beyond are no token's of any model."""


@dataclass(frozen=True)
class AddedToken:
    """A token that was added to a finished vocabulary.

    Attributes:
        lstrip, rstrip: whether it swallows the white space before or after it.
        normalized: whether it is looked for in the normalised text, not in the text as it stands.
        single_word: whether it counts only where no letter touches it.
    """

    id: int
    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class TokenizerConfig:
    """What the files beside a tokenizer say; ``None`` where they say nothing.

    Attributes:
        special_tokens: ``bos_token`` and its like by name.
        also_special: special tokens that have no such name.
        legacy: Hugging Face's name for SentencePiece's older habit of putting a space before the
            text after every special token, not only before the first text.
    """

    special_tokens: dict[str, str] = field(default_factory=dict)
    also_special: tuple[str, ...] = ()
    chat_template: str | dict[str, str] | None = None
    add_bos: bool | None = None
    add_eos: bool | None = None
    legacy: bool = True
    tokenizer_class: str | None = None
    added_tokens: tuple[AddedToken, ...] = ()


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read what lies in ``folder``; every file is optional.

    Raises:
        ModelError: a file that is there cannot be read.
    """
    try:
        return _parse(folder)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = shown(repr(error))
        raise ModelError(f"{folder / 'tokenizer_config.json'} is malformed: {reason}") from error


def _parse(folder: Path) -> TokenizerConfig:
    config = _read_json(folder / "special_tokens_map.json")
    config |= _read_json(folder / "tokenizer_config.json")
    tokens, others = _special_tokens(config), _also_special(config)
    return TokenizerConfig(
        special_tokens=tokens,
        also_special=others,
        chat_template=_chat_template(folder, config),
        add_bos=config.get("add_bos_token"),
        add_eos=config.get("add_eos_token"),
        legacy=config.get("legacy") is not False,
        tokenizer_class=_text(config.get("tokenizer_class")),
        added_tokens=_added_tokens(folder, config, {*tokens.values(), *others}),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {shown(str(error))}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} should hold a JSON object")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {shown(str(error))}") from None


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """``bos_token`` and its like by name."""
    named = {name: _content(value) for name, value in config.items() if name.endswith("_token")}
    return {name: content for name, content in named.items() if content is not None}


def _also_special(config: dict[str, Any]) -> tuple[str, ...]:
    """The older name of this list, and the newer one; the newer may give names to some."""
    found: list[str | None] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        tokens = config.get(key) or ()
        found += map(_content, tokens.values() if isinstance(tokens, dict) else tokens)
    return tuple(content for content in found if content is not None)


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"a text is expected, not {value!r}")
    return value


def _content(token: Any) -> str | None:
    """A token is written as its string, or as an AddedToken object that holds it."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _added_tokens(
    folder: Path, config: dict[str, Any], special: set[str]
) -> tuple[AddedToken, ...]:
    decoder = config.get("added_tokens_decoder")
    if decoder is None:
        older = _read_json(folder / "added_tokens.json")
        tokens = [_added_token(id, {"content": text}, special) for text, id in older.items()]
    else:
        tokens = [_added_token(int(id), entry, special) for id, entry in decoder.items()]
    return tuple(sorted(tokens, key=lambda token: token.id))


def _added_token(id: Any, entry: dict[str, Any], special: set[str]) -> AddedToken:
    content = entry["content"]
    if not isinstance(content, str) or not isinstance(id, int) or not 0 <= id < MOST_TOKENS:
        raise ValueError(f"added token {content!r} with id {id!r}")
    is_special = bool(entry.get("special")) or content in special
    flags = {name: bool(entry.get(name)) for name in ("lstrip", "rstrip", "single_word")}
    normalized = bool(entry.get("normalized", not is_special))
    return AddedToken(id, content, is_special, normalized=normalized, **flags)


def _chat_template(folder: Path, config: dict[str, Any]) -> str | dict[str, str] | None:
    named = {
        path.stem: _read_text(path)
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))
    }
    default = _default_template(folder, config)
    if isinstance(default, dict):
        return default | named
    if named and default is not None:
        return {"default": default} | named
    return named or default


def _default_template(folder: Path, config: dict[str, Any]) -> str | dict[str, str] | None:
    if (folder / "chat_template.jinja").is_file():
        return _read_text(folder / "chat_template.jinja")
    template = config.get("chat_template")
    if template is None:
        template = _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        if not all(isinstance(each, str) for each in (*template, *template.values())):
            raise ValueError("chat templates are texts with names")
        return template
    return _text(template)

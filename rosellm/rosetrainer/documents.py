"""Documents out of files, as pieces of text with a mark on those that are to be learned.

A document is plain text, all of it to be learned, or a conversation that a chat template has
rendered, of which the assistant's turns are; ``"learn": "all"`` in its row makes it the whole, for
conversations between two people. It knows nothing of tokens.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TextIO, TypeAlias

from rosellm.roseinfer.errors import ConfigError, RequestError, shown
from rosellm.roseinfer.text.chat import ChatTemplate

CHUNK = 1 << 16  # characters of plain text that are tokenised at a time, about

Split: TypeAlias = Literal["train", "valid"]


@dataclass(frozen=True)
class Segment:
    """Text that is tokenised by itself, so that a prompt's tokens are those a server makes."""

    text: str
    learn: bool


@dataclass(frozen=True)
class Document:
    """Segments in order. Plain text takes the tokenizer's bos and eos, a chat its template's."""

    segments: tuple[Segment, ...]
    kind: Literal["file", "row", "chat"]


def read_documents(path: Path, template: ChatTemplate) -> Iterator[Document]:
    """Documents of a ``.txt`` (one) or ``.jsonl`` (one a row) file, either also with ``.gz``.

    Raises:
        ConfigError: it cannot be read; the message names the file, and the row.
    """
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    try:
        with _open(path) as file:
            if suffixes[-1:] == [".jsonl"]:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _row(f"{path}:{number}", line, template)
            elif suffixes[-1:] == [".txt"]:
                yield plain(file.read(), "file")
            else:
                raise ConfigError(f"{path}: a .txt or .jsonl file is expected, also with .gz")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such data file") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {shown(str(error))}") from None


def _open(path: Path) -> TextIO:
    open_: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    file: TextIO = open_(path, "rt", encoding="utf-8")
    return file


def _row(where: str, line: str, template: ChatTemplate) -> Document:
    try:
        row = json.loads(line)
        line.encode()
        json.dumps(row, ensure_ascii=False).encode()  # a lone surrogate is not text
    except ValueError as error:
        raise ConfigError(f"{where}: not a row of JSON text: {shown(str(error))}") from None
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return plain(row["text"], "row")
    if isinstance(row, dict) and isinstance(row.get("messages"), list) and row["messages"]:
        return _chat(where, row, template)
    raise ConfigError(f'{where}: a row has either "text" or "messages"')


def plain(text: str, kind: Literal["file", "row"]) -> Document:
    """Plain text, cut behind line ends so that no piece is long."""
    segments, start = [], 0
    while start < len(text):
        end = text.find("\n", start + CHUNK) + 1 or len(text)
        segments.append(Segment(text[start:end], learn=True))
        start = end
    return Document(tuple(segments), kind)


def _chat(where: str, row: dict[str, Any], template: ChatTemplate) -> Document:
    learn = row.get("learn", "assistant")
    if learn not in ("assistant", "all"):
        raise ConfigError(f'{where}: "learn" is "assistant" or "all"')
    try:
        segments = tuple(chat_segments(row["messages"], row.get("tools"), template))
        if learn == "all":
            segments = tuple(replace(segment, learn=True) for segment in segments)
        return Document(segments, "chat")
    except (RequestError, ConfigError) as error:
        raise ConfigError(f"{where}: {error}") from None
    except (AttributeError, TypeError):
        raise ConfigError(f'{where}: "messages" is a list of objects with a role') from None


def chat_segments(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, template: ChatTemplate
) -> Iterator[Segment]:
    """The rendered conversation, cut where the assistant's turns begin and end.

    A turn begins behind what the template writes to prompt for it. Space behind the turn's end,
    such as ChatML's line end, is never generated, so it is not learned.

    Raises:
        ConfigError: the template renders a conversation's start differently from the whole.
    """
    whole = template.render(messages, add_generation_prompt=False, tools=tools)
    done = 0
    for index, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        start = len(_rendered(whole, messages[:index], tools, template, prompt=True))
        turn = _rendered(whole, messages[: index + 1], tools, template, prompt=False)
        end = len(turn.rstrip())
        if done < start:
            yield Segment(whole[done:start], learn=False)
        yield Segment(whole[start:end], learn=True)
        done = end
    if done < len(whole):
        yield Segment(whole[done:], learn=False)


def _rendered(
    whole: str,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    template: ChatTemplate,
    *,
    prompt: bool,
) -> str:
    text = template.render(messages, add_generation_prompt=prompt, tools=tools)
    if not whole.startswith(text):
        raise ConfigError(
            "the chat template renders the start of this conversation in another way than the "
            "whole, so that the assistant's turns cannot be told"
        )
    return text

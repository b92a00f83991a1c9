"""Tokenizers that the ``sentencepiece`` library runs: ``tokenizer.model``.

The library encodes plain text. What Hugging Face's and Mistral's tokenizers
add round it is here: special tokens written out in a text, tokens added to the
vocabulary later, bos and eos. Decoding is ours too, since the library cannot
show special tokens; for all else it gives what the library gives (a test).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.text.tokenizer import Tokenizer, check_unicode
from rosellm.roseinfer.text.tokenizer_config import AddedToken, TokenizerConfig

_SPACE = "\u2581"
# Protobuf messages merge when concatenated: this is normalizer_spec { add_dummy_prefix: false }.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
_EACH_BYTE = "rosellm-each-byte"


def _replace_one_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd", error.start + 1


# sentencepiece shows each byte of broken UTF-8 as one U+FFFD; Python's "replace" joins some.
codecs.register_error(_EACH_BYTE, _replace_one_byte)


def load_sentencepiece(path: Path, config: TokenizerConfig) -> SentencePieceTokenizer:
    """Load a ``tokenizer.model``. Raises ModelError if it cannot be read."""
    try:
        proto = path.read_bytes()
        processor = SentencePieceProcessor(model_proto=proto)
        pieces = processor.get_piece_size()
    except Exception as error:  # the library raises RuntimeError for every fault
        raise ModelError(
            f"{path} is not a readable SentencePiece model: {shown(str(error))}"
        ) from None
    if not pieces:
        raise ModelError(f"{path} is not a readable SentencePiece model: it has no pieces")
    return SentencePieceTokenizer(processor, config)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model behind this package's interface."""

    def __init__(self, processor: SentencePieceProcessor, config: TokenizerConfig) -> None:
        self._processor = processor
        self._legacy = config.legacy
        self._added = {token.content: token for token in _marked_tokens(processor, config)}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self._bytes = self._byte_table()
        self.vocab_size = len(self._bytes)
        named = _named(processor) | config.special_tokens
        self.special_ids = self._find_special_ids((*named.values(), *config.also_special))
        self._adopt(replace(config, special_tokens=named))
        bos = [] if self.bos_id is None else [self.bos_id]
        self._prefix = bos if config.add_bos is not False else []
        self._suffix = list(self.eos_ids) if config.add_eos else []

    def _byte_table(self) -> list[bytes]:
        """Bytes of every id; none for an id that nothing stands for."""
        pieces = {id: _piece_bytes(self._processor, id) for id in range(len(self._processor))}
        added = {token.id: token.content.encode() for token in self._added.values()}
        table = pieces | added
        return [table.get(id, b"") for id in range(1 + max(table))]

    def _find_special_ids(self, named: Iterable[str]) -> frozenset[int]:
        """Ids of tokens that are marked as special or that the config names."""
        marked = {token.id for token in self._added.values() if token.special}
        known = {self.token_to_id(token) for token in named}
        return frozenset(marked | {id for id in known if id is not None})

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[int]:
        check_unicode(text)
        ids = self._parse(text) if parse_special else self._processor.encode(text)
        return [*self._prefix, *ids, *self._suffix] if add_special_tokens else [*ids]

    def _parse(self, text: str) -> Iterator[int]:
        """Ids of a text in which special tokens may be written out."""
        parts = self._special.split(text)  # text, token, text, ..., token, text
        tokens = [None, *(self._added[part] for part in parts[1::2]), None]
        for part, before, after in zip(parts[::2], tokens, tokens[1:], strict=False):
            if before is not None:
                yield before.id
            yield from self._encode_between(part, before, after)

    def _encode_between(
        self, text: str, before: AddedToken | None, after: AddedToken | None
    ) -> list[int]:
        if before is not None and before.rstrip:
            text = text.lstrip()
        if after is not None and after.lstrip:
            text = text.rstrip()
        first = before is None or self._legacy
        ids: list[int] = (self._processor if first else self._continuing).encode(text)
        return ids

    @cached_property
    def _continuing(self) -> SentencePieceProcessor:
        """The same model, but putting no space before a text."""
        proto = self._processor.serialized_model_proto() + _NO_DUMMY_PREFIX
        return SentencePieceProcessor(model_proto=proto)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        hidden = self.special_ids if skip_special_tokens else ()
        visible = [id for id in ids if id not in hidden and id < self.vocab_size]
        text = b"".join([self._bytes[id] for id in visible]).decode("utf-8", _EACH_BYTE)
        if not visible or visible[0] not in self._stripped_ids:
            return text
        return text.lstrip(" ") if self._strips_all else text[1:]

    @cached_property
    def _stripped_ids(self) -> frozenset[int]:
        """Pieces that lose their leading space at a text's start: encoding had put it there."""
        if self._processor.decode_pieces([_SPACE]):
            return frozenset()
        pieces = range(len(self._processor))
        return frozenset(id for id in pieces if self._processor.id_to_piece(id)[0] == _SPACE)

    @cached_property
    def _strips_all(self) -> bool:
        """Whether the model takes no notice of repeated spaces, and so drops all at the start."""
        return not self._processor.decode_pieces([_SPACE, _SPACE])

    def token_bytes(self, id: int) -> bytes:
        return self._bytes[id] if id < self.vocab_size else b""

    def token_to_id(self, token: str) -> int | None:
        if token in self._added:
            return self._added[token].id
        id = self._processor.piece_to_id(token)
        return id if self._processor.id_to_piece(id) == token else None


def _marked_tokens(
    processor: SentencePieceProcessor, config: TokenizerConfig
) -> Iterator[AddedToken]:
    """Tokens that are cut out of a text before the model sees it."""
    for id in range(len(processor)):
        if processor.is_control(id) or processor.is_unknown(id):
            yield AddedToken(id, processor.id_to_piece(id), special=True)
    yield from config.added_tokens


def _named(processor: SentencePieceProcessor) -> dict[str, str]:
    """The model's own bos, eos and unk; a config beside it may name others."""
    ids = {
        "bos_token": processor.bos_id(),
        "eos_token": processor.eos_id(),
        "unk_token": processor.unk_id(),
    }
    return {name: processor.id_to_piece(id) for name, id in ids.items() if id >= 0}


def _piece_bytes(processor: SentencePieceProcessor, id: int) -> bytes:
    piece = processor.id_to_piece(id)
    if processor.is_byte(id):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(_SPACE, " ").encode()

"""Tokenizers that the ``tokenizers`` library runs: ``tokenizer.json``, or GPT-2's two files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Pipeline

from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.text.tokenizer import Tokenizer, check_unicode
from rosellm.roseinfer.text.tokenizer_config import AddedToken as Token
from rosellm.roseinfer.text.tokenizer_config import TokenizerConfig

# Classes whose vocab.json and merges.txt are cut by GPT-2's own pattern. Others (Qwen2, RoBERTa)
# have the same two files and another pattern or template: guessing would give wrong ids.
_GPT2_CLASSES = ("GPT2", "CodeGen")


def load_tokenizer_json(path: Path, config: TokenizerConfig) -> HuggingFaceTokenizer:
    """Load a ``tokenizer.json``.

    Raises:
        ModelError: it cannot be read, or the config's added tokens do not fit it.
    """
    try:
        pipeline = Pipeline.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for every fault
        raise ModelError(f"{path} is not a readable tokenizer.json: {shown(str(error))}") from None
    absent = (token for token in config.added_tokens if pipeline.token_to_id(token.content) is None)
    add_tokens(pipeline, path, absent)
    return HuggingFaceTokenizer(pipeline, config)


def load_gpt2_files(path: Path, config: TokenizerConfig) -> HuggingFaceTokenizer:
    """Load ``vocab.json``, with ``merges.txt`` beside it, as GPT-2's byte-level BPE.

    Raises:
        ModelError: a file cannot be read, or the config names another kind of tokenizer.
    """
    name = config.tokenizer_class
    if name is not None and not name.startswith(_GPT2_CLASSES):
        raise ModelError(f"{path.parent} has a {shown(name)}, which needs a tokenizer.json")
    merges = path.with_name("merges.txt")
    try:
        pipeline = Pipeline(models.BPE.from_file(str(path), str(merges)))
    except Exception as error:  # the library raises plain Exception for every fault
        raise ModelError(f"{path} with {merges.name} cannot be read: {shown(str(error))}") from None
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    if pipeline.token_to_id("<|endoftext|>") is not None:
        pipeline.add_special_tokens(["<|endoftext|>"])
    add_tokens(pipeline, path, config.added_tokens)
    return HuggingFaceTokenizer(pipeline, config)


def add_tokens(pipeline: Pipeline, path: Path, tokens: Iterable[Token]) -> None:
    """Add tokens that the config beside ``path`` lists to the pipeline.

    Raises:
        ModelError: one cannot have the id that it is listed with.
    """
    for token in tokens:
        added = AddedToken(
            token.content,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
            single_word=token.single_word,
            special=token.special,
        )
        (pipeline.add_special_tokens if token.special else pipeline.add_tokens)([added])
        if pipeline.token_to_id(token.content) != token.id:
            content = shown(repr(token.content))
            raise ModelError(f"{path}: added token {content} cannot have id {token.id}")


class HuggingFaceTokenizer(Tokenizer):
    """A pipeline of the ``tokenizers`` library behind this package's interface."""

    def __init__(self, pipeline: Pipeline, config: TokenizerConfig) -> None:
        # Both are settings for training, which some published files still carry.
        pipeline.no_truncation()
        pipeline.no_padding()
        self._pipeline = pipeline
        self.vocab_size = 1 + max(pipeline.get_vocab().values(), default=-1)
        self.special_ids = self._mark_special(config)
        kinds = _decoder_kinds(pipeline)
        self._byte_level = "ByteLevel" in kinds
        self._byte_tokens = self._find_byte_tokens() if "ByteFallback" in kinds else {}
        # The ByteFallback decoder turns every byte of a run that is not UTF-8 into U+FFFD.
        self.byte_run_ids = frozenset(self._byte_tokens)
        self._adopt(config)
        self._prefix, self._suffix = self._missing_ends(config)

    def _mark_special(self, config: TokenizerConfig) -> frozenset[int]:
        """All special ids. A token that the config names is one, even if unmarked elsewhere."""
        named = (*config.special_tokens.values(), *config.also_special)
        known = {token: self.token_to_id(token) for token in named}
        ids = {token: id for token, id in known.items() if id is not None}
        self._pipeline.add_special_tokens(list(ids))
        added = self._pipeline.get_added_tokens_decoder()
        return frozenset(ids.values()) | {id for id, token in added.items() if token.special}

    def _find_byte_tokens(self) -> dict[int, bytes]:
        ids = {byte: self.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
        return {id: bytes([byte]) for byte, id in ids.items() if id is not None}

    def _missing_ends(self, config: TokenizerConfig) -> tuple[list[int], list[int]]:
        """Bos and eos that the config asks for and the pipeline's template does not add itself."""
        template = self._pipeline.encode("").ids
        bos = [self.bos_id] if config.add_bos and self.bos_id is not None else []
        eos = list(self.eos_ids) if config.add_eos else []
        return (
            [id for id in bos if id not in template[:1]],
            [id for id in eos if id not in template[-1:]],
        )

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[int]:
        check_unicode(text)
        pipeline = self._pipeline if parse_special else self._plain_pipeline
        # Of the library's ways to encode, only the batch ones let go of the GIL.
        [encoding] = pipeline.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return [*self._prefix, *ids, *self._suffix] if add_special_tokens else ids

    @cached_property
    def _plain_pipeline(self) -> Pipeline:
        """A copy that reads special tokens as text: a setting, so not to be switched in use."""
        pipeline = Pipeline.from_str(self._pipeline.to_str())
        pipeline.encode_special_tokens = True
        return pipeline

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._pipeline.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        return self._pipeline.token_to_id(token)

    def token_bytes(self, id: int) -> bytes:
        token = self._pipeline.id_to_token(id)
        if token is None:
            return b""
        if self._byte_level:
            return _byte_level_bytes(token)
        if id in self._byte_tokens:
            return self._byte_tokens[id]
        anchor, text = self._anchor
        return self.decode([anchor, id], skip_special_tokens=False)[len(text) :].encode()

    @cached_property
    def _anchor(self) -> tuple[int, str]:
        """A token with text, and its text: what comes after it is not at a text's start."""
        for id in range(self.vocab_size):
            text = self.decode([id], skip_special_tokens=False)
            if text and id not in self._byte_tokens:
                return id, text
        raise ModelError("the tokenizer's vocabulary holds no text")


def _decoder_kinds(pipeline: Pipeline) -> set[str]:
    """Type names of the pipeline's decoder and of all decoders inside it."""
    if pipeline.decoder is None:
        return set()
    # A component's pickled state is its part of tokenizer.json, and the public way to read it.
    return set(_types_in(json.loads(pipeline.decoder.__getstate__())))


def _types_in(component: dict[str, Any]) -> list[str]:
    inner = [kind for part in component.get("decoders", ()) for kind in _types_in(part)]
    return [component["type"], *inner]


def _byte_level_bytes(token: str) -> bytes:
    """Bytes of a byte-level token. One with a foreign character (an added token) is plain text."""
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:
        return token.encode()


def byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: a printable character for every byte (``encoder.py``, openai/gpt-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = byte_alphabet()

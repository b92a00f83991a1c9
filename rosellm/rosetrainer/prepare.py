"""Files to tokens, once: memory-mapped arrays in a cache folder, and a manifest of what they are.

Training reads only the cache. Where the source files are absent, a cache that was made with the
same settings is taken as it is, so that it can be carried to another machine.

The folder holds, for ``train`` and ``valid``: ``tokens`` (uint16, or uint32 for vocabularies over
65,536), ``mask`` (uint8; 1 where a token is to be learned) and ``starts`` (int64; where each
document begins, and where the last ends).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from rosellm.roseinfer.errors import ConfigError
from rosellm.rosetrainer.config import TrainConfig
from rosellm.rosetrainer.files import one_line_errors, write_text
from rosellm.rosetrainer.forms import stems_and_forms

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from rosellm.roseinfer.text.chat import ChatTemplate
    from rosellm.rosetrainer.documents import Document, Split

DEFAULT_TEMPLATE = Path(__file__).with_name("chatml.jinja")
BATCH = 512  # documents tokenised at a time
FORMAT = 2

Say = Callable[[str], None]


def prepare(config: TrainConfig, say: Say) -> dict[str, Any]:
    """See to it that the cache holds what the config asks for. Returns the manifest.

    Raises:
        ConfigError: sources that cannot be read, or that hold nothing to learn.
    """
    folder = config.path(config.data.cache)
    known = _manifest(folder)
    settings = _settings(config)
    if known and known["settings"] == settings and _sources_agree(config, known["sources"], say):
        return known
    _check_sources(config)
    with one_line_errors(f"data.cache {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").unlink(missing_ok=True)
        manifest = _build(config, folder, say)
        manifest |= {"settings": settings, "sources": _hashes(config)}
        write_text(folder / "manifest.json", json.dumps(manifest, indent=2))
    return manifest


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        return found if found.get("format") == FORMAT else None
    except (OSError, ValueError):
        return None


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What the cache depends on, besides the sources' contents, as JSON has it."""
    data = config.data
    settings = {
        "tokenizer": asdict(config.tokenizer),
        "train": data.train,
        "valid": data.valid,
        "valid_fraction": data.valid_fraction,
    }
    made: dict[str, Any] = json.loads(json.dumps(settings))
    return made


def _sources(config: TrainConfig) -> dict[str, Path]:
    names = [*config.data.train, *config.data.valid]
    names += filter(None, (config.tokenizer.path, config.tokenizer.chat_template))
    return {name: config.path(name) for name in names}


def _check_sources(config: TrainConfig) -> None:
    for path in _sources(config).values():
        if not path.is_file():
            raise ConfigError(f"{path}: no such file")


def _hashes(config: TrainConfig) -> dict[str, str]:
    return {name: _hash(path) for name, path in _sources(config).items()}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sources_agree(config: TrainConfig, known: dict[str, str], say: Say) -> bool:
    present = {name: path for name, path in _sources(config).items() if path.is_file()}
    if missing := sorted(known.keys() - present.keys()):
        say(f"not here, so their tokens in the cache are taken as they are: {', '.join(missing)}")
    return all(_hash(path) == known.get(name) for name, path in present.items())


# -- making it ---------------------------------------------------------------------


def _build(config: TrainConfig, folder: Path, say: Say) -> dict[str, Any]:
    # Imported here: a machine that brings the cache needs neither tokenizers nor jinja2.
    from rosellm.roseinfer.text.chat import ChatTemplate
    from rosellm.rosetrainer.tokenizer import vocabulary_size

    section = config.tokenizer
    file = config.path(section.chat_template) if section.chat_template else DEFAULT_TEMPLATE
    template_text = file.read_text(encoding="utf-8")
    special = {"bos_token": section.bos_token, "eos_token": section.turn_token}
    template = ChatTemplate(template_text, special)
    tokenizer = _tokenizer(config, template, say)
    write_text(folder / "tokenizer.json", tokenizer.to_str())
    write_text(folder / "chat_template.jinja", template_text)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "vocab_size": vocabulary_size(tokenizer),
        "stems": 1 + max(stems_and_forms(tokenizer.to_str())[0]),
    }
    splits: tuple[Split, ...] = ("train", "valid")
    for split in splits:
        encoder = _Encoder(config, tokenizer)
        manifest[split] = _write_split(folder, split, encoder, documents(config, split, template))
        if manifest[split]["learned"]:
            say(f"{split}: {manifest[split]['documents']:,} documents, "
                f"{manifest[split]['tokens']:,} tokens, {manifest[split]['learned']:,} to be "
                "learned")  # fmt: skip
    _check_not_empty(config, manifest)
    return manifest


def _check_not_empty(config: TrainConfig, manifest: dict[str, Any]) -> None:
    data = config.data
    if not manifest["train"]["learned"]:
        raise ConfigError(f"data.train holds nothing to learn: {', '.join(data.train)}")
    if (data.valid or data.valid_fraction) and not manifest["valid"]["learned"]:
        which = "data.valid" if data.valid else "data.valid_fraction"
        raise ConfigError(f"{which} comes to nothing that could be validated on")


def _tokenizer(config: TrainConfig, template: ChatTemplate, say: Say) -> Tokenizer:
    from rosellm.rosetrainer.tokenizer import open_tokenizer, train_tokenizer

    if config.tokenizer.path:
        return open_tokenizer(config.path(config.tokenizer.path))
    say("training the tokenizer")
    texts = (
        segment.text
        for document in documents(config, "train", template)
        for segment in document.segments
    )
    return train_tokenizer(texts, config.tokenizer)


def documents(config: TrainConfig, split: Split, template: ChatTemplate) -> Iterator[Document]:
    """The documents of a split, in the order of the files."""
    from rosellm.rosetrainer.documents import read_documents

    names, share = config.data.train, config.data.valid_fraction
    if config.data.valid:
        names, share = (names if split == "train" else config.data.valid), 0.0
    elif split == "valid" and not share:
        return
    for name in names:
        for document in read_documents(config.path(name), template):
            yield from _part(document, split, share)


def _part(document: Document, split: Split, share: float) -> Iterator[Document]:
    """What a split gets: of a file of text its start or its end, of others all or nothing."""
    from rosellm.rosetrainer.documents import plain

    text = "".join(segment.text for segment in document.segments)
    if not share:
        yield document
    elif document.kind == "file":
        cut = text.find("\n", int(len(text) * (1 - share))) + 1 or len(text)
        yield plain(text[:cut] if split == "train" else text[cut:], "file")
    else:
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        if (int.from_bytes(digest) < share * 2**64) == (split == "valid"):
            yield document


class _Encoder:
    """Documents to ids and loss masks."""

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer) -> None:
        from rosellm.rosetrainer.tokenizer import token_id, vocabulary_size

        section = config.tokenizer
        self._tokenizer = tokenizer
        self.dtype: Any = np.uint16 if vocabulary_size(tokenizer) <= 1 << 16 else np.uint32
        self._turn = section.turn_token
        self._bos = (
            [token_id(tokenizer, "tokenizer.bos_token", section.bos_token)]
            if section.bos_token
            else []
        )
        self._eos = [token_id(tokenizer, "tokenizer.eos_token", section.eos_token)]
        self._turn_checked = False

    def encode(self, batch: list[Document]) -> Iterator[tuple[list[int], list[int]]]:
        """Ids and masks of each document."""
        texts = [segment.text for document in batch for segment in document.segments]
        encoded = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        for document in batch:
            ids, mask = (
                ([], []) if document.kind == "chat" else (list(self._bos), [0] * len(self._bos))
            )
            for segment in document.segments:
                found = next(encoded).ids
                ids += found
                mask += [int(segment.learn)] * len(found)
            yield self._ended(document, ids, mask)

    def _ended(
        self, document: Document, ids: list[int], mask: list[int]
    ) -> tuple[list[int], list[int]]:
        if document.kind == "chat":
            self._check_turn()
            return ids, mask
        return ids + self._eos, [*mask, 1]

    def _check_turn(self) -> None:
        from rosellm.rosetrainer.tokenizer import token_id

        if not self._turn_checked:
            token_id(self._tokenizer, "tokenizer.turn_token", self._turn)
            self._turn_checked = True


def _write_split(
    folder: Path, split: str, encoder: _Encoder, found: Iterable[Document]
) -> dict[str, int]:
    starts, learned = [0], 0
    filled = (document for document in found if any(part.text for part in document.segments))
    with (
        _Npy(folder / f"{split}.tokens.npy", encoder.dtype) as tokens,
        _Npy(folder / f"{split}.mask.npy", np.uint8) as masks,
    ):
        while batch := list(itertools.islice(filled, BATCH)):
            for ids, mask in encoder.encode(batch):
                tokens.append(ids)
                masks.append(mask)
                starts.append(starts[-1] + len(ids))
                learned += sum(mask)
    np.save(folder / f"{split}.starts.npy", np.array(starts, np.int64))
    return {"documents": len(starts) - 1, "tokens": starts[-1], "learned": learned}


class _Npy:
    """A one-dimensional .npy file that grows; its header is rewritten when it is closed."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self._path, self._dtype, self._count = path, np.dtype(dtype), 0
        self._file: BinaryIO

    def __enter__(self) -> _Npy:
        self._file = self._path.open("wb")
        self._write_header()
        return self

    def append(self, values: list[int]) -> None:
        array: npt.NDArray[Any] = np.array(values, self._dtype)
        self._file.write(array.tobytes())
        self._count += len(values)

    def __exit__(self, *error: object) -> None:
        try:
            self._file.seek(0)
            self._write_header()
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def _write_header(self) -> None:
        # numpy leaves room in the header for the length to grow.
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._count,),
        }
        np.lib.format.write_array_header_1_0(self._file, header)

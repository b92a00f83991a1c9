"""The tokenizer of a run: a byte-level BPE trained on the data, or one that exists.

It knows nothing of documents or chats: texts in, a ``tokenizers.Tokenizer`` out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from rosellm.roseinfer.errors import ConfigError, shown
from rosellm.rosetrainer.config import TokenizerSection


def train_tokenizer(texts: Iterable[str], section: TokenizerSection) -> Tokenizer:
    """Train a byte-level BPE (as GPT-2's; Radford et al., 2019) on the first part of ``texts``.

    Special tokens take the first ids, extra tokens the last. Any text can be encoded: all 256
    bytes are in the vocabulary.
    """
    added = (*section.special_tokens, *section.extra_tokens)
    least = 256 + len(added)
    if section.vocab_size < least:
        raise ConfigError(f"tokenizer.vocab_size is at least {least}: bytes and added tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(section)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=section.vocab_size - len(section.extra_tokens),
        special_tokens=list(section.special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = _without(added, _first(texts, section.train_megabytes << 20))
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in section.extra_tokens]
    )
    return tokenizer


def _pre_tokenizer(section: TokenizerSection) -> pre_tokenizers.PreTokenizer:
    parts: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if section.split_digits:
        parts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    if section.split_capitals:
        parts.insert(0, pre_tokenizers.Split(Regex(_CAPITAL_IN_RUN), "isolated"))
    return pre_tokenizers.Sequence(parts)


_CAPITAL_IN_RUN = r" ?\p{Lu}(?=\p{Lu})|(?<=\p{Lu})\p{Lu}"


def _first(texts: Iterable[str], size: int) -> Iterator[str]:
    for text in texts:
        yield text
        size -= len(text)
        if size < 0:
            return


def _without(tokens: Iterable[str], texts: Iterable[str]) -> Iterator[str]:
    """Texts cut at added tokens, which are no text to learn merges from."""
    split = re.compile("|".join(re.escape(token) for token in tokens) or r"(?!)")
    for text in texts:
        yield from filter(None, split.split(text))


def open_tokenizer(path: Path) -> Tokenizer:
    """Load a ``tokenizer.json``.

    Raises:
        ConfigError: it is not there, or is none.
    """
    if not path.is_file():
        raise ConfigError(f"tokenizer.path: no such file: {path}")
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises plain Exception
        raise ConfigError(f"{path} is no tokenizer.json: {shown(str(error))}") from None


def token_id(tokenizer: Tokenizer, name: str, token: str) -> int:
    """Id of the token that the key ``name`` of the config asks for.

    Raises:
        ConfigError: the tokenizer has no such token.
    """
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ConfigError(f"{name}: the tokenizer has no token {token!r}")
    return found


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())

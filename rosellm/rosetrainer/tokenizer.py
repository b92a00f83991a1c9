"""The tokenizer of a run: a byte-level BPE trained on the data, or one that exists.

It knows nothing of documents or chats: texts in, a ``tokenizers.Tokenizer`` out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from rosellm.roseinfer.errors import ConfigError, shown
from rosellm.rosetrainer.config import TokenizerSection
from rosellm.rosetrainer.forms import SPACE

Merge = tuple[str, str]


def train_tokenizer(texts: Iterable[str], section: TokenizerSection) -> Tokenizer:
    """Train a byte-level BPE (as GPT-2's; Radford et al., 2019) on the first part of ``texts``.

    Special tokens take the first ids, extra tokens the last. Any text can be encoded: all 256
    bytes are in the vocabulary.
    """
    added = (*section.special_tokens, *section.extra_tokens)
    least = 256 + len(added)
    if section.vocab_size < least:
        raise ConfigError(f"tokenizer.vocab_size is at least {least}: bytes and added tokens")
    sample = _without(added, _first(texts, section.train_megabytes << 20))
    size = section.vocab_size - len(section.extra_tokens)
    learn = _learn_even if section.even_forms else _learn
    tokenizer = Tokenizer(learn(sample, size, list(section.special_tokens), section.split_digits))
    tokenizer.add_special_tokens(list(section.special_tokens))
    tokenizer.pre_tokenizer = _pre_tokenizer(section.split_digits)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in section.extra_tokens]
    )
    return tokenizer


def _learn(texts: Iterable[str], size: int, special: list[str], digits: bool) -> models.BPE:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(digits)
    return _trained(tokenizer, texts, size, special)


def _trained(
    tokenizer: Tokenizer, texts: Iterable[str], size: int, special: list[str]
) -> models.BPE:
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=_alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learnt: models.BPE = tokenizer.model
    return learnt


def _pre_tokenizer(digits: bool) -> pre_tokenizers.PreTokenizer:
    words: pre_tokenizers.PreTokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if not digits:
        return words
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


# -- even forms --------------------------------------------------------------------


def _learn_even(texts: Iterable[str], size: int, special: list[str], digits: bool) -> models.BPE:
    """Merges of lower-case words, then the same for their other forms.

    A word is cut at the same places in lower case, Capitalised and in UPPER CASE, after a space
    or not, so that a model that turns one into another does so token by token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    spaces = pre_tokenizers.Split(" ", "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([spaces, _pre_tokenizer(digits)])
    lower = _merges(_trained(tokenizer, texts, size, special))
    tokens, merges = [*special, *_alphabet()], list[Merge]()
    for merge in lower:
        added = _forms(merge)
        if len(tokens) + len(added) + len(_with_space([*tokens, *map("".join, added)])) > size:
            break
        merges += added
        tokens += map("".join, added)
    after_space = _with_space(tokens)
    tokens += map("".join, after_space)
    vocabulary = {token: at for at, token in enumerate(tokens)}
    return models.BPE(vocabulary, merges + after_space)


def _forms(merge: Merge) -> list[Merge]:
    first, second = merge
    if not (_is_word(first) and _is_word(second)):
        return [merge]
    return [merge, (first.capitalize(), second), (first.upper(), second.upper())]


def _with_space(tokens: Iterable[str]) -> list[Merge]:
    """Merges that come last: the space before a word, or before signs, joins their first token."""
    return [(SPACE, token) for token in tokens if token.isascii() and not token.isdigit()]


def _is_word(token: str) -> bool:
    return token.isascii() and token.isalpha()


def _merges(model: models.BPE) -> list[Merge]:
    state = json.loads(model.__getstate__())
    return [(first, second) for first, second in state["merges"]]


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

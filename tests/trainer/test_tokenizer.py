"""Tokenizers that are trained: even forms of words, and which tokens share a stem."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from rosellm.roseinfer.errors import ConfigError
from rosellm.rosetrainer.config import TokenizerSection
from rosellm.rosetrainer.forms import FORMS, stems_and_forms
from rosellm.rosetrainer.tokenizer import train_tokenizer, vocabulary_size

TEXT = [
    "The quick brown fox jumps over the lazy dog. A quick dog, a lazy fox; the quickest jumps.",
    '{"name": "Quentin", "over": "brown", "jump": 12}',
] * 20
WORDS = ("quick", "lazy", "foxes", "overjumped", "unseen", "brownish")


def trained(**settings: object) -> Tokenizer:
    section = TokenizerSection(vocab_size=700, extra_tokens=("<tools>",), **settings)  # type: ignore[arg-type]
    return train_tokenizer(TEXT, section)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    found: list[str] = tokenizer.encode(text).tokens
    return [token.removeprefix("Ġ").lower() for token in found]


@pytest.mark.parametrize("word", WORDS)
def test_every_form_of_a_word_is_cut_at_the_same_places(word: str) -> None:
    tokenizer = trained(even_forms=True)
    forms = (word, word.capitalize(), word.upper(), f" {word}", f" {word.title()}")
    cuts = [pieces(tokenizer, form) for form in (*forms, f" {word.upper()}")]
    assert all(cut == cuts[0] for cut in cuts)
    assert "".join(cuts[0]) == word


def test_merges_that_are_not_even_cut_a_word_in_its_own_way() -> None:
    tokenizer = trained()
    assert pieces(tokenizer, " quick") == ["quick"]
    assert pieces(tokenizer, " QUICK") != ["quick"]


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize(
    "text", ["", " ", "  two  spaces\n\n", "Été à la plage: 日本 🙂", 'x = {"a": 12345}', "'S 's"]
)
def test_any_text_comes_back(even: bool, text: str) -> None:
    tokenizer = trained(even_forms=even)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("even", [False, True])
def test_special_tokens_come_first_and_extra_ones_last(even: bool) -> None:
    tokenizer = trained(even_forms=even)
    assert [tokenizer.id_to_token(at) for at in range(3)] == list(TokenizerSection().special_tokens)
    assert tokenizer.token_to_id("<tools>") == vocabulary_size(tokenizer) - 1
    assert vocabulary_size(tokenizer) <= 700
    assert tokenizer.encode("<|im_start|> quick<tools>").tokens == [
        "<|im_start|>", "Ġquick", "<tools>",
    ]  # fmt: skip
    assert tokenizer.decode(tokenizer.encode("<|im_end|><tools>").ids) == "<tools>"


def test_a_vocabulary_too_small_for_the_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size is at least 26"):
        train_tokenizer(TEXT, TokenizerSection(vocab_size=260))


def test_forms_of_a_word_share_their_stem() -> None:
    tokenizer = trained(even_forms=True)
    stems, forms = stems_and_forms(tokenizer.to_str())
    words = ("quick", "Quick", "QUICK", "Ġquick", "ĠQuick", "ĠQUICK")
    ids = [tokenizer.token_to_id(word) for word in words]
    assert len({stems[at] for at in ids}) == 1
    assert len({forms[at] for at in ids}) == len(words)
    assert max(forms) < FORMS
    assert sorted(set(stems)) == list(range(1 + max(stems)))
    assert stems[tokenizer.token_to_id("lazy")] != stems[ids[0]]
    assert len(stems) == vocabulary_size(tokenizer)

"""The bytes of an answer's tokens add up to the answer."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rosellm.roseinfer.server.answer_text import AnswerText
from rosellm.roseinfer.server.spelling import Spelling, text_of
from rosellm.roseinfer.text.shown_specials import ShownSpecials
from rosellm.roseinfer.text.tokenizer import Tokenizer
from tests.examples import examples
from tests.server.fakes import BOS, EOS, ByteTokenizer

FORMS = ["bytes", "llama", "metaspace", "sp-llama", "sp-unigram", "tiktoken"]


def spelt(tokenizer: Tokenizer, ids: list[int], context: list[int]) -> list[bytes]:
    spelling = Spelling(tokenizer, context)
    found = []
    for id in ids:
        found.append(spelling.bytes(id))
        spelling.advance(id)
    return found


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=examples(50), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_they_add_up(tokenizers: dict[str, Tokenizer], form: str, data: st.DataObject) -> None:
    tokenizer = tokenizers[form]
    some = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=8)
    ids = [id for id in data.draw(some, "ids") if id not in tokenizer.special_ids]
    context = data.draw(some, "context")
    assume("\ufffd" not in tokenizer.decode(context) + tokenizer.decode(ids))
    answer: AnswerText[None] = AnswerText(tokenizer, context)
    text = "".join(map(answer.feed, ids)) + answer.flush()
    assert b"".join(spelt(tokenizer, ids, context)) == text.encode()


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=examples(50), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_they_add_up_with_special_tokens_that_are_shown(
    tokenizers: dict[str, Tokenizer], form: str, data: st.DataObject
) -> None:
    tokenizer = ShownSpecials(tokenizers[form])
    special = st.sampled_from(sorted(tokenizers[form].special_ids))
    some = st.lists(st.integers(0, tokenizer.vocab_size - 1) | special, max_size=8)
    ids, context = data.draw(some, "ids"), data.draw(some, "context")
    whole = tokenizers[form].decode(ids, skip_special_tokens=False)
    assume("\ufffd" not in tokenizer.decode(context) + whole)
    answer: AnswerText[None] = AnswerText(tokenizer, context)
    text = "".join(map(answer.feed, ids)) + answer.flush()
    assert b"".join(spelt(tokenizer, ids, context)) == text.encode()
    assert context or text == whole


@pytest.mark.parametrize("form", ["llama", "metaspace", "sp-llama", "sp-unigram"])
def test_only_the_first_word_of_a_text_loses_its_space(
    tokenizers: dict[str, Tokenizer], form: str
) -> None:
    tokenizer = tokenizers[form]
    ids = tokenizer.encode("a little girl", add_special_tokens=False)
    assert tokenizer.token_bytes(ids[0])[:1] == b" "
    assert spelt(tokenizer, ids, [])[0][:1] != b" "
    assert spelt(tokenizer, ids, [*tokenizer.special_ids])[0][:1] != b" "
    assert spelt(tokenizer, ids, ids)[0][:1] == b" "


def test_special_tokens_are_spelt_by_name() -> None:
    assert spelt(ByteTokenizer(), [BOS, 97, EOS], []) == [b"<s>", b"a", b"</s>"]


def test_part_of_a_character_shows() -> None:
    assert text_of("é".encode()[:1]) == "\ufffd"

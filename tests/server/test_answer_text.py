"""Text that waits for its end, for stop strings and for bytes; and the notes that wait with it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rosellm.roseinfer.server.answer_text import AnswerText
from rosellm.roseinfer.text.stop import StopFilter
from rosellm.roseinfer.text.tokenizer import Tokenizer
from tests.examples import examples
from tests.server.fakes import BOS, ByteTokenizer

FORMS = ["bytes", "llama", "metaspace", "sp-llama", "sp-unigram", "tiktoken"]
BYTES = ByteTokenizer()

News = list[tuple[str, list[int]]]


def read(tokenizer: Tokenizer, ids: list[int], stop: list[str], least: int = 0) -> News:
    """Feed the ids with their positions as notes; return the text and notes of each feed."""
    answer: AnswerText[int] = AnswerText(tokenizer, stop=stop, min_tokens=least)
    news = []
    for position, id in enumerate(ids):
        news.append((answer.feed(id, position), answer.notes()))
        if answer.stopped:
            return news
    news.append((answer.flush(), answer.notes()))
    return news


def text_of(news: News) -> str:
    return "".join(text for text, _ in news)


def notes_of(news: News) -> list[int]:
    return [note for _, notes in news for note in notes]


def test_half_a_character_holds_its_notes_back() -> None:
    news = read(BYTES, [*"aé!".encode()], [])
    assert news == [("a", [0]), ("", []), ("é", [1, 2]), ("!", [3]), ("", [])]


def test_a_possible_stop_string_holds_its_notes_back() -> None:
    assert read(BYTES, [*b"a<b<<c"], ["<<c"]) == [
        ("a", [0]),
        ("", []),
        ("<b", [1, 2]),
        ("", []),
        ("", []),
        ("", []),
    ]
    assert notes_of(read(BYTES, [*b"a<<"], ["<<c"])) == [0, 1, 2]


def test_special_tokens_keep_their_place() -> None:
    assert read(BYTES, [BOS, *b"a", BOS, *b"b"], []) == [
        ("", [0]),
        ("a", [1]),
        ("", [2]),
        ("b", [3]),
        ("", []),
    ]
    inside = [0xC3, BOS, 0xA9]
    assert read(BYTES, inside, []) == [("", []), ("", []), ("é", [0, 1, 2]), ("", [])]


def test_a_special_token_before_a_stop_string_is_part_of_the_answer() -> None:
    news = read(BYTES, [*b"a", BOS, *b";", BOS], [";"])
    assert (text_of(news), notes_of(news)) == ("a", [0, 1])


def test_ids_that_the_tokenizer_does_not_know_count_too() -> None:
    assert read(BYTES, [*b"a", BYTES.vocab_size + 5], []) == [("a", [0]), ("", [1]), ("", [])]


def test_stop_strings_do_not_count_before_the_least_tokens() -> None:
    news = read(BYTES, [*b";a;b"], [";"], least=2)
    assert (text_of(news), notes_of(news)) == (";a", [0, 1])


def test_without_notes_there_are_none() -> None:
    answer: AnswerText[int] = AnswerText(BYTES)
    assert (answer.feed(97), answer.flush(), answer.notes()) == ("a", "", [])


def test_a_token_that_the_match_cuts_in_two_is_part_of_the_answer(
    tokenizers: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers["bytes"]
    ids = tokenizer.encode("One day, Lily saw")
    longest = max(range(len(ids)), key=lambda place: len(tokenizer.decode([ids[place]])))
    before, cut = tokenizer.decode(ids[:longest]), tokenizer.decode([ids[longest]])
    news = read(tokenizer, ids, [cut[2:]])
    assert text_of(news) == before + cut[:2]
    assert notes_of(news) == list(range(longest + 1))


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_tokens_and_stop_strings(
    tokenizers: dict[str, Tokenizer], form: str, data: st.DataObject
) -> None:
    tokenizer = tokenizers[form]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size), max_size=20), "ids")
    whole = tokenizer.decode(ids)
    pieces = [st.just(whole[i : i + 2]) for i in range(0, len(whole), 3)]
    stop = data.draw(st.lists(st.one_of(st.text(min_size=1, max_size=3), *pieces), max_size=3))
    news = read(tokenizer, ids, stop)

    expected = StopFilter(stop)
    assert text_of(news) == expected.feed(whole) + expected.flush()
    notes = notes_of(news)
    assert notes == list(range(len(notes)))
    if expected.matched is None:
        assert len(notes) == len(ids)
    else:
        assert len(tokenizer.decode(ids[: len(notes)])) >= len(text_of(news))

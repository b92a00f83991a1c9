"""Feeding ids one by one gives exactly the text of decoding them all at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache
from os.path import commonprefix
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rosellm.roseinfer.text.detokenize import Detokenizer
from rosellm.roseinfer.text.tokenizer import Tokenizer
from tests.examples import examples
from tests.text.conftest import FORMS, LINES

KNOWN = [
    "cl100k_base",
    "gpt2",
    "gpt-neox-20b",
    "phi-2-codegen",
    "phi-3-mini",
    "mistral-v1",
    "mistral-v3",
]


def expected(tokenizer: Tokenizer, context: list[int], ids: list[int], skip: bool) -> str:
    before = tokenizer.decode(context, skip_special_tokens=skip)
    whole = tokenizer.decode([*context, *ids], skip_special_tokens=skip)
    return whole[len(commonprefix([before, whole])) :]  # noqa: RUF071 - characters, not paths


def check(
    tokenizer: Tokenizer, ids: list[int], context: list[int] | None = None, skip: bool = True
) -> list[str]:
    """Feed the ids, holding every promise against the full decode; return the pieces of text."""
    stream = Detokenizer(tokenizer, context or [], skip_special_tokens=skip)
    pieces = []
    for count, token in enumerate(ids, start=1):
        pieces.append(stream.feed(token))
        so_far = expected(tokenizer, context or [], ids[:count], skip)
        assert so_far.startswith("".join(pieces))
    pieces.append(stream.flush())
    assert "".join(pieces) == expected(tokenizer, context or [], ids, skip)
    assert stream.flush() == ""
    return pieces


@cache
def id_lists(tokenizer: Tokenizer, max_size: int) -> st.SearchStrategy[list[int]]:
    """Ids of any kind, with repeats, and more bytes and special tokens than chance would give."""
    anything = st.integers(0, tokenizer.vocab_size + 1)
    single = [id for id in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(id)) == 1]
    pools = [st.sampled_from(sorted(p)) for p in (single, tokenizer.special_ids) if p]
    one = st.one_of(anything, *pools)
    motif = st.lists(one, min_size=1, max_size=4)
    part = st.one_of(motif, st.tuples(motif, st.integers(1, 9)).map(lambda pair: pair[0] * pair[1]))
    return st.lists(part, max_size=max_size).map(lambda parts: [id for p in parts for id in p])


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=examples(80), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_ids(tokenizers: dict[str, Tokenizer], form: str, data: st.DataObject) -> None:
    tokenizer = tokenizers[form]
    context = data.draw(id_lists(tokenizer, 6), "context")
    ids = data.draw(id_lists(tokenizer, 10), "ids")
    check(tokenizer, ids, context, skip=data.draw(st.booleans(), "skip"))


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(max_size=60))
@example("  two  spaces, \n\n lines 😀👩‍👧 é日本 �� end ")
def test_any_text(tokenizers: dict[str, Tokenizer], form: str, text: str) -> None:
    tokenizer = tokenizers[form]
    ids = tokenizer.encode(text)
    for cut in {0, 1, len(ids) // 2}:
        check(tokenizer, ids[cut:], ids[:cut])


@pytest.mark.parametrize("form", FORMS)
def test_plain_words_come_at_once(tokenizers: dict[str, Tokenizer], form: str) -> None:
    tokenizer = tokenizers[form]
    ids = tokenizer.encode(LINES[0], add_special_tokens=False)
    pieces = check(tokenizer, ids)
    assert pieces[-1] == ""
    assert sum(piece != "" for piece in pieces) >= len(ids) - 1


@pytest.mark.parametrize("form", ["bytes", "llama", "sp-llama"])
def test_no_broken_character_is_shown(tokenizers: dict[str, Tokenizer], form: str) -> None:
    ids = tokenizers[form].encode("smile 😀😀 and ∑ on")
    pieces = check(tokenizers[form], ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == "smile 😀😀 and ∑ on"


def test_a_run_of_byte_tokens_waits_for_its_end(tokenizers: dict[str, Tokenizer]) -> None:
    """One byte that does not fit turns the whole run into U+FFFD, so no part of it is certain."""
    tokenizer = tokenizers["llama"]
    accent = [tokenizer.token_to_id("<0xC3>"), tokenizer.token_to_id("<0xA9>")]
    stray, letter = tokenizer.token_to_id("<0xFF>"), tokenizer.token_to_id("a")
    assert check(tokenizer, [*accent, letter]) == ["", "", "éa", ""]
    assert check(tokenizer, [*accent, stray, letter]) == ["", "", "", "\ufffd\ufffd\ufffda", ""]
    assert check(tokenizer, [*accent, 1, stray]) == ["", "", "", "", "\ufffd\ufffd\ufffd"]


@pytest.mark.parametrize("form", ["llama", "sp-llama", "metaspace"])
def test_a_word_after_the_prompt_keeps_its_space(
    tokenizers: dict[str, Tokenizer], form: str
) -> None:
    tokenizer = tokenizers[form]
    ids = tokenizer.encode("Lily was late", add_special_tokens=False)
    cut = next(n for n in range(1, len(ids)) if tokenizer.decode(ids[:n]) == "Lily")
    assert "".join(check(tokenizer, ids[cut:], ids[:cut])) == " was late"


def test_only_special_tokens_before_the_text(tokenizers: dict[str, Tokenizer]) -> None:
    for form in ("llama", "sp-llama"):
        ids = tokenizers[form].encode("Lily", add_special_tokens=False)
        assert "".join(check(tokenizers[form], ids, context=[1, 1, 2])) == "Lily"


def test_a_character_that_the_context_began(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["bytes"]
    ids = tokenizer.encode("😀!")
    assert len(ids) == 5
    for cut in range(1, 4):
        assert "".join(check(tokenizer, ids[cut:], ids[:cut])) == "😀!"
    assert "".join(check(tokenizer, [ids[-1]], ids[:2])) == "!"


@pytest.mark.parametrize("form", ["bytes", "llama", "sp-llama"])
@pytest.mark.parametrize("text", ["word ", "😀", "\x80"])
@pytest.mark.alone
def test_the_cost_of_an_id_does_not_grow(
    tokenizers: dict[str, Tokenizer], form: str, text: str
) -> None:
    tokenizer = tokenizers[form]
    broken = [id for id in range(tokenizer.vocab_size) if tokenizer.token_bytes(id) == b"\x80"]
    ids = (broken if text == "\x80" else tokenizer.encode(text)) * 20_000
    stream = Detokenizer(tokenizer)
    start = time.perf_counter()
    for token in ids[:20_000]:
        stream.feed(token)
    assert time.perf_counter() - start < 2  # seconds: about ten times what it takes


@pytest.mark.parametrize("name", KNOWN)
def test_known_tokenizers(
    shared_data: Path, known_tokenizer: Callable[[str], Tokenizer], name: str
) -> None:
    tokenizer = known_tokenizer(name)
    cases = json.loads((shared_data / "tokenizers" / name / "expected.json").read_text())["cases"]
    for case in cases:
        pieces = check(tokenizer, case["ids"], skip=False)
        assert "".join(pieces) == case["decoded"]
        text = ""
        for piece, prefix in zip(pieces, case.get("decoded_prefixes", ()), strict=False):
            text += piece
            assert prefix.startswith(text)


@pytest.mark.parametrize("name", KNOWN)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_ids_of_known_tokenizers(
    known_tokenizer: Callable[[str], Tokenizer], name: str, data: st.DataObject
) -> None:
    tokenizer = known_tokenizer(name)
    ids = data.draw(id_lists(tokenizer, 10), "ids")
    check(tokenizer, ids, data.draw(id_lists(tokenizer, 6), "context"))

"""Files of ranks encode as byte pair encoding by rank says, cut into words as their names say."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rosellm.roseinfer.errors import ModelError
from rosellm.roseinfer.text import tiktoken_form
from rosellm.roseinfer.text.load import load_tokenizer
from rosellm.roseinfer.text.tokenizer import Tokenizer
from tests.examples import examples
from tests.text.conftest import LINES

BYTES = [bytes([byte]) for byte in range(256)]
DIGITS = [b"12", b"123", b"1234"]
CONTRACTED = [b"t'", b"'S"]


def write(path: Path, tokens: list[bytes], **config: Any) -> str:
    """Write a file of ranks, and beside it a config; return the file."""
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    path.write_text("\n".join(lines) + "\n")
    path.with_name("tokenizer_config.json").write_text(json.dumps(config))
    return str(path)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([id]) for id in tokenizer.encode(text, add_special_tokens=False)]


def by_rank(word: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Byte pair encoding as tiktoken defines it: join the pair of lowest rank, leftmost first."""
    parts = [word[at : at + 1] for at in range(len(word))]
    while True:
        joined = [ranks.get(a + b, 1 << 30) for a, b in pairwise(parts)]
        if not joined or min(joined) == 1 << 30:
            return [ranks[part] for part in parts]
        at = joined.index(min(joined))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@cache
def ranks_of(path: Path) -> dict[bytes, int]:
    lines = (line.split() for line in path.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


@settings(max_examples=examples(200), deadline=None, suppress_health_check=list(HealthCheck))
@given(word=st.text(st.sampled_from(sorted(set("".join(LINES)) - set(" '\",.!?:-"))), max_size=14))
def test_a_word_is_encoded_by_rank(
    tokenizers: dict[str, Tokenizer], tokenizer_folders: dict[str, Path], word: str
) -> None:
    word = "".join(char for char in word if char.isalpha())
    ranks = ranks_of(tokenizer_folders["tiktoken"] / "small.tiktoken")
    assert tokenizers["tiktoken"].encode(word) == by_rank(word.encode(), ranks)


@settings(max_examples=examples(300), deadline=None, suppress_health_check=list(HealthCheck))
@given(word=st.text(st.characters(categories=["Lu", "Ll", "Lo"]), min_size=1, max_size=12))
def test_a_word_is_encoded_by_rank_in_a_real_vocabulary(
    shared_data: Path, known_tokenizer: Callable[[str], Tokenizer], word: str
) -> None:
    ranks = ranks_of(shared_data / "tokenizers" / "cl100k_base" / "cl100k_base.tiktoken")
    assert known_tokenizer("cl100k_base").encode(word) == by_rank(word.encode(), ranks)


@pytest.mark.parametrize(
    ("name", "digits", "contraction"),
    [
        ("r50k_base.tiktoken", ["1234"], ["i", "t", "'", "S"]),
        ("p50k_base.tiktoken", ["1234"], ["i", "t", "'", "S"]),
        ("cl100k_base.tiktoken", ["123", "4"], ["i", "t", "'S"]),
        ("another.tiktoken", ["123", "4"], ["i", "t", "'S"]),
        ("tokenizer.model", ["123", "4"], ["i", "t", "'S"]),
        ("qwen.tiktoken", ["1", "2", "3", "4"], ["i", "t", "'S"]),
        ("o200k_base.tiktoken", ["123", "4"], ["i", "t'", "S"]),
    ],
)
def test_words_are_cut_as_the_name_says(
    tmp_path: Path, name: str, digits: list[str], contraction: list[str]
) -> None:
    source = write(tmp_path / name, [*BYTES, *DIGITS, *CONTRACTED])
    for tokenizer in (load_tokenizer(source), load_tokenizer(str(tmp_path))):
        assert pieces(tokenizer, "1234") == digits
        assert pieces(tokenizer, "it'S") == contraction


def test_a_known_number_of_ranks_tells_the_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiktoken_form._BY_SIZE, 256, "llama3")
    tokenizer = load_tokenizer(write(tmp_path / "tokenizer.model", BYTES))
    text = "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    assert tokenizer.encode(text)[:2] == [128000, 128006]
    assert tokenizer.encode(text)[-1] == 128009
    assert tokenizer.decode(tokenizer.encode(text)) == "user\n\nHi"
    assert tokenizer.decode([128255, 65], skip_special_tokens=False).endswith("_250|>A")
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (
        128000,
        (128001,),
        128256,
    )


def test_special_tokens_of_a_known_encoding(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path / "qwen.tiktoken", BYTES))
    ids = tokenizer.encode("<|im_start|>a<|im_end|><|extra_204|>")
    assert ids == [151644, 97, 151645, 151850]
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.eos_ids == (151643,)
    assert 151644 not in tokenizer.encode("<|im_start|>", parse_special=False)


def test_tokens_of_the_config(tmp_path: Path) -> None:
    """They may leave gaps, and take the place of the encoding's own."""
    added = {
        "300": {"content": "<|a|>", "special": True, "lstrip": True, "rstrip": True},
        "310": {"content": "<b>", "special": False},
        "100257": {"content": "<|finis|>", "special": True},
    }
    path = tmp_path / "cl100k_base.tiktoken"
    tokenizer = load_tokenizer(
        write(path, BYTES, added_tokens_decoder=added, eos_token="<|finis|>", bos_token=None)
    )
    assert tokenizer.encode("x <|a|> <b><|finis|><|fim_prefix|>") == [120, 300, 310, 100257, 100258]
    assert tokenizer.decode([300, 301, 310, 100257]) == "<b>"
    assert tokenizer.decode([300, 100257], skip_special_tokens=False) == "<|a|><|finis|>"
    assert tokenizer.eos_ids == (100257,)
    assert tokenizer.token_bytes(310) == b"<b>"


def test_a_token_that_is_a_rank_already_keeps_its_id(tmp_path: Path) -> None:
    added = {"7": {"content": "ab"}}
    source = write(tmp_path / "x.tiktoken", [*BYTES, b"ab"], added_tokens_decoder=added)
    with pytest.raises(ModelError, match="'ab' cannot have id 7"):
        load_tokenizer(source)

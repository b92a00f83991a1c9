"""Documents, what of them is learned, and how they are packed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.text.chat import ChatTemplate
from rosellm.rosetrainer.data import Position, Stream, Tokens, in_order, pack
from rosellm.rosetrainer.documents import chat_segments, plain, read_documents
from rosellm.rosetrainer.model import GPT2Config, LanguageModel, LlamaConfig, as_dict, build_model
from rosellm.rosetrainer.prepare import DEFAULT_TEMPLATE, prepare
from tests.trainer.conftest import MakeConfig, chat

TEMPLATE = ChatTemplate(DEFAULT_TEMPLATE.read_text(), {})


def quiet(_: str) -> None:
    pass


def test_only_the_assistants_turns_are_learned() -> None:
    row = chat(3)
    segments = list(chat_segments(row["messages"], row["tools"], TEMPLATE))
    assert [segment.text for segment in segments if segment.learn] == [
        "3!<|im_end|>",
        '<tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call><|im_end|>',
    ]
    text = "".join(segment.text for segment in segments)
    assert text == TEMPLATE.render(row["messages"], add_generation_prompt=False, tools=row["tools"])
    prompts = [segment.text for segment in segments if not segment.learn]
    assert prompts[0] == TEMPLATE.render(row["messages"][:1], tools=row["tools"])


def test_a_row_may_say_that_all_of_it_is_learned(tmp_path: Path) -> None:
    rows = [chat(3), {**chat(3), "learn": "all"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    one, other = read_documents(tmp_path / "a.jsonl", TEMPLATE)
    assert [segment.text for segment in one.segments] == [each.text for each in other.segments]
    assert not all(segment.learn for segment in one.segments)
    assert all(segment.learn for segment in other.segments)


def test_a_template_that_rewrites_the_past_is_refused() -> None:
    template = ChatTemplate("{{ messages | length }}{{ messages[-1].content }}", {})
    with pytest.raises(ConfigError, match="in another way than the whole"):
        list(chat_segments(chat(1)["messages"], None, template))


def test_long_text_is_cut_behind_lines() -> None:
    text = "a line of text\n" * 20_000
    document = plain(text, "file")
    assert len(document.segments) > 3
    assert "".join(segment.text for segment in document.segments) == text
    assert all(segment.text.endswith("\n") for segment in document.segments)


def test_files_of_every_kind_are_read(tmp_path: Path) -> None:
    row = json.dumps({"text": "a row"})
    (tmp_path / "a.jsonl").write_text(f"{row}\n\n{row}\n")
    (tmp_path / "a.txt").write_text("all of it\n")
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        assert list(read_documents(tmp_path / name, TEMPLATE)) == list(
            read_documents(tmp_path / f"{name}.gz", TEMPLATE)
        )
    assert len(list(read_documents(tmp_path / "a.jsonl", TEMPLATE))) == 2


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("none.txt", None, "none.txt: no such data file"),
        ("a.csv", "a,b", "a .txt or .jsonl file is expected"),
        ("a.txt", b"\xff\xfe", "cannot be read: 'utf-8'"),
        ("a.txt.gz", "plain", "cannot be read: Not a gzipped file"),
        ("a.jsonl", '{"text": "x"}\n{"text"', "a.jsonl:2: not a row of JSON text"),
        ("a.jsonl", '{"text": "\\ud800"}', "a.jsonl:1: not a row of JSON text"),
        ("a.jsonl", '{"txt": "x"}', 'a row has either "text" or "messages"'),
        ("a.jsonl", '{"messages": [{"role": "user"}], "learn": "no"}', '"learn" is "assistant" or'),
        ("a.jsonl", '{"messages": ["x"]}', '"messages" is a list of objects'),
        ("a.jsonl", '{"messages": [{"role": "assistant"}], "tools": 3}', "chat template"),
    ],
)
def test_bad_sources_are_named(name: str, content: Any, complaint: str, tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError) as caught:
        list(read_documents(tmp_path / name, TEMPLATE))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


# -- the cache -------------------------------------------------------------------------


def test_the_cache_holds_the_documents_and_their_masks(configure: MakeConfig) -> None:
    config = configure(data__valid_fraction=0.0)
    manifest = prepare(config, quiet)
    cache = config.path("cache")
    tokens, mask, starts = (np.load(cache / f"train.{kind}.npy") for kind in
                            ("tokens", "mask", "starts"))  # fmt: skip
    assert tokens.dtype == np.uint16
    assert len(tokens) == len(mask) == starts[-1] == manifest["train"]["tokens"]
    assert len(starts) == 62
    tokenizer = Tokenizer.from_file(str(cache / "tokenizer.json"))
    text = tokenizer.decode(tokens[: starts[1]].tolist(), skip_special_tokens=False)
    assert text == config.path("text.txt").read_text() + "<|endoftext|>"
    assert mask[: starts[1]].all()
    last = slice(starts[-2], starts[-1])
    learned = tokens[last][mask[last] == 1].tolist()
    assert tokenizer.decode(learned, skip_special_tokens=False).startswith("59!<|im_end|><tool_")


def test_the_cache_is_made_once_and_again_when_a_source_changes(configure: MakeConfig) -> None:
    config = configure()
    said: list[str] = []
    first = prepare(config, said.append)
    assert said
    said.clear()
    assert prepare(config, said.append) == first
    assert not said
    config.path("chats.jsonl").write_text(json.dumps(chat(1)) + "\n" + json.dumps(chat(2)))
    config.path("text.txt").write_text("other " * 500)
    assert prepare(configure(data__valid_fraction=0.0), said.append) != first
    assert said


def test_a_cache_serves_without_its_sources(configure: MakeConfig) -> None:
    config = configure()
    first = prepare(config, quiet)
    config.path("text.txt").unlink()
    said: list[str] = []
    assert prepare(config, said.append) == first
    assert "text.txt" in said[0]
    with pytest.raises(ConfigError, match=r"text\.txt: no such file"):
        prepare(configure(tokenizer__vocab_size=300), quiet)


def test_splits_share_no_document(configure: MakeConfig) -> None:
    config = configure(data__valid_fraction=0.3, data__train=["chats.jsonl"])
    manifest = prepare(config, quiet)
    counts = [manifest[split]["documents"] for split in ("train", "valid")]
    assert sum(counts) == 60
    assert 5 < counts[1] < 35


@pytest.mark.parametrize(
    ("text", "changes", "complaint"),
    [
        ("", {}, "data.train holds nothing to learn: text.txt"),
        ("short", {"data__valid_fraction": 0.5}, "data.valid_fraction comes to nothing"),
        ("text", {"tokenizer__eos_token": "</s>"}, "tokenizer.eos_token: the tokenizer has no"),
        ("text", {"tokenizer__vocab_size": 257}, "tokenizer.vocab_size is at least 261"),
        ("text", {"tokenizer__path": "text.txt"}, "text.txt is no tokenizer.json"),
    ],
)
def test_what_cannot_be_prepared_is_said(
    text: str, changes: dict[str, Any], complaint: str, configure: MakeConfig
) -> None:
    config = configure(**{"data__train": ["text.txt"], "data__valid_fraction": 0.0, **changes})
    config.path("text.txt").write_text(text)
    with pytest.raises(ConfigError) as caught:
        prepare(config, quiet)
    assert complaint in str(caught.value)


def test_a_file_of_text_is_split_at_a_line(configure: MakeConfig) -> None:
    config = configure(data__valid_fraction=0.25, data__train=["text.txt"])
    prepare(config, quiet)
    tokenizer = Tokenizer.from_file(str(config.path("cache/tokenizer.json")))
    train, valid = (
        tokenizer.decode(np.load(config.path(f"cache/{split}.tokens.npy")).tolist())
        for split in ("train", "valid")
    )
    text = config.path("text.txt").read_text()
    assert train + valid == text
    assert train.endswith("\n")
    assert len(valid) == pytest.approx(len(text) / 4, rel=0.2)


# -- packing ---------------------------------------------------------------------------


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    """Documents of ascending ids, of 1 to 40 tokens, in sequences of 16."""
    lengths = [5, 40, 3, 1, 17, 18, 2, 9]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    np.save(tmp_path / "train.tokens.npy", np.arange(1, starts[-1] + 1).astype(np.uint16))
    np.save(tmp_path / "train.mask.npy", np.ones(starts[-1], np.uint8))
    np.save(tmp_path / "train.starts.npy", starts)
    return Tokens(tmp_path, "train", 16)


def test_every_target_is_learned_once_an_epoch(tokens: Tokens) -> None:
    rows = in_order(tokens, 100)
    batch = tokens.batch(rows)
    assert batch.inputs.shape == (len(rows), 16)
    inputs = batch.inputs.reshape(-1)[batch.where]
    assert (batch.targets == inputs + 1).all()
    firsts = {1, 6, 46, 49, 50, 67, 85, 87}
    assert sorted(batch.targets.tolist()) == sorted(set(range(1, 96)) - firsts)
    assert sum(tokens.learned) == len(batch.targets)


def test_documents_that_fit_are_never_cut(tokens: Tokens) -> None:
    assert max(tokens.lengths) <= 17
    assert pack(np.array([9, 8, 1, 17, 3]), 17).tolist() == [0, 2, 3, 4]
    batch = tokens.batch(in_order(tokens, 100))
    documents = np.cumsum(batch.positions == 0, axis=1)
    assert (np.diff(batch.positions, axis=1)[np.diff(documents, axis=1) == 0] == 1).all()


def test_a_stream_goes_on_from_where_it_was(tokens: Tokens) -> None:
    stream = Stream(tokens, seed=3)
    stream.take(5)
    middle = stream.state()
    later = [row.tolist() for row in stream.take(30)]
    assert stream.position.epoch > 1
    again = Stream(tokens, seed=3, position=Position(**middle))
    assert [row.tolist() for row in again.take(30)] == later
    assert [row.tolist() for row in Stream(tokens, seed=4).take(30)] != later


SHAPES = [
    GPT2Config(50, 64, 2, 2, 16, 32),
    LlamaConfig(50, 64, 2, 4, 2, 32, 48, tie_word_embeddings=False),
]


@pytest.mark.parametrize("shape", SHAPES, ids=["gpt2", "llama"])
@pytest.mark.parametrize("short", [0, 512])
def test_a_hidden_document_is_as_if_alone(
    shape: Any, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rosellm.rosetrainer.model.SHORT", short)
    torch.manual_seed(0)
    model: LanguageModel = build_model(as_dict(shape)).eval()
    ids = torch.randint(50, (2, 30))
    positions = torch.cat([torch.arange(12), torch.arange(18)]).repeat(2, 1)
    with torch.no_grad():
        packed = model(ids, positions)
        alone = model(ids[:, 12:])
        assert not torch.allclose(model(ids)[:, 12:], alone, atol=1e-4)
    torch.testing.assert_close(packed[:, 12:], alone, atol=1e-5, rtol=1e-5)

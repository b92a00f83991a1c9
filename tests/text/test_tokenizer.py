"""Every form of tokenizer encodes, decodes and is read from disk as its makers mean it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rosellm.roseinfer.errors import ModelError, RequestError
from rosellm.roseinfer.text.load import check_chat_template, load_tokenizer
from rosellm.roseinfer.text.tokenizer import Tokenizer
from tests.examples import examples
from tests.text.conftest import FORMS, LINES, MODELS

KNOWN = [
    "cl100k_base",
    "gpt2",
    "gpt-neox-20b",
    "phi-2-codegen",
    "phi-3-mini",
    "mistral-v1",
    "mistral-v3",
]
SAMPLES = [
    ("no_tools", 1),
    ("no_tools", 2),
    ("no_tools", 3),
    ("get_weather_full", 2),
    ("get_weather_full", 3),
    ("parallel_calls", 2),
    ("parallel_calls", 3),
]


def with_files(source: Path, folder: Path, **files: Any) -> str:
    """Copy a tokenizer's folder and put JSON files (by stem) beside it; return the folder."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    write_json(folder, **files)
    return str(folder)


def write_json(folder: Path, **files: Any) -> None:
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))


# -- encoding and decoding -------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_known_tokenizers(
    shared_data: Path, known_tokenizer: Callable[[str], Tokenizer], name: str
) -> None:
    tokenizer = known_tokenizer(name)
    expected = json.loads((shared_data / "tokenizers" / name / "expected.json").read_text())
    raw = "NOT parsed" in expected["made_by"]
    for case in expected["cases"]:
        ids = tokenizer.encode(case["text"], add_special_tokens=False, parse_special=not raw)
        assert ids == case["ids"]
        assert tokenizer.decode(ids, skip_special_tokens=False) == case["decoded"]
        for count, prefix in enumerate(case.get("decoded_prefixes", ()), start=1):
            assert tokenizer.decode(ids[:count], skip_special_tokens=False) == prefix


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(st.sampled_from("".join(LINES)), max_size=40))
def test_encoding_is_undone(tokenizers: dict[str, Tokenizer], form: str, text: str) -> None:
    if form in ("metaspace", "wordpiece", "sp-unigram"):
        text = " ".join(text.split())  # these forms do not keep white space as it is
    if form == "wordpiece":
        return
    tokenizer = tokenizers[form]
    for special in (True, False):
        ids = tokenizer.encode(text, add_special_tokens=special)
        unknown = tokenizer.token_to_id("<unk>") in ids
        assert unknown or tokenizer.decode(ids) == text


@pytest.mark.parametrize("form", FORMS)
def test_token_bytes_are_what_a_token_adds(tokenizers: dict[str, Tokenizer], form: str) -> None:
    tokenizer = tokenizers[form]
    start = next(id for id in range(tokenizer.vocab_size) if tokenizer.token_bytes(id)[-1:] == b"a")
    before = tokenizer.decode([start], skip_special_tokens=False)
    for id in range(tokenizer.vocab_size):
        text = tokenizer.decode([start, id], skip_special_tokens=False)[len(before) :]
        assert tokenizer.token_bytes(id).decode(errors="replace") == text
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""


@pytest.mark.parametrize("form", FORMS)
def test_special_ids_are_those_that_decoding_skips(
    tokenizers: dict[str, Tokenizer], form: str
) -> None:
    tokenizer = tokenizers[form]
    ids = range(tokenizer.vocab_size)
    start = next(id for id in ids if tokenizer.decode([id]) == "a")
    skipped = {
        id for id in ids if tokenizer.decode([start, id, start]) == tokenizer.decode([start] * 2)
    }
    assert skipped == tokenizer.special_ids
    assert skipped


@pytest.mark.parametrize("form", FORMS)
def test_ids_outside_the_vocabulary_have_no_text(
    tokenizers: dict[str, Tokenizer], form: str
) -> None:
    tokenizer = tokenizers[form]
    ids = tokenizer.encode("Lily")
    outside = [tokenizer.vocab_size, 10**6]
    assert tokenizer.decode([outside[0], *ids, *outside]) == tokenizer.decode(ids)


@pytest.mark.parametrize("form", FORMS)
def test_a_lone_surrogate_is_refused(tokenizers: dict[str, Tokenizer], form: str) -> None:
    with pytest.raises(RequestError, match="lone surrogate at character 3"):
        tokenizers[form].encode("abc\ud800")


@pytest.mark.parametrize("form", FORMS)
def test_token_to_id(tokenizers: dict[str, Tokenizer], form: str) -> None:
    tokenizer = tokenizers[form]
    assert tokenizer.decode([tokenizer.token_to_id("a")]) == "a"
    assert tokenizer.token_to_id("no such token") is None


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_sentencepiece_decodes_as_its_library_does(
    tokenizers: dict[str, Tokenizer],
    tokenizer_folders: dict[str, Path],
    name: str,
    data: st.DataObject,
) -> None:
    tokenizer = tokenizers[name]
    library = sentencepiece.SentencePieceProcessor(str(tokenizer_folders[name] / "tokenizer.model"))
    pieces = sorted(set(range(tokenizer.vocab_size)) - tokenizer.special_ids)
    ids = data.draw(st.lists(st.sampled_from(pieces), max_size=12))
    assert tokenizer.decode(ids) == library.decode(ids)


# -- special tokens --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["llama", "sp-llama"])
def test_special_tokens_of_llama(tokenizers: dict[str, Tokenizer], form: str) -> None:
    tokenizer = tokenizers[form]
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
    assert tokenizer.special_tokens["bos_token"] == "<s>"
    plain = tokenizer.encode("Lily", add_special_tokens=False)
    assert tokenizer.encode("Lily") == [1, *plain]
    assert tokenizer.encode("") == [1]
    assert tokenizer.encode("<s>Lily</s>", add_special_tokens=False) == [1, *plain, 2]
    raw = tokenizer.encode("<s>Lily", add_special_tokens=False, parse_special=False)
    assert 1 not in raw
    assert tokenizer.decode(raw) == "<s>Lily"
    assert tokenizer.decode([1, *plain, 2]) == "Lily"
    assert tokenizer.decode([*plain, 2], skip_special_tokens=False) == "Lily</s>"


def test_special_tokens_of_gpt2(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["bytes"]
    end = tokenizer.token_to_id("<|endoftext|>")
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (end, (end,))
    assert tokenizer.encode("a<|endoftext|>") == [*tokenizer.encode("a"), end]
    assert end not in tokenizer.encode("a<|endoftext|>", parse_special=False)


@pytest.mark.parametrize("form", ["llama", "sp-llama"])
def test_bos_is_added_once_and_eos_where_asked(
    tokenizer_folders: dict[str, Path], tmp_path: Path, form: str
) -> None:
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    flags = {"add_bos_token": True, "add_eos_token": True}
    folder = with_files(tokenizer_folders[form], tmp_path, tokenizer_config=config | flags)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("") == [1, 2]
    assert tokenizer.special_tokens.items() >= {"bos_token": "<s>", "eos_token": "</s>"}.items()


def test_bos_is_added_where_only_the_config_asks(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    config = {"bos_token": "<|endoftext|>", "add_bos_token": True}
    folder = with_files(tokenizer_folders["bytes"], tmp_path, tokenizer_config=config)
    tokenizer = load_tokenizer(folder)
    plain = tokenizer.encode("Lily", add_special_tokens=False)
    assert tokenizer.encode("Lily") == [tokenizer.bos_id, *plain]
    assert tokenizer.eos_ids == ()


def test_sentencepiece_without_bos(tokenizer_folders: dict[str, Path], tmp_path: Path) -> None:
    config = {"add_bos_token": False}
    folder = with_files(tokenizer_folders["sp-llama"], tmp_path, tokenizer_config=config)
    assert load_tokenizer(folder).encode("") == []


def test_a_token_that_the_config_names_is_special(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    names = {"eos_token": "    ", "image_token": "Lily", "pad_token": "[PAD]"}
    folder = with_files(tokenizer_folders["bytes"], tmp_path, special_tokens_map=names)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.special_tokens == names
    assert tokenizer.eos_ids == (tokenizer.token_to_id("    "),)
    assert set(tokenizer.eos_ids) < tokenizer.special_ids
    assert tokenizer.decode(tokenizer.encode("a    b")) == "ab"


def test_a_piece_that_the_config_names_is_special(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    added = {"2": {"content": "</s>", "special": False}, "420": {"content": "<x>"}}
    config = {"added_tokens_decoder": added, "eos_token": "▁Lily", "pad_token": "</s>"}
    folder = with_files(tokenizer_folders["sp-llama"], tmp_path, tokenizer_config=config)
    tokenizer = load_tokenizer(folder)
    [lily] = tokenizer.eos_ids
    assert tokenizer.decode([420, lily, 2, 420]) == "<x><x>"


def test_tokens_added_to_a_sentencepiece_model(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    added = {
        "420": {"content": "<|end|>", "special": True, "rstrip": True, "lstrip": True},
        "425": {"content": "<tool>", "special": False},
    }
    config = {"added_tokens_decoder": added, "eos_token": "<|end|>"}
    folder = with_files(tokenizer_folders["sp-llama"], tmp_path, tokenizer_config=config)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.vocab_size, tokenizer.eos_ids) == (426, (420,))
    lily = tokenizer.encode("Lily", add_special_tokens=False)
    ids = tokenizer.encode("Lily <|end|>\n Lily<tool>", add_special_tokens=False)
    assert ids == [*lily, 420, *lily, 425]
    assert tokenizer.decode(ids) == "Lily Lily<tool>"
    assert tokenizer.decode([425, 422, 420], skip_special_tokens=False) == "<tool><|end|>"
    assert [tokenizer.token_bytes(id) for id in (420, 422)] == [b"<|end|>", b""]


@pytest.mark.parametrize("form", ["bytes", "sp-llama"])
@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_special_tokens_without_a_name(
    tokenizer_folders: dict[str, Path], tmp_path: Path, form: str, key: str
) -> None:
    size = load_tokenizer(str(tokenizer_folders[form])).vocab_size
    config = {
        "added_tokens_decoder": {str(size): {"content": "<x>"}, str(size + 1): {"content": "<y>"}},
        key: ["<x>"] if key.startswith("add") else {"x_token": {"content": "<x>"}},
    }
    tokenizer = load_tokenizer(
        with_files(tokenizer_folders[form], tmp_path, tokenizer_config=config)
    )
    ids = tokenizer.encode("a<x><y>", add_special_tokens=False)
    assert ids[-2:] == [size, size + 1]
    assert tokenizer.decode(ids) == "a<y>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a<x><y>"


def test_tokens_that_only_the_config_adds_to_a_tokenizer_json(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    size = load_tokenizer(str(tokenizer_folders["llama"])).vocab_size
    added = {
        "1": {"content": "<s>", "special": True},
        str(size): {"content": "<|end|>", "special": True, "lstrip": True, "rstrip": True},
        str(size + 1): {"content": "lily", "normalized": False, "single_word": True},
    }
    folder = with_files(
        tokenizer_folders["llama"], tmp_path, tokenizer_config={"added_tokens_decoder": added}
    )
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("a <|end|> a lily lilys", add_special_tokens=False)
    assert [id for id in ids if id >= size] == [size, size + 1]
    added[str(size + 9)] = {"content": "far"}
    write_json(tmp_path, tokenizer_config={"added_tokens_decoder": added})
    with pytest.raises(ModelError, match=f"'far' cannot have id {size + 9}"):
        load_tokenizer(folder)


def test_added_tokens_of_the_older_file(tokenizer_folders: dict[str, Path], tmp_path: Path) -> None:
    files = {
        "added_tokens": {"<|a|>": 420, "<|b|>": 421},
        "special_tokens_map": {"additional_special_tokens": [{"content": "<|b|>"}]},
    }
    tokenizer = load_tokenizer(with_files(tokenizer_folders["sp-llama"], tmp_path, **files))
    assert tokenizer.encode("<|a|><|b|>", add_special_tokens=False) == [420, 421]
    assert tokenizer.decode([420, 421]) == "<|a|>"


@pytest.mark.parametrize("legacy", [True, False])
def test_the_space_after_a_special_token(
    tokenizer_folders: dict[str, Path], tmp_path: Path, legacy: bool
) -> None:
    config = {"legacy": legacy}
    folder = with_files(tokenizer_folders["sp-llama"], tmp_path, tokenizer_config=config)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("[INST]Lily", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == "[INST]" + " " * legacy + "Lily"


@pytest.mark.parametrize(("sample", "version"), SAMPLES)
def test_mistrals_own_samples(shared_data: Path, tmp_path: Path, sample: str, version: int) -> None:
    folder = shared_data / "mistral-samples" / sample
    model = shared_data / "tokenizers" / ("mistral-v1" if version == 1 else "mistral-v3")
    tokenizer = load_tokenizer(with_files(model, tmp_path, tokenizer_config={"legacy": False}))
    text = (folder / f"text_v{version}.txt").read_text().replace("▁", " ").replace("<0x0A>", "\n")
    expected = json.loads((folder / f"tokens_v{version}.json").read_text())["tokens"]
    assert tokenizer.encode(text, add_special_tokens=False) == expected


def test_both_forms_of_one_tokenizer_agree(shared_data: Path) -> None:
    folder = shared_data / "stories260K" / "hf"
    fast, slow = (load_tokenizer(str(folder / f"tokenizer.{form}")) for form in ("json", "model"))
    assert (fast.vocab_size, fast.bos_id, fast.eos_ids) == (512, 1, (2,))
    assert (slow.vocab_size, slow.bos_id, slow.eos_ids) == (512, 1, (2,))
    for text in ["", " ", *LINES, "<s> a</s>b ", "日本語 �\n\t 😀"]:
        for options in ({}, {"add_special_tokens": False}, {"parse_special": False}):
            ids = fast.encode(text, **options)
            assert slow.encode(text, **options) == ids
        for skip in (True, False):
            texts = {form.decode(ids, skip_special_tokens=skip) for form in (fast, slow)}
            assert len(texts) == 1
    assert [fast.token_bytes(id) for id in range(512)] == [
        slow.token_bytes(id) for id in range(512)
    ]


# -- chat templates beside the tokenizer -----------------------------------------------------


def test_chat_template_sources(tokenizer_folders: dict[str, Path], tmp_path: Path) -> None:
    """One more source at a time, each of which comes before the ones already there."""
    folder = tmp_path

    def found() -> str | dict[str, str] | None:
        return load_tokenizer(with_files(tokenizer_folders["bytes"], folder)).chat_template

    assert found() is None
    write_json(folder, chat_template={"chat_template": "older"})
    assert found() == "older"
    write_json(folder, tokenizer_config={"chat_template": "in config"})
    assert found() == "in config"
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    write_json(folder, tokenizer_config={"chat_template": named})
    assert found() == {"default": "d", "tool_use": "t"}
    (folder / "chat_template.jinja").write_text("own file")
    assert found() == "own file"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("r")
    assert found() == {"default": "own file", "rag": "r"}


def test_a_template_instead_of_the_models_own(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = with_files(tokenizer_folders["bytes"], tmp_path / "model")
    (tmp_path / "mine.jinja").write_text("mine")
    assert load_tokenizer(folder, str(tmp_path / "mine.jinja")).chat_template == "mine"
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    write_json(tmp_path / "model", tokenizer_config={"chat_template": named})
    assert load_tokenizer(folder, "tool_use").chat_template == "t"
    check_chat_template(folder, "tool_use")
    with pytest.raises(ModelError, match="chat template rag: no such file"):
        check_chat_template(folder, "rag")


# -- finding and reading files ---------------------------------------------------------------


def gpt2_files(folder: Path, tokenizer_json: Path) -> Path:
    """Write a byte-level tokenizer.json as GPT-2's two files."""
    model = json.loads(tokenizer_json.read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return folder


@pytest.mark.parametrize("name", ["", "vocab.json", "merges.txt"])
def test_gpt2_files(
    tokenizers: dict[str, Tokenizer],
    tokenizer_folders: dict[str, Path],
    tmp_path: Path,
    name: str,
) -> None:
    gpt2_files(tmp_path, tokenizer_folders["bytes"] / "tokenizer.json")
    tokenizer, same = load_tokenizer(str(tmp_path / name)), tokenizers["bytes"]
    for text in [*LINES, " a<|endoftext|>", "😀"]:
        assert tokenizer.encode(text) == same.encode(text)
        assert tokenizer.decode(same.encode(text), skip_special_tokens=False) == text
    assert tokenizer.special_tokens == same.special_tokens
    assert tokenizer.eos_ids == same.eos_ids


def test_gpt2_files_with_added_tokens(tokenizer_folders: dict[str, Path], tmp_path: Path) -> None:
    gpt2_files(tmp_path, tokenizer_folders["bytes"] / "tokenizer.json")
    size = load_tokenizer(str(tmp_path)).vocab_size
    write_json(tmp_path, added_tokens={"<|im_end|>": size, "  ": size + 1})
    write_json(tmp_path, tokenizer_config={"eos_token": "<|im_end|>"})
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.encode("<|im_end|>  ") == [size, size + 1]
    assert (tokenizer.eos_ids, tokenizer.decode([size, size + 1])) == ((size,), "  ")
    write_json(tmp_path, added_tokens={"<|im_end|>": 3})
    with pytest.raises(ModelError, match=r"'<\|im_end\|>' cannot have id 3"):
        load_tokenizer(str(tmp_path))


def test_two_files_of_another_kind_are_refused(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    gpt2_files(tmp_path, tokenizer_folders["bytes"] / "tokenizer.json")
    write_json(tmp_path, tokenizer_config={"tokenizer_class": "Qwen2Tokenizer"})
    with pytest.raises(ModelError, match=r"Qwen2Tokenizer, which needs a tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_the_clearest_of_several_forms_is_taken(
    tokenizers: dict[str, Tokenizer], tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    gpt2_files(tmp_path, tokenizer_folders["bytes"] / "tokenizer.json")
    for form in ("sp-llama", "llama"):
        with_files(tokenizer_folders[form], tmp_path)
        assert load_tokenizer(str(tmp_path)).encode("a") == tokenizers[form].encode("a")


def test_settings_for_training_are_ignored(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    data = json.loads((tokenizer_folders["bytes"] / "tokenizer.json").read_text())
    data["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    data["padding"] = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.decode(tokenizer.encode("a"), skip_special_tokens=False) == "a"
    assert tokenizer.decode(tokenizer.encode(LINES[0])) == LINES[0]


@pytest.mark.parametrize(
    ("files", "source", "reason"),
    [
        (
            {},
            "",
            "expected tokenizer.json, tokenizer.model, a .tiktoken file, or vocab.json with",
        ),
        ({}, "no/such/place", "no such file or folder"),
        ({"x.tiktoken": "YQ== 0\nrose"}, "", "line 2 is not a token in base64 and its rank"),
        ({"x.tiktoken": "YQ== 0\nYWI 1"}, "x.tiktoken", "line 2 is not valid base64"),
        ({"x.tiktoken": "YQ== 0\nYg== 0"}, "", "two tokens have rank 0"),
        ({"tokenizer.model": "YQ== 0\n"}, "", "no rank for byte 0x00"),
        ({"vocab.json": "{}"}, "", "needs merges.txt beside it"),
        ({"merges.txt": ""}, "merges.txt", "needs vocab.json beside it"),
        ({"vocab.json": "[", "merges.txt": ""}, "", "vocab.json with merges.txt cannot be read"),
        ({"vocab.json": "{}", "merges.txt": "#version\na b"}, "", "cannot be read"),
        ({"tokenizer.json": '{"version": '}, "", "not a readable tokenizer.json"),
        ({"tokenizer.json": "{}"}, "tokenizer.json", "not a readable tokenizer.json"),
        ({"tokenizer.model": ""}, "", "not a readable SentencePiece model"),
        ({"tokenizer.model": "text"}, "", "not a readable SentencePiece model"),
        ({"tokenizer.json": "", "tokenizer_config.json": "{,}"}, "", "config.json is not valid"),
        ({"tokenizer.json": "", "tokenizer_config.json": "[]"}, "", "should hold a JSON object"),
        (
            {"tokenizer.json": "", "tokenizer_config.json": '{"added_tokens_decoder": {"a": {}}}'},
            "",
            "malformed",
        ),
        (
            {"tokenizer.json": "", "tokenizer_config.json": '{"chat_template": [{"name": "x"}]}'},
            "",
            "malformed",
        ),
        ({"tokenizer.json": "", "chat_template.jinja": b"\xff"}, "", "jinja cannot be read"),
    ],
)
def test_what_cannot_be_loaded(
    tmp_path: Path, files: dict[str, str | bytes], source: str, reason: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError, match=reason) as caught:
        load_tokenizer(str(tmp_path / source))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_id_far_beyond_every_vocabulary(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    """All ids below the largest one are gone through at start: that would take for ever."""
    path = tmp_path / "tokenizer.json"
    content = json.loads((tokenizer_folders["bytes"] / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    for far in (2**22, 2**31, 2**32 - 1):
        vocabulary[next(iter(vocabulary))] = far
        path.write_text(json.dumps(content))
        with pytest.raises(ModelError, match=f"tokenizer.json: token id {far} is too large"):
            load_tokenizer(str(path))


def test_a_truncated_sentencepiece_model(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    model = (tokenizer_folders["sp-llama"] / "tokenizer.model").read_bytes()
    path = tmp_path / "tokenizer.model"
    for size in range(1, len(model), 501):
        path.write_bytes(model[:size])
        with pytest.raises(ModelError, match="not a readable SentencePiece model"):
            load_tokenizer(str(path))


def test_importing_loads_no_tokenizer_library() -> None:
    libraries = ("tokenizers", "sentencepiece", "huggingface_hub", "torch", "transformers")
    code = (
        "import sys, rosellm.roseinfer.text.detokenize, rosellm.roseinfer.text.tokenizer\n"
        f"print([name for name in {libraries} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

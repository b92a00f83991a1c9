"""``rosellm inspect``: facts of models of each form, from their files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rosellm import cli
from rosellm.roseinfer.runner import memory
from tests.e2e.conftest import write_tokenizer
from tests.tiny_models import write_gpt2, write_llama, write_rose_gpt

Show = pytest.CaptureFixture[str]


def facts(capsys: Show, *argv: str) -> dict[str, str]:
    """Run the command; return its rows by name."""
    assert cli.main(["inspect", *argv]) == 0
    title, *rows = capsys.readouterr().out.splitlines()
    assert title == argv[0]
    cells = (row.strip().split("  ", maxsplit=1) for row in rows if row)
    return {name: value.strip() for name, value in cells}


def complaint(capsys: Show, *argv: str) -> str:
    assert cli.main(["inspect", *argv]) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = tmp_path / "llama"
    folder.mkdir()
    write_tokenizer(folder / "tokenizer.json")
    return write_llama(folder, dtype=torch.bfloat16, shards=3)


def test_a_llama(capsys: Show, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda _: 1 << 30)
    found = facts(capsys, str(llama))
    parameters = 97 * 48 * 2 + 48 + 2 * (48 * 48 * 2 + 16 * 48 * 2 + 84 * 48 * 3 + 48 * 2)
    assert found["architecture"] == "LlamaForCausalLM (models/llama.py)"
    assert found["parameters"] == f"{parameters:,} (46 k)"
    assert found["stored"] == f"bfloat16, {parameters * 2 / 1024:.2f} KiB"
    assert (found["layers"], found["hidden size"], found["MLP"]) == ("2", "48", "84 wide")
    assert found["heads"] == "6, with 2 for keys and values, of 8"
    assert (found["vocabulary"], found["context"]) == ("97", "256 tokens")
    assert found["positions"] == "rotary, theta 10,000, 8 dimensions"
    assert found["runs in"].startswith("bfloat16 (as in the checkpoint), on ")
    bytes_per_token = 2 * 2 * 2 * 8 * 2
    assert found["memory, KV cache"].startswith(f"{bytes_per_token} bytes a token; ")
    tokens = int(found["fits"].split()[0].replace(",", ""))
    share = 0.5 if not torch.cuda.is_available() else 0.9
    assert 0.99 < tokens * bytes_per_token / (share * (1 << 30)) <= 1
    assert "tokenizer.json, " in found["tokenizer"]
    assert found["special tokens"] == "bos <|endoftext|> (0), eos <|endoftext|> (0)"
    assert found["chat template"] == "none: messages are put into a plain format"
    assert (found["answers end at"], found["generation"]) == ("0, 2", "no defaults")


def test_flags_are_those_of_serve(capsys: Show, llama: Path) -> None:
    (llama / "mine.jinja").write_text("hi")
    found = facts(
        capsys,
        *(str(llama), "--dtype", "float32", "--max-model-len", "99"),
        *("--chat-template", str(llama / "mine.jinja"), "--device", "cpu"),
    )
    assert found["runs in"].startswith("float32 (asked for), on cpu (asked for)")
    assert found["fits"].endswith("the longest sequence 99")
    assert found["chat template"] == "yes"


def test_files_beside_the_weights(capsys: Show, llama: Path) -> None:
    templates = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
    config = {"chat_template": templates, "pad_token": "[PAD]"}
    (llama / "tokenizer_config.json").write_text(json.dumps(config))
    generation = {"temperature": 0.6, "top_k": 20, "eos_token_id": [1, 5], "max_length": 9}
    (llama / "generation_config.json").write_text(json.dumps(generation))
    found = facts(capsys, str(llama))
    assert found["chat template"] == "yes, named: default, rag"
    assert "pad [PAD] (no id)" in found["special tokens"]
    assert found["generation"] == "temperature 0.6, top_k 20"
    assert found["answers end at"] == "0, 1, 5"


def test_layers_that_differ(capsys: Show, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "architectures": ["Gemma3ForCausalLM"],
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 84,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 32,
        "sliding_window_pattern": 3,
        "max_position_embeddings": 256,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "hidden_activation": "gelu_pytorch_tanh",
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = facts(capsys, str(tmp_path))
    assert found["stored"] == "the weights are not here; bfloat16, by the config"
    (tmp_path / "config.json").write_text(json.dumps({**config, "torch_dtype": None}))
    silent = facts(capsys, str(tmp_path))
    assert silent["stored"] == "the weights are not here; float32, by the config"
    assert silent["runs in"].startswith("float32 (as in the checkpoint), on ")
    assert found["windows"] == "the latest 32 positions: 2 layers; all positions: 1 layers"
    local, whole = found["positions"].split("; ")
    assert local == "rotary, theta 10,000, 8 dimensions: 2 layers"
    assert whole == "rotary, theta 1,000,000, 8 dimensions, scaling linear (factor 8): 1 layers"
    assert found["vocabulary"] == "97, head tied to the embeddings"
    assert found["tokenizer"].startswith("none: ")


def test_gpt2(capsys: Show, tmp_path: Path) -> None:
    found = facts(capsys, str(write_gpt2(tmp_path / "gpt2")))
    assert found["positions"] == "learned, a row for each"
    assert found["tokenizer"].startswith("none: no tokenizer in ")


def test_a_checkpoint_of_rosetrainer(capsys: Show, tmp_path: Path) -> None:
    path = write_rose_gpt(tmp_path / "last.pt")
    found = facts(capsys, str(path))
    assert found["architecture"] == "RoseGPT (models/gpt2.py)"
    assert found["tokenizer"] == "none: name one with --tokenizer"
    write_tokenizer(tmp_path / "tokenizer.json")
    assert "tokens" in facts(capsys, str(path), "--tokenizer", str(tmp_path))["tokenizer"]


def test_an_architecture_that_is_not_supported(capsys: Show, llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "architectures": ["MambaLM"]}))
    found = facts(capsys, str(llama))
    assert found["architecture"] == "MambaLM: not supported (see rosellm models)"
    assert found["stored"].startswith("bfloat16, ")
    assert "layers" not in found
    assert "tokenizer" in found


def test_too_little_memory(capsys: Show, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda _: 1000)
    found = facts(capsys, str(llama))
    assert found["fits"] == "no: the weights alone need more memory than is free"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["/no/such/place"], "no such folder or file"),
        (["FOLDER", "--chat-template", "/no/such/file"], "/no/such/file: no such file"),
        (["FOLDER", "--max-model-len", "0"], "--max-model-len must be at least 1"),
        (["--tokenizer", "FOLDER"], "which model?"),
    ],
)
def test_mistakes_are_one_clear_line(capsys: Show, llama: Path, argv: list[str], says: str) -> None:
    line = complaint(capsys, *(each.replace("FOLDER", str(llama)) for each in argv))
    assert line.startswith("error: ")
    assert says in line


def test_a_damaged_config(capsys: Show, llama: Path) -> None:
    (llama / "config.json").write_text("{")
    assert "config.json: not readable as JSON" in complaint(capsys, str(llama))

"""Files that are mutated, truncated or hostile give one line, never a traceback, hang or crash."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rosellm import cli
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.quant import cache
from tests.e2e.conftest import write_tokenizer
from tests.faults import loading
from tests.text.conftest import sentencepiece_model
from tests.tiny_models import engine_config, write_gpt2, write_llama, write_rose_gpt

ROOT = Path(__file__).parents[2]
TEMPLATE = (
    "{%- for m in messages %}{{ '<|' ~ m.role ~ '|>' }}{% if m.content is string %}"
    "{{ m.content|trim }}{% else %}{{ m.content|tojson }}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|endoftext|>",
    "eos_token": {"content": "<|endoftext|>", "lstrip": False, "__type": "AddedToken"},
    "add_bos_token": True,
    "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True}},
    "additional_special_tokens": ["<|endoftext|>"],
    "chat_template": [{"name": "default", "template": TEMPLATE}],
    "model_max_length": 64,
}
GENERATION = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "eos_token_id": [0, 2]}
SIZES: dict[str, int] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models of every form, with all the files that may stand beside one."""
    root = tmp_path_factory.mktemp("hostile")
    for name in ("whole", "shards", "gpt2", "pieces", "rose"):
        (root / name).mkdir()
    size = write_tokenizer(root / "whole" / "tokenizer.json")
    write_llama(root / "whole", vocab_size=size, **SIZES)
    (root / "whole" / "chat_template.jinja").write_text(TEMPLATE)
    _describe(root / "whole")
    write_tokenizer(root / "shards" / "tokenizer.json")
    write_llama(root / "shards", vocab_size=size, shards=2, **SIZES)
    _describe(root / "shards")
    write_gpt2(root / "gpt2", vocab_size=size, n_embd=8, n_head=2, n_positions=64)
    write_tokenizer(root / "gpt2" / "tokenizer.json")
    (root / "pieces" / "tokenizer.model").write_bytes(
        sentencepiece_model(model_type="unigram", vocab_size=80)
    )
    write_llama(root / "pieces", vocab_size=80, **SIZES)
    write_tokenizer(root / "rose" / "tokenizer.json")
    write_rose_gpt(root / "rose" / "model.pt", vocab_size=size, d_model=8, n_heads=2, d_ff=12,
                   max_position_embeddings=64)  # fmt: skip
    for folder in root.iterdir():
        loading.take_in(next(folder.glob("*.pt"), folder), folder)  # they are well as they are
    return root


def _describe(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<|endoftext|>"}))


@pytest.mark.parametrize(
    "first", [0, 50, 100, *(pytest.param(n, marks=pytest.mark.slow) for n in (150, 200, 250))]
)
def test_hostile_files_are_taken_in_or_refused(first: int, pristine: Path) -> None:
    assert not [
        wrong for seed in range(first, first + 50) if (wrong := loading.verdict(seed, pristine))
    ]


COUNT, AT_ONCE = 10_000, 250


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_hostile_files(pristine: Path) -> None:
    """In processes of their own, whose memory is limited: a crash is seen too."""
    wrong = [
        each for first in range(1000, 1000 + COUNT, AT_ONCE) for each in _tried(first, pristine)
    ]
    assert not wrong, "\n".join(wrong)


def _tried(first: int, pristine: Path) -> Iterator[str]:
    """What went wrong with a part of them; a process that ends early is started behind the seed."""
    end = first + AT_ONCE
    while first < end:
        command = [sys.executable, "-m", "tests.faults.loading"]
        done = subprocess.run(
            [*command, str(pristine), str(first), str(end - first)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        said = [json.loads(line) for line in done.stdout.splitlines()]
        yield from (each["wrong"] for each in said if each["wrong"])
        first += len(said)
        if first < end:
            yield f"seed {first}: ended with code {done.returncode}: {done.stderr[-300:]}"
            first += 1


# -- the command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "file", "content"),
    [
        ("whole", "config.json", b"\xff"),
        ("whole", "config.json", b"[" * 100_000),
        ("whole", "model.safetensors", b"\xff" * 100),
        ("whole", "tokenizer.json", b"{}"),
        ("shards", "tokenizer_config.json", b'{"chat_template": 5}'),
        ("whole", "chat_template.jinja", b"{% for %}"),
        ("whole", "generation_config.json", b'{"temperature": -1}'),
        ("shards", "model.safetensors.index.json", b'{"weight_map": {"a": "/etc/passwd"}}'),
        ("rose", "model.pt", b"PK\x03\x04 no more"),
        ("pieces", "tokenizer.model", b"\x0a\xff\xff\xff\xff\x0f"),
    ],
    ids=range(10),
)
def test_serve_says_one_line_and_exits_with_2(
    kind: str, file: str, content: bytes, pristine: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / kind
    shutil.copytree(pristine / kind, folder)
    (folder / file).write_bytes(content)
    model = [str(folder)]
    if kind == "rose":
        model = [str(folder / "model.pt"), "--tokenizer", str(folder)]
    code = cli.main(["generate", *model, "Hi", "--device=cpu", "--max-tokens=1"])
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert code == 2
    [line] = lines
    assert file in line or kind in line or "chat template" in line


def test_a_kept_quantised_model_that_is_damaged_is_made_anew(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is a file of ours, but on a disk of others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = engine_config(pristine / "whole", quantization="int8", kv_cache_gb=0.001)
    first = build_engine(config).facts.fingerprint
    [entry] = cache.cache_root().iterdir()
    for content in (b"", b"\xff" * 50, (entry / "model.safetensors").read_bytes()[:-100]):
        (entry / "model.safetensors").unlink()
        (entry / "model.safetensors").write_bytes(content)
        assert build_engine(config).facts.fingerprint == first

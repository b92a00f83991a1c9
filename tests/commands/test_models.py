"""``rosellm models``: every architecture of the registry, and what lies in the hub's cache."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from rosellm import cli
from rosellm.commands.models import summary
from rosellm.roseinfer.models.registry import ARCHITECTURES

Show = pytest.CaptureFixture[str]


def cached(cache: Path, repo: str, commit: str, config: dict[str, Any] | None, *files: str) -> None:
    """Put a model into a cache, as the hub's client lays it out."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "blobs").mkdir()
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in files:
        (snapshot / name).write_bytes(bytes(3 << 20))
    if config is not None:
        (snapshot / "config.json").write_text(json.dumps(config))


def models(capsys: Show) -> list[str]:
    assert cli.main(["models"]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path / "cache")
    )
    return tmp_path / "cache"


def test_every_architecture_has_its_line(capsys: Show) -> None:
    lines = models(capsys)
    assert lines[0] == "Supported architectures"
    named = [line.split()[0] for line in lines[2 : 2 + len(ARCHITECTURES)]]
    assert named == list(ARCHITECTURES)
    llama = next(line for line in lines if line.startswith("  LlamaForCausalLM"))
    assert "RMSNorm" in llama
    assert "arXiv" not in llama
    assert "\n".join(lines).isascii()


@pytest.mark.parametrize("target", sorted(set(ARCHITECTURES.values())))
def test_every_module_says_what_it_is(target: str) -> None:
    text = summary(target.partition(":")[0])
    assert text
    assert "(" not in text
    assert not text.endswith(".")


def test_the_cache(capsys: Show, cache: Path) -> None:
    llama = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
    cached(cache, "org/whole", "a" * 40, llama, "model.safetensors")
    cached(cache, "Org/only-config", "b" * 40, llama)
    cached(cache, "org/strange", "c" * 40, {"architectures": ["Mamba"], "dtype": "float16"})
    cached(cache, "org/files", "d" * 40, None, "x.gguf")
    title, _, *rows = models(capsys)[-7:-1]
    assert title == f"In the cache, {cache}"
    cells = {row.split()[0]: row.split(maxsplit=7) for row in rows}
    assert list(cells) == ["org/files", "Org/only-config", "org/strange", "org/whole"]
    assert cells["org/whole"][1:] == [
        *("aaaaaaaa", "(main)", "3.00", "MiB", "LlamaForCausalLM", "bfloat16", "yes")
    ]
    assert cells["Org/only-config"][-1] == "its weights are not here yet"
    assert cells["org/strange"][5:] == ["Mamba", "float16", "no: the architecture is not supported"]
    assert cells["org/files"][5:] == ["-", "-", "no: it has no config.json"]


@pytest.mark.parametrize("there", [True, False])
def test_an_empty_cache(capsys: Show, cache: Path, there: bool) -> None:
    if there:
        cache.mkdir()
    assert models(capsys)[-1].startswith(f"In the cache, {cache}: ")


def test_neither_torch_nor_the_web_framework_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys; from rosellm.cli import main; main(['models'])\n"
        "print([name for name in ('torch', 'fastapi', 'tokenizers') if name in sys.modules])"
    )
    environment = {"HF_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""

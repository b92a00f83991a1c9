"""``rosellm quantize``: what is written is a model like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rosellm import cli
from tests.e2e.conftest import write_tokenizer
from tests.tiny_models import write_llama, write_rose_gpt

Show = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    size = write_tokenizer(folder / "tokenizer.json")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (folder / "LICENSE.txt").write_text("yours")
    (folder / "notes.md").write_text("mine")
    return write_llama(folder, vocab_size=size, dtype=torch.bfloat16)


def answer(capsys: Show, model: Path, *flags: str) -> str:
    argv = ["generate", str(model), "Once upon", "--max-tokens", "12", "--temperature", "0"]
    assert cli.main([*argv, *flags]) == 0
    return capsys.readouterr().out


def complaint(capsys: Show, *argv: str) -> str:
    assert cli.main(["quantize", *argv]) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_folder_that_loads_directly(capsys, model, tmp_path, kind):
    out = tmp_path / "new" / "out"
    assert cli.main(["quantize", str(model), str(out), "--quantization", kind]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith(f"{out}: ")
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"),
        *("chat_template.jinja", "LICENSE.txt"),
    }
    assert answer(capsys, out) == answer(capsys, model, "--quantization", kind)


def test_4_bits_unless_told_otherwise(capsys, model, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["quantize", str(model), str(out)]) == 0
    assert cli.main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "int4 in groups of 128, head int8 in groups of 128" in shown
    assert "bfloat16, quantised" in shown


def test_a_checkpoint_with_a_tokenizer_from_elsewhere(capsys, model, tmp_path):
    checkpoint = write_rose_gpt(tmp_path / "last.pt", vocab_size=400)
    out = tmp_path / "out"
    argv = ["quantize", str(checkpoint), str(out), "--tokenizer", str(model)]
    assert cli.main(argv) == 0
    capsys.readouterr()
    found = answer(capsys, out)
    flags = ["--tokenizer", str(model), "--quantization", "int4"]
    assert found == answer(capsys, checkpoint, *flags)


def test_mistakes(capsys, model, tmp_path):
    out = str(tmp_path / "out")
    assert "nothing to do" in complaint(capsys, str(model), out, "--quantization", "none")
    assert "no such folder" in complaint(capsys, "./nowhere", out)
    assert "something already" in complaint(capsys, str(model), str(model))
    assert "unknown flag --device" in complaint(capsys, str(model), out, "--device", "cpu")
    (tmp_path / "file").touch()
    assert "file: File exists" in complaint(capsys, str(model), f"{tmp_path}/file/out")
    assert not Path(out).exists()

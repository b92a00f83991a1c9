"""``rosellm train`` and ``rosellm export`` as typed, and what they say when something is wrong."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from rosellm import cli
from rosellm.rosetrainer import plot, train
from rosellm.rosetrainer.checkpoint import load_checkpoint
from rosellm.rosetrainer.config import load_config
from rosellm.rosetrainer.export import export
from tests.trainer.conftest import ROOT


def rosellm(*words: str) -> int:
    return cli.main(list(words))


def run_toml(place: Path, *words: str) -> int:
    return rosellm("train", str(place / "run.toml"), "--set", "run.steps=6", *words)


def test_train_and_export_from_the_command_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_toml(place, "--prepare-only") == 0
    assert not (place / "run").exists()
    assert run_toml(place) == 0
    said = capsys.readouterr().err
    assert "step 4/6" in said
    assert "validation loss" in said
    assert rosellm("export", str(place / "run/best.pt"), str(place / "out")) == 0
    assert {path.name for path in (place / "out").iterdir()} == {
        "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json",
        "chat_template.jinja", "model.safetensors",
    }  # fmt: skip


def test_the_module_is_the_same_command(place: Path) -> None:
    assert train.main([str(place / "run.toml"), "--set", "run.steps=2"]) == 0
    assert train.main([str(place / "none.toml")]) == 2


def test_fresh_starts_over_and_a_changed_model_must(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_toml(place) == 0
    assert run_toml(place) == 0
    assert "going on from step 6" in capsys.readouterr().err
    assert run_toml(place, "--set", "model.n_layers=1") == 2
    assert "trained with a different model; --fresh" in capsys.readouterr().err
    assert run_toml(place, "--set", "model.n_layers=1", "--fresh") == 0


def test_a_run_may_start_from_anothers_weights(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_toml(place) == 0
    more = ("--set", "run.out=more", "--set", "run.start_from=run/last.pt")
    assert run_toml(place, *more, "--set", "data.seq_len=32", "--set", "optimizer.lr=0") == 0
    first, second = (load_checkpoint(place / name / "last.pt")["model"] for name in ("run", "more"))
    assert all(first[name].equal(second[name]) for name in first)
    capsys.readouterr()
    assert run_toml(place, *more, "--fresh", "--set", "model.d_ff=8") == 2
    assert "do not fit this model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "shape",
    [
        "llama with forms",
        *(pytest.param(shape, marks=pytest.mark.slow) for shape in ("llama", "gpt2")),
    ],
)
def test_a_run_may_start_from_what_was_exported(
    place: Path, capsys: pytest.CaptureFixture[str], shape: str
) -> None:
    how = {
        "llama": (),
        "llama with forms": ("--set", "model.shared_embedding=true"),
        "gpt2": ("--set", "model.architecture=gpt2", "--set", "model.n_kv_heads=0"),
    }[shape]
    assert run_toml(place, *how) == 0
    export(place / "run" / "last.pt", place / "folder")
    more = (*how, "--set", "run.out=more", "--set", "run.start_from=folder")
    assert run_toml(place, *more, "--set", "optimizer.lr=0") == 0
    export(place / "more" / "last.pt", place / "again")
    first, second = (load_file(place / name / "model.safetensors") for name in ("folder", "again"))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
    capsys.readouterr()
    assert run_toml(place, *more, "--fresh", "--set", "model.d_ff=8") == 2
    assert "do not fit this model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("run.stepz=1", "no key of [run] is called 'stepz'; did you mean 'steps'?"),
        ("runs.steps=1", "no section is called 'runs'; did you mean 'run'?"),
        ("run.steps=0", "run.steps is at least 1, not 0"),
        ("run.steps=many", "run.steps is an integer, not 'many'"),
        ("run.steps", "expected SECTION.KEY=VALUE"),
        ("run.dtype=half", "run.dtype is one of auto, bfloat16, float16, float32, not 'half'"),
        ("run.dtype=float16", "run.dtype float16 is for GPUs"),
        ("run.micro_batch_size=3", "run.batch_size is no multiple of run.micro_batch_size"),
        ("data.train=[]", "data.train names no files"),
        ('data.train=["none.txt"]', "none.txt: no such file"),
        ("data.valid_fraction=1.0", "data.valid_fraction is below 1, not 1.0"),
        ("model.n_heads=5", "model.d_model (32) is no multiple of model.n_heads"),
        ("model.architecture=gpt2", "a gpt2 has as many as heads"),
        ("model.max_positions=16", "model.max_positions is less than data.seq_len"),
        ("optimizer.lr=nan", "optimizer.lr is at least 0"),
        ("optimizer.lr=1e30", "the loss is nan at step"),
        ("run.out=text.txt", "cannot be written"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    override: str, complaint: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_toml(place, "--set", override) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ")
    assert complaint in last


@pytest.mark.parametrize("text", ["[run", "run = 3\n[data]\ntrain = ['a.txt']"])
def test_a_file_that_is_no_config_is_said(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.toml").write_text(text)
    assert rosellm("train", str(tmp_path / "bad.toml")) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_example_is_a_config_and_has_every_key() -> None:
    example = ROOT / "rosellm/rosetrainer/example.toml"
    config = load_config(str(example))
    text = example.read_text()
    for section in ("model", "tokenizer", "data", "optimizer", "run"):
        for name in vars(getattr(config, section)):
            assert f"\n{name} = " in text


class FullDisk:
    """A file that takes some bytes and no more."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written: int = self._file.write(data)
        return written


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_toml(place) == 0
    before = (place / "run/last.pt").read_bytes()
    real = Path.open

    def open_(path: Path, *args: Any, **kwargs: Any) -> Any:
        file = real(path, *args, **kwargs)
        return FullDisk(file, 1000) if path.suffix == ".tmp" and ".pt" in path.name else file

    monkeypatch.setattr(Path, "open", open_)
    assert run_toml(place, "--set", "run.steps=9") == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: checkpoint ")
    assert last.endswith("cannot be written: No space left on device")
    assert (place / "run/last.pt").read_bytes() == before
    assert not list((place / "run").glob("*.tmp"))


def test_a_picture_is_drawn_where_matplotlib_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 1, "val_loss": 2.5}\n')
    assert "loss.png" in plot.draw_losses(tmp_path / "log.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_line_says_how_to_get_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        assert name == "matplotlib"

    monkeypatch.setattr(plot, "find_spec", missing)
    assert "rosellm[train]" in plot.draw_losses(tmp_path / "log.jsonl", tmp_path / "loss.png")

"""Runs: the loss falls, and neither an interruption nor a second process changes the outcome."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rosellm.rosetrainer.checkpoint import KEYS, load_checkpoint
from rosellm.rosetrainer.config import TrainConfig
from rosellm.rosetrainer.optimizer import learning_rate
from rosellm.rosetrainer.train import train
from tests.trainer.conftest import ROOT, MakeConfig, gpt2_changes

SMALL = {
    "optimizer__name": "muon",
    "model__shared_embedding": True,
    "tokenizer__even_forms": True,
}
CHANGES = {"llama": {}, "gpt2": gpt2_changes(), "small": SMALL}


def each_kind(*quick: str) -> list[Any]:
    """Of what takes seconds each, one kind or two are tried by default."""
    marks = pytest.mark.slow
    return [pytest.param(name, marks=() if name in quick else marks) for name in CHANGES]


def weights(config: TrainConfig, name: str = "last.pt") -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = load_checkpoint(config.path(config.run.out) / name)["model"]
    return model


def log(config: TrainConfig) -> list[dict[str, Any]]:
    text = (config.path(config.run.out) / "log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_same(one: Any, other: Any) -> None:
    """Equal in bits, through all containers."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


def entropy(tokens: npt.NDArray[Any]) -> float:
    """What knowing how often each token comes, and nothing else, gets to: nats per token."""
    share = np.unique(tokens, return_counts=True)[1] / len(tokens)
    return float(-(share * np.log(share)).sum())


@pytest.mark.parametrize("name", each_kind("llama"))
def test_the_loss_falls_on_a_real_text(name: str, configure: MakeConfig) -> None:
    changes = {**CHANGES[name], "model__dropout": 0.0, "model__d_model": 64}
    config = configure(
        **changes,
        data__train=["text.txt"],
        data__valid=["text.txt"],
        optimizer__lr=4e-3,
        run__steps=120,
        run__batch_size=8,
        run__eval_every=40,
    )
    train(config)
    rows = log(config)
    losses = [row["loss"] for row in rows if "loss" in row]
    valid = [row["val_loss"] for row in rows if "val_loss" in row]
    assert losses[0] > 5
    assert losses[-1] < entropy(np.load(config.path("cache/train.tokens.npy"))) - 0.1
    assert valid == sorted(valid, reverse=True)
    assert load_checkpoint(config.path("run/best.pt"))["extra"]["best"] == valid[-1]


@pytest.mark.parametrize("name", each_kind("gpt2", "small"))
def test_resumed_equals_uninterrupted_in_bits(name: str, configure: MakeConfig) -> None:
    whole = configure(**CHANGES[name], run__out="whole")
    train(whole)
    parts = configure(**CHANGES[name], run__out="parts")
    while not (parts.folder / "parts/last.pt").exists() or (
        load_checkpoint(parts.folder / "parts/last.pt")["step"] < parts.run.steps
    ):
        train(parts, stop_after=0.02)
    left, right = (load_checkpoint(config.path(config.run.out) / "last.pt")
                   for config in (whole, parts))  # fmt: skip
    assert left["extra"].pop("train_config") != right["extra"].pop("train_config")  # run.out
    assert_same(left, right)
    assert [row for row in log(whole) if "val_loss" in row] == [
        row for row in log(parts) if "val_loss" in row
    ]


def test_passes_of_any_size_add_up_to_the_same_step(configure: MakeConfig) -> None:
    whole, small = (
        configure(run__out=f"of{size}", run__micro_batch_size=size, run__steps=4, **extra)
        for size, extra in ((4, {}), (1, {"run__activation_checkpointing": True}))
    )
    train(whole)
    train(small)
    one, other = weights(whole), weights(small)
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=0)


def test_documents_of_a_row_are_hidden_from_each_other_if_asked(configure: MakeConfig) -> None:
    open_, hidden = (
        configure(run__out=f"{mask}", data__mask_documents=mask, data__seq_len=512, run__steps=2)
        for mask in (False, True)
    )
    train(open_)
    train(hidden)
    one, other = weights(open_), weights(hidden)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


@pytest.mark.slow
def test_two_processes_equal_one(place: Path, configure: MakeConfig) -> None:
    one = configure(run__steps=6, run__out="one")
    train(one)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               "-m", "rosellm.rosetrainer.train", str(place / "run.toml"),
               "--set", "run.steps=6", "--set", "run.out=two",
               "--set", "run.micro_batch_size=1"]  # fmt: skip
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    left, right = weights(one), load_checkpoint(place / "two/last.pt")["model"]
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=1e-5, rtol=0)
    two = [json.loads(line) for line in (place / "two/log.jsonl").read_text().splitlines()]
    for row, other in zip(log(one), two, strict=True):
        for key in row.keys() & {"loss", "val_loss"}:
            assert abs(row[key] - other[key]) < 1e-5


KILLED_IN_SAVE = """
import os, signal, sys
from rosellm.rosetrainer import checkpoint, files
from rosellm.rosetrainer.train import main
save = checkpoint.torch.save
def half(content, file):
    if content["step"] == 12:
        file.write(b"half a checkpoint")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(content, file)
checkpoint.torch.save = half
main([sys.argv[1]])
"""


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_saves_leaves_the_last_checkpoint(
    place: Path, configure: MakeConfig
) -> None:
    command = [sys.executable, "-c", KILLED_IN_SAVE, str(place / "run.toml")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert load_checkpoint(place / "run/last.pt")["step"] == 6
    train(configure())
    assert load_checkpoint(place / "run/last.pt")["step"] == 12


@pytest.mark.slow
def test_an_interrupt_saves_and_leaves(place: Path) -> None:
    command = [sys.executable, "-m", "rosellm.rosetrainer.train", str(place / "run.toml"),
               "--set", "run.steps=100000"]  # fmt: skip
    process = subprocess.Popen(
        command, env=environment(), stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stderr is not None
    with process.stderr as lines:
        for text in lines:
            if text.startswith("step"):
                break
        process.send_signal(signal.SIGINT)
        said = lines.read()
    assert process.wait(60) == 0
    assert "the same command goes on" in said
    assert load_checkpoint(place / "run/last.pt")["step"] > 0


def test_a_checkpoint_is_the_seeds_dict_of_plain_things(configure: MakeConfig) -> None:
    config = configure(**gpt2_changes(), run__steps=2)
    train(config)
    content = torch.load(config.path("run/last.pt"), weights_only=True)
    assert set(content) == set(KEYS)
    assert set(content["config"]) == {
        "vocab_size", "max_position_embeddings", "n_layers", "n_heads", "d_model", "d_ff",
        "dropout",
    }  # fmt: skip
    assert content["step"] == 2
    assert content["extra"]["tokens"] == 2 * 4 * 64


def test_the_learning_rate_warms_up_and_falls(configure: MakeConfig) -> None:
    section = configure(optimizer__lr=1.0, optimizer__warmup_steps=10).optimizer
    rates = [learning_rate(step, 100, section) for step in range(101)]
    assert rates[:10] == [(step + 1) / 10 for step in range(10)]
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)

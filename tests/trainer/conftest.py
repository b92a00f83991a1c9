"""Small runs: a config file, data for it, and training in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rosellm.rosetrainer.config import TrainConfig, load_config

ROOT = Path(__file__).parents[2]

SETTINGS: dict[str, dict[str, Any]] = {
    "model": {"n_layers": 2, "d_model": 32, "n_heads": 4, "n_kv_heads": 2},
    "tokenizer": {"vocab_size": 320},
    "data": {"train": ["text.txt", "chats.jsonl"], "valid_fraction": 0.1, "seq_len": 64},
    "optimizer": {"lr": 5e-3, "warmup_steps": 5},
    "run": {
        "steps": 12,
        "batch_size": 4,
        "device": "cpu",
        "log_every": 4,
        "eval_every": 6,
        "eval_sequences": 4,
        "save_every": 6,
    },
}
GPT2: dict[str, Any] = {"architecture": "gpt2", "n_kv_heads": 0, "dropout": 0.1}

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def chat(number: int) -> dict[str, Any]:
    """A row of chat-JSONL with two turns of the assistant, one of them a call."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": number}}}
    return {
        "messages": [
            {"role": "user", "content": f"Say {number}."},
            {"role": "assistant", "content": f"{number}!"},
            {"role": "user", "content": "Call the tool."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
        "tools": TOOLS,
    }


def write_toml(path: Path, settings: dict[str, dict[str, Any]]) -> Path:
    lines = []
    for section, values in settings.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with ``text.txt``, ``chats.jsonl`` and ``run.toml``."""
    (tmp_path / "text.txt").write_text((ROOT / "README.md").read_text())
    rows = [json.dumps(chat(number)) for number in range(60)]
    (tmp_path / "chats.jsonl").write_text("\n".join(rows) + "\n")
    write_toml(tmp_path / "run.toml", SETTINGS)
    return tmp_path


MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def configure(place: Path) -> MakeConfig:
    """The small run's config, with ``section__key=value`` set otherwise."""

    def make(**changes: Any) -> TrainConfig:
        overrides = [
            f"{name.replace('__', '.')}={json.dumps(value)}" for name, value in changes.items()
        ]
        return load_config(str(place / "run.toml"), overrides)

    return make


def gpt2_changes() -> dict[str, Any]:
    return {f"model__{name}": value for name, value in GPT2.items()}

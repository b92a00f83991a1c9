"""An exported folder gives the trainer's logits in transformers and in the engine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rosellm.roseinfer.config import SamplingDefaults
from rosellm.roseinfer.errors import ConfigError, ModelError
from rosellm.roseinfer.loading.open import open_checkpoint
from rosellm.roseinfer.server.defaults import load_defaults
from rosellm.rosetrainer.checkpoint import load_checkpoint
from rosellm.rosetrainer.export import export
from rosellm.rosetrainer.model import build_model
from rosellm.rosetrainer.train import train
from tests.e2e.conftest import start_server
from tests.tiny_models import all_logits, build, random_prompts
from tests.trainer.conftest import MakeConfig, chat, gpt2_changes

CHANGES: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied": {"model__tied": False, "model__rope_theta": 500.0},
    "shared": {"model__shared_embedding": True, "tokenizer__even_forms": True},
    "gpt2": gpt2_changes(),
}


def trained(configure: MakeConfig, name: str) -> Path:
    config = configure(**CHANGES[name], run__steps=6, optimizer__lr=2e-2)
    train(config)
    return config.path("run/last.pt")


def trainer_logits(checkpoint: Path, ids: list[int]) -> torch.Tensor:
    content = load_checkpoint(checkpoint)
    model = build_model(content["config"])
    model.load_state_dict(content["model"])
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(torch.tensor([ids]))[0]
    return logits


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("llama", "gpt2") else pytest.mark.slow)
        for name in CHANGES
    ],
)
def test_logits_agree_with_transformers_and_the_engine(
    name: str, configure: MakeConfig, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = trained(configure, name)
    export(checkpoint, tmp_path / "out")
    (ids,) = random_prompts([50], 320)
    ours = trainer_logits(checkpoint, ids)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0]
    assert ours.std() > 0.1
    torch.testing.assert_close(theirs, ours, atol=2e-5, rtol=1e-5)
    served = all_logits(build(tmp_path / "out"), ids)
    torch.testing.assert_close(served, ours, atol=2e-5, rtol=1e-5)


def test_a_gpt2_checkpoint_is_served_as_it_is(configure: MakeConfig) -> None:
    checkpoint = trained(configure, "gpt2")
    (ids,) = random_prompts([50], 320)
    served = all_logits(build(checkpoint), ids)
    torch.testing.assert_close(served, trainer_logits(checkpoint, ids), atol=2e-5, rtol=1e-5)


def test_a_llama_checkpoint_is_to_be_exported_first(configure: MakeConfig) -> None:
    with pytest.raises(ModelError, match="`rosellm export` it first"):
        open_checkpoint(str(trained(configure, "llama")))


@pytest.mark.slow
def test_the_seeds_command_serves_a_gpt2_checkpoint(configure: MakeConfig, tmp_path: Path) -> None:
    checkpoint = trained(configure, "gpt2")
    export(checkpoint, tmp_path / "out")
    running = start_server(
        "--checkpoint-path", str(checkpoint), "--tokenizer-name", str(tmp_path / "out"),
        model="last",
    )  # fmt: skip
    message = {"role": "user", "content": "Say 3."}
    answer = running.openai.chat.completions.create(
        model=running.openai.models.list().data[0].id, messages=[message], max_tokens=4
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert running.stop() == 0


def test_tokenizer_and_template_travel_along(configure: MakeConfig, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    export(trained(configure, "llama"), tmp_path / "out", "bfloat16")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    row = chat(7)
    text = tokenizer.apply_chat_template(row["messages"], tools=row["tools"], tokenize=False)
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 7}}\n</tool_call><|im_end|>' in text
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert len(tokenizer("<tool_call>").input_ids) == 1
    ends = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>", "<|endoftext|>"]
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


def test_what_cannot_be_exported_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such checkpoint"):
        export(tmp_path / "none.pt", tmp_path / "out")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(ConfigError, match="not a readable checkpoint"):
        export(tmp_path / "text.pt", tmp_path / "out")
    torch.save({"model": argparse.Namespace()}, tmp_path / "object.pt")
    with pytest.raises(ConfigError, match="not a readable checkpoint"):
        export(tmp_path / "object.pt", tmp_path / "out")
    torch.save({"model": {}}, tmp_path / "bare.pt")
    with pytest.raises(ConfigError, match="expected a checkpoint with model"):
        export(tmp_path / "bare.pt", tmp_path / "out")


def test_a_default_temperature_travels_along(configure: MakeConfig, tmp_path: Path) -> None:
    export(trained(configure, "llama"), tmp_path / "out", temperature=0.25)
    written = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert written["temperature"] == 0.25
    assert written["do_sample"] is True
    assert load_defaults(tmp_path / "out", SamplingDefaults(), ()).temperature(None) == 0.25

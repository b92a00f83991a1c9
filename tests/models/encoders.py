"""A small random encoder, texts for it, and their vectors.

Knows no client and no oracle: it is needed where only torch and what rosellm needs are installed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.messages import Add
from tests.tiny_models import greedy, random_prompts, write_safetensors

BERT: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 84,
    "hidden_act": "gelu",
    "max_position_embeddings": 160,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


def write_bert(
    folder: Path,
    config: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    pooling: dict[str, Any] | None = None,
    masked: bool = False,
) -> Path:
    """A folder as a publisher has it.

    Args:
        pooling: content of ``1_Pooling/config.json``.
        masked: as trained on masked tokens, and as old: with a head, ``gamma`` and ``beta``.
    """
    weights = bert_weights(config)
    if masked:
        prefix = config["architectures"][0].partition("For")[0].lower().removeprefix("xlm")
        weights = {f"{prefix}.{old_name(name)}": tensor for name, tensor in weights.items()}
        head = "cls.predictions" if prefix == "bert" else "lm_head"
        weights[f"{head}.bias"] = torch.zeros(config["vocab_size"])
    else:
        weights["pooler.dense.weight"] = torch.zeros(config["hidden_size"], config["hidden_size"])
        weights["pooler.dense.bias"] = torch.zeros(config["hidden_size"])
        positions = torch.arange(config["max_position_embeddings"])
        weights["embeddings.position_ids"] = positions[None]
    folder.mkdir(parents=True)
    named = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps({**config, "dtype": named}))
    floats = {n: t.to(dtype) if t.is_floating_point() else t for n, t in weights.items()}
    write_safetensors(folder, floats)
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def old_name(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )


def bert_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    width, inner = config["hidden_size"], config["intermediate_size"]

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    weights = {
        f"embeddings.{table}_embeddings.weight": matrix(config[rows], width)
        for table, rows in [
            ("word", "vocab_size"),
            ("position", "max_position_embeddings"),
            ("token_type", "type_vocab_size"),
        ]
    }
    norms, linears = ["embeddings."], {}
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}."
        norms += [f"{at}attention.output.", f"{at}output."]
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linears[f"{at}attention.{name}"] = (width, width)
        linears[f"{at}intermediate.dense"] = (inner, width)
        linears[f"{at}output.dense"] = (width, inner)
    for name in norms:
        weights[f"{name}LayerNorm.weight"] = 1 + matrix(width)
        weights[f"{name}LayerNorm.bias"] = matrix(width)
    for name, shape in linears.items():
        weights[f"{name}.weight"], weights[f"{name}.bias"] = matrix(*shape), matrix(shape[0])
    return weights


_ids = itertools.count(1)


def embed(
    core: EngineCore, prompts: Sequence[Sequence[int]], per_step: int | None = None
) -> list[Tensor]:
    """Vectors of all prompts, ``per_step`` new ones before each step (None: all at once)."""
    adds = [Add(next(_ids), list(prompt), greedy(1), want="pooled") for prompt in prompts]
    found: dict[int, Tensor] = {}
    waiting = list(adds)
    while len(found) < len(adds):
        for add in waiting[:per_step]:
            core.add(add)
        waiting = waiting[per_step:] if per_step else []
        for row in core.step().rows:
            assert row.pooled is not None, row.error
            assert (row.tokens, row.finish, row.last) == ([], "stop", True)
            values = np.frombuffer(row.pooled.data, dtype="<f4").copy()
            found[row.id] = torch.from_numpy(values)
        core.scheduler.check()
    assert not core.has_work
    return [found[add.id] for add in adds]


def texts(lengths: Sequence[int], vocab_size: int = 97) -> list[list[int]]:
    """Without the tokens that are padding to transformers."""
    return [[max(t, 2) for t in prompt] for prompt in random_prompts(lengths, vocab_size)]

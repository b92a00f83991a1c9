"""A checkpoint as a Hugging Face folder, for rosellm, transformers and everything beside them.

The checkpoint brings its tokenizer and chat template along, so nothing else is needed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from rosellm.roseinfer.errors import ConfigError
from rosellm.rosetrainer.checkpoint import load_checkpoint
from rosellm.rosetrainer.files import one_line_errors, write_file, write_text
from rosellm.rosetrainer.model import with_one_embedding

# GPT-2's names here and there. Matrices of a "Conv1D" are stored input first.
GPT2_NAMES = {
    "token_embedding": "wte",
    "position_embedding": "wpe",
    r"blocks\.(\d+)\.ln1": r"h.\1.ln_1",
    r"blocks\.(\d+)\.ln2": r"h.\1.ln_2",
    r"blocks\.(\d+)\.attn\.qkv_proj": r"h.\1.attn.c_attn",
    r"blocks\.(\d+)\.attn\.out_proj": r"h.\1.attn.c_proj",
    r"blocks\.(\d+)\.mlp\.fc1": r"h.\1.mlp.c_fc",
    r"blocks\.(\d+)\.mlp\.fc2": r"h.\1.mlp.c_proj",
    "ln_f": "ln_f",
}
CONV1D = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")


def run(args: argparse.Namespace) -> int:
    """Export as a parsed command line says."""
    if args.temperature is not None and not 0 <= args.temperature <= 2:
        raise ConfigError(f"--temperature is from 0 to 2, not {args.temperature}")
    export(Path(args.checkpoint), Path(args.out), args.dtype, args.temperature)
    print(f"wrote {args.out}", file=sys.stderr)
    return 0


def export(
    checkpoint: Path, out: Path, dtype: str = "float32", temperature: float | None = None
) -> None:
    """Write config, weights, tokenizer, generation config and chat template.

    Args:
        dtype: of the weights: float32, bfloat16 or float16.
        temperature: the model's default, for its generation config; None says nothing.

    Raises:
        ConfigError: the checkpoint cannot be read or has no tokenizer; the disk is full.
    """
    content = load_checkpoint(checkpoint)
    extra = content["extra"]
    if not isinstance(extra, dict) or "tokenizer" not in extra:
        raise ConfigError(f"{checkpoint}: 'extra' holds no tokenizer to export")
    special = _special_tokens(extra)
    weights = hf_weights(content["model"], content["config"])
    stored = {name: _stored(tensor, dtype) for name, tensor in weights.items()}
    with one_line_errors(f"folder {out}"):
        out.mkdir(parents=True, exist_ok=True)
        _write_json(out / "config.json", hf_config(content["config"], special, dtype))
        _write_json(out / "generation_config.json", _generation_config(special, temperature))
        _write_json(out / "tokenizer_config.json", _tokenizer_config(content["config"], special))
        write_text(out / "tokenizer.json", extra["tokenizer"])
        write_text(out / "chat_template.jinja", extra["chat_template"])
        payload = save(stored, metadata={"format": "pt"})
        write_file(out / "model.safetensors", lambda file: file.write(payload))


def _stored(tensor: Tensor, dtype: str) -> Tensor:
    return tensor.to(getattr(torch, dtype)).contiguous()


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


# -- tokens ------------------------------------------------------------------------


def _special_tokens(extra: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Names and ids of bos, end of a text and end of a turn, as far as the tokenizer has them."""
    section = extra["train_config"]["tokenizer"]
    ids = {token["content"]: token["id"] for token in _added_tokens(extra["tokenizer"])}
    named = {name: section[f"{name}_token"] for name in ("bos", "eos", "turn")}
    return {name: (token, ids[token]) for name, token in named.items() if token in ids}


def _added_tokens(tokenizer: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(tokenizer).get("added_tokens", [])
    return found


def _end_ids(special: Mapping[str, tuple[str, int]]) -> list[int]:
    """Ids that end an answer: a turn's end first."""
    return [special[name][1] for name in ("turn", "eos") if name in special]


def _tokenizer_config(
    config: Mapping[str, Any], special: Mapping[str, tuple[str, int]]
) -> dict[str, Any]:
    end = special.get("turn") or special.get("eos")
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
    }
    named = {"bos_token": special.get("bos"), "eos_token": end, "pad_token": special.get("eos")}
    return values | {name: token[0] for name, token in named.items() if token}


def _generation_config(
    special: Mapping[str, tuple[str, int]], temperature: float | None
) -> dict[str, Any]:
    values: dict[str, Any] = {"eos_token_id": _end_ids(special)}
    if temperature is not None:
        values |= {"do_sample": temperature > 0, "temperature": temperature}
    if "bos" in special:
        values["bos_token_id"] = special["bos"][1]
    if "eos" in special:
        values["pad_token_id"] = special["eos"][1]
    return values


# -- models ------------------------------------------------------------------------


def hf_config(
    config: Mapping[str, Any], special: Mapping[str, tuple[str, int]], dtype: str
) -> dict[str, Any]:
    """``config.json`` of either architecture."""
    shape = _llama_config(config) if "architecture" in config else _gpt2_config(config)
    ends = _end_ids(special)
    bos = special.get("bos")
    return {
        **shape,
        "vocab_size": config["vocab_size"],
        "bos_token_id": bos[1] if bos else None,
        "eos_token_id": ends[0] if ends else None,
        "dtype": dtype,
    }


def _llama_config(config: Mapping[str, Any]) -> dict[str, Any]:
    ours = ("architecture", "stems")
    shape = {name: value for name, value in config.items() if name not in ours}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **shape,
        "head_dim": config["hidden_size"] // config["num_attention_heads"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


def _gpt2_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": config["n_layers"],
        "n_head": config["n_heads"],
        "n_embd": config["d_model"],
        "n_inner": config["d_ff"],
        "n_positions": config["max_position_embeddings"],
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": config["dropout"],
        "embd_pdrop": config["dropout"],
        "attn_pdrop": config["dropout"],
        "tie_word_embeddings": True,
    }


def hf_weights(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights under Hugging Face's names; a tied head is left out."""
    if "architecture" in config:
        tied = config["tie_word_embeddings"]
        state = with_one_embedding(state)
        return {name: t for name, t in state.items() if not (tied and name == "lm_head.weight")}
    return dict(hf_name(name, t) for name, t in state.items() if name != "lm_head.weight")


def hf_name(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """What Hugging Face calls a weight, and the weight as it is stored there: a view."""
    if name.startswith(("model.", "lm_head.")):
        return name, tensor  # a Llama
    stem, _, kind = name.rpartition(".")
    for pattern, there in GPT2_NAMES.items():
        if match := re.fullmatch(pattern, stem):
            renamed = f"transformer.{match.expand(there)}.{kind}"
            return renamed, tensor.t() if renamed.endswith(CONV1D) else tensor
    raise ConfigError(f"the checkpoint's weight {name} belongs to no GPT-2")

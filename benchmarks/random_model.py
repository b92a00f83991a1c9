"""Writes a model of a real shape with random weights, so that speed needs no download.

    python -m benchmarks.random_model gpt2-small --out models/gpt2-small

The folder is what a publisher would have made: config, safetensors, tokenizer. Speed does not
depend on what weights are, only on their shape; what such a model says is noise.
"""

from __future__ import annotations

import argparse
import json
import string
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

END = "<|endoftext|>"

GPT2_SMALL: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}

# Llama 3.2 1B, without its rope scaling, which changes neither sizes nor speed.
LLAMA_1B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}

# Llama 3.1 8B, likewise.
LLAMA_8B: dict[str, Any] = {
    **LLAMA_1B,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "head_dim": 128,
    "tie_word_embeddings": False,
}

QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}

# Next to no weights and a context of 128k: what is left is the engine and attention.
TINY_LONG: dict[str, Any] = {
    **LLAMA_1B,
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}

# Of no size at all: what runs on them is tried, not measured.
TINY_GPT2: dict[str, Any] = {
    **GPT2_SMALL,
    "vocab_size": 512,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 256,
}
TINY_QWEN3: dict[str, Any] = {
    **QWEN3_06B,
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
}

SHAPES = {
    "gpt2-small": GPT2_SMALL,
    "qwen3-0.6b": QWEN3_06B,
    "llama-3.2-1b": LLAMA_1B,
    "llama-3.1-8b": LLAMA_8B,
    "tiny-long": TINY_LONG,
}


def write_model(
    config: dict[str, Any], folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """Write a model folder; the same arguments give the same bytes."""
    describe_model(config, folder, dtype=dtype)
    weights = dict(random_weights(config, dtype, torch.device("cpu"), seed))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def describe_model(config: dict[str, Any], folder: Path, *, dtype: torch.dtype) -> None:
    """Write all of a model folder but its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    end = config["vocab_size"] - 1
    ends = {"bos_token_id": end, "eos_token_id": end}
    named = {**config, **ends, "torch_dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(named, indent=2))
    (folder / "generation_config.json").write_text(json.dumps(ends))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(config["vocab_size"])))
    named_ends = {"bos_token": END, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(named_ends))


def random_weights(
    config: dict[str, Any], dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors, each made on the device when it is asked for."""
    make = _Random(seed, dtype, device)
    return _gpt2(config, make) if config["model_type"] == "gpt2" else _llama(config, make)


# -- weights ---------------------------------------------------------------------------------


class _Random:
    """Matrices from one generator, small as trained ones are; norms and biases as at the start."""

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self._dtype = dtype
        self._device = device

    def matrix(self, rows: int, columns: int) -> Tensor:
        values = torch.randn(rows, columns, generator=self._generator, device=self._device)
        return values.mul_(0.02).to(self._dtype)

    def ones(self, width: int) -> Tensor:
        return torch.ones(width, dtype=self._dtype, device=self._device)

    def zeros(self, width: int) -> Tensor:
        return torch.zeros(width, dtype=self._dtype, device=self._device)


def _gpt2(config: dict[str, Any], make: _Random) -> Iterator[tuple[str, Tensor]]:
    width = config["n_embd"]
    yield "wte.weight", make.matrix(config["vocab_size"], width)
    yield "wpe.weight", make.matrix(config["n_positions"], width)
    yield "ln_f.weight", make.ones(width)
    yield "ln_f.bias", make.zeros(width)
    matrices = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }
    for layer in range(config["n_layer"]):
        for name in ("ln_1", "ln_2"):
            yield f"h.{layer}.{name}.weight", make.ones(width)
            yield f"h.{layer}.{name}.bias", make.zeros(width)
        for name, (into, out) in matrices.items():  # Conv1D: the input dimension comes first
            yield f"h.{layer}.{name}.weight", make.matrix(into, out)
            yield f"h.{layer}.{name}.bias", make.zeros(out)


def _llama(config: dict[str, Any], make: _Random) -> Iterator[tuple[str, Tensor]]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    yield "model.embed_tokens.weight", make.matrix(config["vocab_size"], width)
    yield "model.norm.weight", make.ones(width)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", make.matrix(config["vocab_size"], width)
    matrices = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}.{name}.weight", make.ones(width)
        if config["model_type"] == "qwen3":
            for name in ("q_norm", "k_norm"):
                yield f"{at}.self_attn.{name}.weight", make.ones(config["head_dim"])
        for name, (rows, columns) in matrices.items():
            yield f"{at}.{name}.weight", make.matrix(rows, columns)


# -- tokenizer -------------------------------------------------------------------------------


def tokenizer(vocab_size: int) -> dict[str, Any]:
    """A byte-level BPE in ``tokenizer.json``'s form, of exactly this size.

    After the 256 bytes come merges as a trained tokenizer has them, except that they run
    through the alphabet: so loading, encoding and decoding cost what they cost with a real one,
    and what the model says is ASCII. The last id is the end of text.
    """
    merges = list(islice(_merges(), vocab_size - 257))
    if len(merges) != vocab_size - 257:
        raise ValueError(f"a vocabulary of {vocab_size}: between 257 and 493,763 can be made")
    tokens = [*byte_alphabet(), *(left + right for left, right in merges)]
    end = {"id": vocab_size - 1, "content": END, "special": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": [{**end, **plain}],
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs that make every string of two to four characters, short ones first.

    Characters are letters; the first may be ``Ġ``, as byte-level tokenizers write a space.
    """
    stems = ["Ġ", *string.ascii_lowercase]
    for _ in range(3):
        pairs = [(stem, letter) for stem in stems for letter in string.ascii_lowercase]
        yield from pairs
        stems = [left + right for left, right in pairs]


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for every byte, in its order (``encoder.py``, openai/gpt-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = len(set(range(256)) - set(printable))
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(others)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    print(write_model(SHAPES[args.shape], args.out, dtype=dtype, seed=args.seed))


if __name__ == "__main__":
    main()

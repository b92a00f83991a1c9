"""What few bits cost a model: this engine's formats beside llama.cpp's, of the same weights.

    python -m benchmarks.cpu_quality MODEL --llama-cpp DIR

``rosellm verify`` compares each with the model in float32 over one text. Of llama.cpp's files the
weights are read back and run by the reference path, so that what counts is only what they lost;
activations, which llama.cpp rounds to 8 bits in its products, are not rounded for it, but are for
this engine. MODEL is a folder of the Llama or Qwen family. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.peers import ours
from benchmarks.peers.contender import ROOT, Setup
from benchmarks.peers.llama_cpp import Llama, contenders

PLAIN = ["--dtype", "float32", "--kernels", "reference"]


def read_back(file: Path, model: Path, out: Path, gguf: Any) -> tuple[Path, float]:
    """Write a GGUF file's weights as a folder like the model's. Also gives bits a weight."""
    config = json.loads((model / "config.json").read_text())
    names = gguf.get_tensor_name_map(_architecture(gguf, config), config["num_hidden_layers"])
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    weights, num_bytes = {}, 0
    for name, plain in _plain(model):
        tensor = stored[names.get_name(name, (".weight", ".bias"))]
        num_bytes += int(tensor.n_bytes)
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        made = torch.tensor(numbers, dtype=torch.float32).reshape(plain.shape)
        weights[name] = _rotated_back(name, made, config)
    save_file(weights, out / "model.safetensors")
    return out, 8 * num_bytes / sum(weight.numel() for weight in weights.values())


def _architecture(gguf: Any, config: dict[str, Any]) -> Any:
    names = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    return names[config["model_type"]]


def _plain(model: Path) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(model.glob("*.safetensors")):
        yield from load_file(file).items()


def _rotated_back(name: str, weight: Tensor, config: dict[str, Any]) -> Tensor:
    """Undo the order that llama.cpp's converter gives rows of Llama's q and k, for its rope."""
    counts = {"q_proj.weight": "num_attention_heads", "k_proj.weight": "num_key_value_heads"}
    count = next((config[key] for end, key in counts.items() if name.endswith(end)), None)
    if count is None or config["model_type"] != "llama":
        return weight
    return weight.reshape(count, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def verify(model: Path, reference: Path, flags: list[str]) -> dict[str, Any]:
    """What ``rosellm verify`` finds."""
    call = "from rosellm.cli import main; import sys; sys.exit(main())"
    command = [sys.executable, "-c", call, "verify", str(model), "--reference", str(reference)]
    done = subprocess.run(
        [*command, *flags, "--json"], cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)["comparison"]
    return found


def measure(setup: Setup) -> Iterator[dict[str, Any]]:
    """A line for each format of ours and of theirs."""
    for name, (_, flags) in ours.FLAGS.items():
        if not name.startswith("reference"):
            bits = ours.weight_bits(setup.model, flags)
            yield _line(f"rosellm {name}", bits, verify(setup.model, setup.model, flags))
    for peer in contenders(setup):
        peer.open()
        with tempfile.TemporaryDirectory() as scratch:
            yield _theirs(peer, setup, Path(scratch) / "model")


def _theirs(peer: Llama, setup: Setup, scratch: Path) -> dict[str, Any]:
    gguf = peer.package()
    folder, bits = read_back(peer.file, setup.model, scratch, gguf)
    return _line(peer.name, bits, verify(folder, setup.model, PLAIN))


def _line(name: str, bits: float, found: dict[str, Any]) -> dict[str, Any]:
    print(
        f"{name:26} {bits:6.2f} bits   KL {found['kl_mean']:.2e}   "
        f"agreement {found['agreement']:.2%}   perplexity {found['perplexity']:.4f}"
        f" ({found['perplexity'] / found['reference_perplexity'] - 1:+.2%})",
        flush=True,
    )
    return {"name": name, "weight_bits": round(bits, 2), **found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="its sources and build")
    parser.add_argument("--forms", type=Path, help="folder to keep llama.cpp's files in")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        forms = args.forms or Path(scratch)
        setup = Setup(args.model, 2, (4, 8, 16), args.llama_cpp, None, forms)
        lines = list(measure(setup))
    print(json.dumps({"benchmark": "cpu-quality", "model": args.model.name, "formats": lines}))


if __name__ == "__main__":
    main()

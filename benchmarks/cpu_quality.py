"""What few bits cost a model: this engine's formats beside others', of the same weights.

    python -m benchmarks.cpu_quality MODEL [--llama-cpp DIR] [--openvino PYTHON] [--calibrate FILE]

Each is compared with the model in float32 over one text: ours by ``rosellm verify``, theirs by
their own libraries, which are given the same token ids. All round activations to 8 bits in
products of few bits. With a text of one's own, ours in 4 bits are also measured as ``rosellm
quantize --calibrate`` writes them: the same formats, which are as fast. MODEL is a folder of the
Llama or Qwen family. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from benchmarks.peers import llama_cpp, openvino, ours
from benchmarks.peers.contender import ROOT, Absent, Scoring, Setup
from rosellm.bench.cost import model_cost
from rosellm.commands.passages import tokenized
from rosellm.commands.verify import TEXT
from rosellm.roseinfer.config import EngineConfig, ModelConfig, SchedulerConfig
from rosellm.roseinfer.engine.compare import Pair, gather, reference_of, scores

TOKENS = 2048
ALONE = SchedulerConfig(max_num_seqs=1)


def rosellm(*words: str) -> str:
    """What a command prints."""
    call = "from rosellm.cli import main; import sys; sys.exit(main())"
    command = [sys.executable, "-c", call, *words]
    return subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True).stdout


def verify(model: Path, *flags: str) -> dict[str, Any]:
    """What ``rosellm verify`` finds."""
    found: dict[str, Any] = json.loads(rosellm("verify", str(model), *flags, "--json"))
    compared: dict[str, Any] = found["comparison"]
    return compared


def with_text(model: Path, text: Path, flags: list[str]) -> dict[str, Any]:
    """The same of what ``rosellm quantize`` writes for a text."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        rosellm("quantize", str(model), str(out), *flags, "--calibrate", str(text))
        return verify(out, "--reference", str(model))


def measure(setup: Setup, peers: list[Scoring], text: Path | None) -> Iterator[dict[str, Any]]:
    """A line for each format of ours and of theirs, over the text of ``rosellm verify``."""
    for name, (kind, flags) in ours.FLAGS.items():
        if not name.startswith("reference"):
            bits = ours.weight_bits(setup.model, flags)
            yield _line(f"rosellm {name}", bits, verify(setup.model, *flags))
            if text is not None and kind == 4 and "--kv-cache-dtype" not in flags:  # only weights
                found = with_text(setup.model, text, flags)
                yield _line(f"rosellm {name}, text", bits, found)
    model = ModelConfig(str(setup.model), device="cpu")
    passage = tokenized(model, TEXT.read_text(encoding="utf-8"), TOKENS)
    expected = scores(reference_of(EngineConfig(model, scheduler=ALONE)), passage)
    numbers = model_cost(str(setup.model), "bfloat16").parameters
    for peer in peers:
        peer.open()
        peer.close()
        found = gather(_pairs(expected, _theirs(peer, [ids for ids, _ in expected])))
        yield _line(peer.name, 8 * peer.weight_bytes / numbers, asdict(found))


def _peers(setup: Setup) -> Iterator[Scoring]:
    for name, peer in {"llama.cpp": llama_cpp, "OpenVINO": openvino}.items():
        try:
            yield from peer.contenders(setup)
        except Absent as error:
            print(f"without {name}: {error}")


def _theirs(peer: Scoring, windows: list[list[int]]) -> Tensor:
    """Scores by the library itself, which rounds activations too."""
    with tempfile.TemporaryDirectory() as scratch:
        asked, out = Path(scratch) / "windows.json", Path(scratch) / "scores.npy"
        asked.write_text(json.dumps(windows))
        subprocess.run([*peer.scoring(), str(asked), str(out)], cwd=ROOT, check=True)
        return torch.from_numpy(numpy.load(out))


def _pairs(expected: list[tuple[list[int], Tensor]], found: Tensor) -> Iterator[Pair]:
    for (window, meant), theirs in zip(
        expected, found.split([len(ids) for ids, _ in expected]), strict=True
    ):
        yield Pair(meant[:-1], theirs[:-1], torch.tensor(window[1:]))


def _line(name: str, bits: float, found: dict[str, Any]) -> dict[str, Any]:
    print(
        f"{name:30} {bits:6.2f} bits   KL {found['kl_mean']:.2e}   "
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
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="its sources and build")
    parser.add_argument("--openvino", type=Path, metavar="PYTHON", help="one that has OpenVINO")
    parser.add_argument("--calibrate", type=Path, metavar="FILE", help="other than verify's text")
    parser.add_argument("--forms", type=Path, help="folder to keep theirs in")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        forms = args.forms or Path(scratch)
        setup = Setup(args.model, 2, (4, 8, 16), args.llama_cpp, args.openvino, forms)
        lines = list(measure(setup, list(_peers(setup)), args.calibrate))
    print(json.dumps({"benchmark": "cpu-quality", "model": args.model.name, "formats": lines}))


if __name__ == "__main__":
    main()

"""What answers that have to fit a schema cost beside free ones: time per output token, one run.

    python -m benchmarks.grammar_cost --quantization int4
    python -m benchmarks.grammar_cost --model DIR --tokenizer DIR

Both kinds decode in the same engine and take turns, so that a slow minute falls on both. Counted
are the steps in which all sequences decode. Those of the constrained ones include everything that
a grammar adds: masks, the state that goes on with each token, looking for a way to end in time.
The model is a random one of a real shape with a vocabulary of that size; ``--tokenizer`` gives it
real tokens, whose masks take more finding out. The floor is the free answers' own time.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.random_model import SHAPES, write_model
from rosellm.bench.lengths import Lengths
from rosellm.bench.machine import describe
from rosellm.bench.offline import Load, Steps, drive, requests
from rosellm.bench.stats import median
from rosellm.roseinfer.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.messages import Add
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.text.grammar_source import JsonSchema, grammar_text

AIM = 1.05

TEXT = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": False,
}
"""A long string in a short form."""
RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "born": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
        "mood": {"enum": ["good", "bad", "so so"]},
        "scores": {"type": "array", "items": {"type": "number"}},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "number": {"type": "integer"}},
            "required": ["street", "number"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "born", "mood", "scores", "address"],
    "additionalProperties": False,
}
"""What schemas are made of, with little room to spare from the beginning."""
SCHEMAS: dict[str, Any] = {"free": None, "text": TEXT, "record": RECORD}


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model or write_model(SHAPES[args.shape], Path(scratch) / args.shape)
        config = EngineConfig(
            ModelConfig(
                str(model),
                device=args.device,
                tokenizer=args.tokenizer,
                quantization=args.quantization,
            ),
            CacheConfig(prefix_cache=False),
            SchedulerConfig(max_num_seqs=args.requests),
        )
        found = measure(build_engine(config), args)
    print(f"{args.requests} sequences, vocabulary {found['vocabulary']:,}, {found['dtype']}")
    for name in SCHEMAS:
        kind = found[name]
        ratio = f"x {kind['ratio']:.3f} (aim: {AIM})" if "ratio" in kind else "the floor"
        print(f"  {name:6} {kind['step_ms']:8.2f} ms a step   {ratio}")
    print(json.dumps(found))


def measure(core: EngineCore, args: argparse.Namespace) -> dict[str, Any]:
    """Mean time of the decoding steps, and the median of its ratio to the free ones' in a round."""
    seconds: dict[str, list[float]] = {name: [] for name in SCHEMAS}
    grammars = {
        name: grammar_text(JsonSchema(schema)) if schema else "" for name, schema in SCHEMAS.items()
    }
    for turn in range(args.rounds + 1):
        for name, grammar in grammars.items():
            steps = _run(core, args, grammar, turn).decoding(args.requests)
            if turn:  # the first one warms up
                seconds[name].append(sum(steps) / len(steps))
    return {
        "benchmark": "grammar_cost",
        "requests": args.requests,
        "vocabulary": core.facts.vocab_size,
        "dtype": core.facts.dtype,
        "quantization": args.quantization or "none",
        "tokenizer": Path(args.tokenizer).name if args.tokenizer else "random",
        "rounds": args.rounds,
        **{name: _figures(of, seconds["free"]) for name, of in seconds.items()},
        "machine": describe(core.facts.device),
    }


def _figures(seconds: list[float], free: list[float]) -> dict[str, Any]:
    figures: dict[str, Any] = {"step_ms": round(median(seconds) * 1e3, 3)}
    if seconds is free:
        return figures
    ratios = sorted(mine / floor for mine, floor in zip(seconds, free, strict=True))
    spread = [round(ratio, 4) for ratio in (ratios[0], ratios[-1])]
    return {**figures, "ratio": round(median(ratios), 4), "ratio_spread": spread}


def _run(core: EngineCore, args: argparse.Namespace, grammar: str, turn: int) -> Steps:
    load = Load(args.requests, Lengths(16, 16), Lengths(args.tokens, args.tokens), turn)
    adds = [_sampled(each, grammar) for each in requests(core.facts.vocab_size, load)]
    return drive(core, adds)


def _sampled(add: Add, grammar: str) -> Add:
    params = SamplingParams(seed=add.params.seed, max_tokens=add.params.max_tokens)
    return Add(add.id, add.prompt, params, grammar=grammar)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder of a model; default: a random one of --shape")
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--tokenizer", help="folder of a tokenizer to give the model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quantization", choices=("int8", "int4"))
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--rounds", type=int, default=9)
    return parser.parse_args()


if __name__ == "__main__":
    main()

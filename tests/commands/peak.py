"""Runs an engine until its cache is full, and prints the most memory it has held, in bytes.

A program of its own: ``peak.py MODEL [FLAGS of rosellm serve]``.
"""

from __future__ import annotations

import sys

from rosellm.roseinfer import host_memory
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.messages import Add
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.server import flags


def fill_cache(core: EngineCore) -> None:
    """Long prompts, all different, until every block has been written; then all rows at once."""
    facts, number = core.facts, 0
    length = min(facts.max_model_len - 8, 1024)
    for _ in range(-(-facts.capacity_tokens // length) + 1):
        number += 1
        prompt = [(number * 7919 + place * 31) % facts.vocab_size for place in range(length)]
        core.add(Add(number, prompt, SamplingParams(max_tokens=4, seed=0)))
    for _ in range(64):
        number += 1
        core.add(
            Add(number, [number % facts.vocab_size, 5, 6], SamplingParams(max_tokens=8, seed=0))
        )
    while core.has_work:
        core.step()


def main(argv: list[str]) -> int:
    options = flags.options(vars(flags.parser().parse_args(argv)))
    core = build_engine(options.engine)
    fill_cache(core)
    found = host_memory.resident()
    assert found is not None
    print(found.peak)
    return 0


if __name__ == "__main__":
    sys.exit(main([*sys.argv[1:], "--device=cpu"]))

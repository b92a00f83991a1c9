"""Takes models in as a server does, on both sides; what comes of hostile ones.

As a program, ``loading.py FOLDER FIRST COUNT`` tries so many seeds on copies of the models in a
folder, and prints one line for each that did worse than being refused.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from rosellm.roseinfer.config import SamplingDefaults
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.errors import RosellmError
from rosellm.roseinfer.loading.open import check_checkpoint
from rosellm.roseinfer.messages import Add
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.server.defaults import load_defaults
from rosellm.roseinfer.server.prompts import TextTools
from rosellm.roseinfer.text.load import load_tokenizer
from tests.faults.mutations import Mutator
from tests.tiny_models import engine_config

MEMORY_BYTES = 6 << 30
SLOW_S = 20.0
HI = [{"role": "user", "content": "Hi, naïve café"}]


def take_in(model: Path, tokenizer: Path) -> None:
    """Everything that ``rosellm serve`` does with a model's files, up to the first token."""
    check_checkpoint(str(model))
    tools = TextTools.of(load_tokenizer(str(tokenizer)))
    load_defaults(model, SamplingDefaults(), tools.tokenizer.eos_ids)
    ids = tools.tokenizer.encode(tools.template.render(list(HI)))
    tools.tokenizer.decode(ids)
    core = build_engine(
        engine_config(model, kv_cache_gb=0.001, max_num_seqs=2, max_num_batched_tokens=32)
    )
    prompt = [id % core.facts.vocab_size for id in ids[:8]] or [0]
    room = core.facts.max_model_len - 1
    if core.facts.generates and room > 0:
        core.add(Add(1, prompt[:room], SamplingParams(max_tokens=1, seed=0)))
        while core.has_work:
            core.step()


def verdict(seed: int, pristine: Path) -> str:
    """What is wrong with how a hostile version was taken in; empty where nothing is."""
    mutator = Mutator(seed)
    with tempfile.TemporaryDirectory() as place:
        kind = mutator.random.choice(sorted(path.name for path in pristine.iterdir()))
        folder = Path(place) / "model"
        shutil.copytree(pristine / kind, folder)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        chosen = mutator.random.choice(files)
        mutator.file(chosen)
        checkpoint = next(folder.glob("*.pt"), folder)
        about = f"seed {seed}, {kind}/{chosen.name}"
        started = time.monotonic()
        try:
            take_in(checkpoint, folder)
        except RosellmError as error:
            if not str(error).isprintable() or len(str(error)) > 1500:
                return f"{about}: no short line: {str(error)[:200]!r}"
        except BaseException as error:
            place_of = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in place_of if "/rosellm/" in frame.filename][-1:]
            where = f"{Path(ours[0].filename).name}:{ours[0].lineno}" if ours else "?"
            return f"{about}: {type(error).__name__} at {where}: {str(error)[:200]!r}"
        took = time.monotonic() - started
        return f"{about}: took {took:.1f} s" if took > SLOW_S else ""


def main(folder: str, first: str, count: str) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for seed in range(int(first), int(first) + int(count)):
        print(json.dumps({"seed": seed, "wrong": verdict(seed, Path(folder))}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

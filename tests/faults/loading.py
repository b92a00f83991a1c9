"""Takes models in as a server does, on both sides; what comes of hostile ones.

As a program, ``loading.py FOLDER REPLIES`` reads seeds from its input, a line each, tries them on
copies of the models in the folder, and writes a verdict a line to the file descriptor REPLIES.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import tempfile
import time
import traceback
from bisect import bisect_left
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

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
Outcome = Literal["served", "refused", "wrong"]


@dataclass(frozen=True)
class Verdict:
    """What came of one hostile version.

    Attributes:
        file: that was changed, and in which model.
        said: the refusal, or what is wrong.
        change: of the file, shortened.
    """

    seed: int
    outcome: Outcome
    file: str = ""
    said: str = ""
    change: str = ""


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


def verdict(seed: int, pristine: Path) -> Verdict:
    """How the hostile version of a seed was taken in."""
    mutator = Mutator(seed)
    kind = mutator.random.choice(sorted(path.name for path in pristine.iterdir()))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        shutil.copytree(pristine / kind, folder)
        chosen = mutator.random.choice(sorted(path for path in folder.iterdir() if path.is_file()))
        before = chosen.read_bytes()
        mutator.file(chosen)
        change = _change(before, chosen.read_bytes())
        outcome, said = _tried(folder)
    return Verdict(seed, outcome, f"{kind}/{chosen.name}", said, change)


def _tried(folder: Path) -> tuple[Outcome, str]:
    checkpoint = next(folder.glob("*.pt"), folder)
    outcome: Outcome
    started = time.monotonic()
    try:
        take_in(checkpoint, folder)
    except RosellmError as error:
        line = str(error)
        if not line.isprintable() or len(line) > 1500:
            return "wrong", f"no short line: {line[:200]!r}"
        outcome, said = "refused", line
    except BaseException as error:
        place_of = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in place_of if "/rosellm/" in frame.filename][-1:]
        where = f"{Path(ours[0].filename).name}:{ours[0].lineno}" if ours else "?"
        return "wrong", f"{type(error).__name__} at {where}: {str(error)[:200]!r}"
    else:
        outcome, said = "served", ""
    took = time.monotonic() - started
    return (outcome, said) if took <= SLOW_S else ("wrong", f"took {took:.1f} s")


def _change(before: bytes, after: bytes) -> str:
    """From the first byte that differs to the last one."""
    start = _agreeing(before, after)
    end = _agreeing(before[start:][::-1], after[start:][::-1])
    gone, come = before[start : len(before) - end], after[start : len(after) - end]
    return f"at byte {start}: {_short(gone)} became {_short(come)}"


def _agreeing(one: bytes, other: bytes) -> int:
    """How many bytes at the start are the same."""
    most = min(len(one), len(other))
    return bisect_left(range(most), True, key=lambda at: one[: at + 1] != other[: at + 1])


def _short(content: bytes) -> str:
    shown = repr(content[:60])
    return shown if len(content) <= 60 else f"{shown}... ({len(content)} bytes)"


def main(folder: str, replies: str) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with open(int(replies), "w", buffering=1) as told:
        for line in sys.stdin:
            found = verdict(int(line), Path(folder))
            print(json.dumps(asdict(found)), file=told)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

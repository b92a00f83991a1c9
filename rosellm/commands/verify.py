"""``rosellm verify``: how far what is served lies from the model as it is meant to compute."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from rosellm.commands.console import Output, exit_code, note
from rosellm.commands.passages import at_least_two, read_text, tokenized
from rosellm.commands.tables import show_facts
from rosellm.roseinfer import demo
from rosellm.roseinfer.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from rosellm.roseinfer.hub import local_model, with_local_files
from rosellm.roseinfer.hub_transfer import OnProgress
from rosellm.roseinfer.messages import Ready
from rosellm.roseinfer.models.registry import check_supported
from rosellm.roseinfer.server import flags
from rosellm.roseinfer.server.report import loading

if TYPE_CHECKING:
    from rosellm.roseinfer.engine.compare import Comparison, Verified
    from rosellm.roseinfer.engine.passage import Passage

TEXT = Path(__file__).parents[1] / "data" / "verify.txt"

EXAMPLES = """\
Both models read the same text: the build that rosellm serve would run with these flags, and the
reference, which is the same weights in float32, not quantised, in plain torch. Of a model that has
been quantised already, name the one it was made from with --reference.

examples:
  rosellm verify
  rosellm verify path/to/my-llama --quantization int4
  rosellm verify path/to/my-llama --kv-cache-dtype int8
  rosellm verify my-llama-int4 --reference my-llama --text novel.txt --json
"""


def add_flags(command: flags.Parser) -> None:
    """Add the flags of ``rosellm verify``."""
    command.formatter_class = flags.Help
    command.usage = "%(prog)s [MODEL] [options]"
    command.epilog = EXAMPLES
    flags.add_model(command)
    command.add_argument(
        "--text", metavar="FILE", help="text to read, UTF-8; default: one that comes with rosellm"
    )
    command.add_argument(
        "--max-tokens",
        metavar="N",
        type=at_least_two,
        default=2048,
        help="tokens of the text that are read, from its beginning (default: 2048)",
    )
    command.add_argument(
        "--reference", metavar="MODEL", help="model to compare with; default: the same one"
    )
    command.add_argument("--json", action="store_true", help="print one line of JSON instead")
    flags.add_group(command, ModelConfig, without=("chat_template",))
    flags.add_group(command, CacheConfig, without=("prefix_cache",))


def run(args: argparse.Namespace) -> int:
    """Compare, and show what came of it. Returns the exit code."""
    return exit_code(lambda: _verify(args))


def _verify(args: argparse.Namespace) -> None:
    given = vars(args)
    asked = flags.model_config(given)
    cache = flags.build(CacheConfig, given)
    flags.check_model(asked)
    compared_with = args.reference and demo.model_or_demo(args.reference)
    if compared_with is not None:
        flags.check_sources(ModelConfig(model=compared_with))
    if "model" not in given:
        note(f"{demo.NAME}, {demo.ABOUT}; MODEL names another")
    text = read_text(args.text or TEXT, "--text")
    with loading() as show:
        model = with_local_files(asked, show, check_supported)
        reference = _reference(compared_with, show)
        passage = tokenized(model, text, args.max_tokens)
        found = _compare(EngineConfig(model, cache, _ALONE), reference, passage, show)
    if args.json:
        Output().write(f"{_json(args, asked, found)}\n")
    else:
        show_facts(asked.model, _facts(args, found))


_ALONE = SchedulerConfig(max_num_seqs=1)  # the KV cache is no larger than one sequence needs


@dataclass(frozen=True)
class Line:
    """What ``--json`` prints."""

    model: str
    reference: str
    text: str
    comparison: Comparison
    build: Ready


def _reference(source: str | None, on_progress: OnProgress) -> str | None:
    return source and local_model(source, on_progress, check_supported)


def _compare(
    config: EngineConfig, reference: str | None, passage: Passage, on_progress: OnProgress
) -> Verified:
    from rosellm.roseinfer.engine.compare import compare, reference_of

    return compare(config, reference_of(config, reference), passage, on_progress)


def _facts(args: argparse.Namespace, found: Verified) -> Iterator[tuple[str, str]]:
    """The comparison as people read it."""
    it = found.comparison
    text = args.text or "the text that comes with rosellm"
    yield "compared", f"{it.tokens:,} tokens of {text}"
    yield "reference", _about(found.reference) + f" of {args.reference}" * bool(args.reference)
    yield "this build", _about(found.build)
    yield (
        "logits",
        (
            f"differ by {it.mean_logit_difference:.2g} on average, "
            f"{it.max_logit_difference:.2g} at most"
        ),
    )
    yield (
        "KL divergence",
        (
            f"{it.kl_mean:.2g} nats a token; up to {it.kl_99:.2g} in 99 % of tokens, "
            f"{it.kl_max:.2g} in all"
        ),
    )
    yield "likeliest token", f"the same for {it.agreement:.2%} of tokens"
    change = it.perplexity / it.reference_perplexity - 1
    both = f"{it.perplexity:.4f}, the reference's {it.reference_perplexity:.4f}"
    yield "perplexity", f"{both} ({change:+.2%})"


def _about(ready: Ready) -> str:
    """What an engine runs."""
    said = {each.name: each.value for each in ready.decisions}
    held = f", weights in {said['weights']}" if "weights" in said else ""
    kept = f", keys and values in {said['KV dtype']}" if "KV dtype" in said else ""
    return f"{ready.dtype} on {ready.device}, {said['kernels']} kernels{held}{kept}"


def _json(args: argparse.Namespace, asked: ModelConfig, found: Verified) -> str:
    line = Line(
        model=asked.model,
        reference=args.reference or asked.model,
        text=args.text or TEXT.name,
        comparison=found.comparison,
        build=found.build,
    )
    return msgspec.json.encode(line).decode()

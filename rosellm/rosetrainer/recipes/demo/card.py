"""Writes the model card of a trained demo model: every number comes from the run itself.

    python -m rosellm.rosetrainer.recipes.demo.card --runs DIR/run DIR/context-run DIR/late-run \\
        --results RESULTS.json --model OUT

``--runs`` are the stages of the training in their order; ``RESULTS.json`` holds the last line that
``evaluate`` prints. The card goes into the exported model's folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from rosellm.roseinfer.errors import ConfigError, RosellmError
from rosellm.rosetrainer.files import one_line_errors, write_text
from rosellm.rosetrainer.progress import read_log
from rosellm.rosetrainer.recipes.demo.evaluate import VALID_CALL

_CURVE_ROWS = 12
_ABOUT = {
    "greeting": "hello, thanks, goodbye, how are you",
    "identity": "who it is, what it can do, who made it",
    "copy": "up to 8 words back as they are",
    "spell": "a word, letter by letter",
    "upper case": "up to 5 words or a sentence in capitals",
    "lower case": "the same in small letters",
    "sum": "a + b, each up to 20",
    "larger sum": "a + b, each up to 99",
    "difference": "a - b, up to 20",
    "name": "the name in a sentence",
    "json": "an object with the two fields asked for",
    "json, one or three fields": "an object with one or three",
    "tool call": "one of 1 to 3 tools, name and arguments exactly right",
    VALID_CALL: "the right tool, with arguments that its schema allows",
    "tools unused": "tools are offered, the question is for none of them",
    "fact": "capitals, days, months, counting: learnt by heart",
    "does not know": "says so",
}


def card(runs: Sequence[Path], results: dict[str, Any], model: Path) -> str:
    """The text of the card.

    Raises:
        ConfigError: a run's log is empty, or the model's config cannot be read.
    """
    logs = [_log(run) for run in runs]
    ends = [_losses(log)[-1] for log in logs]
    config = _read_json(model / "config.json")
    template = Template(Path(__file__).with_name("card.md").read_text(encoding="utf-8"))
    return template.substitute(
        parameters=f"{_parameters(config) / 1e6:.1f}",
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        vocabulary=config["vocab_size"],
        context=f"{config['max_position_embeddings']:,}",
        tokens=" + ".join(f"{end['tokens'] / 1e6:,.1f}" for end in ends),
        steps=" + ".join(f"{end['step']:,}" for end in ends),
        curve=_curve(logs),
        prompts=results["prompts"],
        skills=_skills(results["skills"], results["novel"]),
        **_perplexity(results),
    )


def _parameters(config: dict[str, Any]) -> int:
    """Of a Llama with a tied head."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    kv_width = width // heads * config["num_key_value_heads"]
    attention = 2 * width * width + 2 * width * kv_width
    block = attention + 3 * width * config["intermediate_size"] + 2 * width
    return int(config["vocab_size"] * width + config["num_hidden_layers"] * block + width)


def _skills(known: dict[str, float], novel: dict[str, float]) -> str:
    rows = [
        f"| {name} | {_ABOUT[name]} | {rate:.1%} | {novel[name]:.1%} |"
        for name, rate in known.items()
    ]
    head = ["| skill | what | right | new words too |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows])


def _log(run: Path) -> list[dict[str, Any]]:
    log = read_log(run / "log.jsonl")
    if not _losses(log):
        raise ConfigError(f"{run / 'log.jsonl'}: no losses in it")
    return log


def _losses(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in log if "loss" in row]


def _curve(logs: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Losses at a dozen steps of each run."""
    rows = []
    for stage, log in enumerate(logs, start=1):
        validated = [row for row in log if "val_loss" in row]
        rows += [
            f"| {stage} | {row['step']:,} | {_loss_at(log, row['step']):.3f} "
            f"| {row['val_loss']:.3f} |"
            for row in _spread(validated, _CURVE_ROWS)
        ]
    head = ["| stage | step | training loss | validation loss |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows])


def _spread(rows: Sequence[Any], count: int) -> list[Any]:
    """So many of the rows, evenly, the first and the last among them."""
    if len(rows) <= count:
        return list(rows)
    return [rows[round(at * (len(rows) - 1) / (count - 1))] for at in range(count)]


def _loss_at(log: Sequence[dict[str, Any]], step: int) -> float:
    before = [row["loss"] for row in log if "loss" in row and row["step"] <= step]
    return float(before[-1]) if before else float("nan")


def _perplexity(results: dict[str, Any]) -> dict[str, str]:
    names = ("perplexity", "trigram_perplexity")
    shown = {name: f"{results[name]:.1f}" for name in names}
    counts = ("validation_dialogues", "validation_tokens")
    return shown | {name: f"{results[name]:,}" for name in counts}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: not readable as JSON ({error})") from None
    return value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the demo model's card.")
    parser.add_argument(
        "--runs", type=Path, nargs="+", required=True, help="folders of the training runs"
    )
    parser.add_argument("--results", type=Path, required=True, help="what evaluate found, as JSON")
    parser.add_argument("--model", type=Path, required=True, help="folder of the exported model")
    options = parser.parse_args(arguments)
    try:
        text = card(options.runs, _read_json(options.results), options.model)
        with one_line_errors(f"folder {options.model}"):
            write_text(options.model / "MODEL_CARD.md", text)
    except RosellmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

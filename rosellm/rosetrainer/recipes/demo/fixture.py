"""Strips a checkpoint to what a server reads, with its tokenizer in a folder beside it.

python -m rosellm.rosetrainer.recipes.demo.fixture DIR/fixture-run/last.pt OUT.pt
rosellm serve OUT.pt --tokenizer OUT
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rosellm.roseinfer.errors import RosellmError
from rosellm.rosetrainer.checkpoint import load_checkpoint, save_checkpoint
from rosellm.rosetrainer.files import one_line_errors, write_text


def strip(checkpoint: Path, out: Path) -> None:
    """Write ``out`` without optimizer, and the folder ``out`` without its suffix.

    Raises:
        ConfigError: the checkpoint cannot be read, or the disk does not take it.
    """
    content = load_checkpoint(checkpoint)
    tokenizer = content["extra"]["tokenizer"]
    folder = out.with_suffix("")
    with one_line_errors(f"folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "tokenizer.json", tokenizer)
    extra = {"tokens": content["extra"]["tokens"]}
    kept = {"optimizer": None, "scheduler": None, "scaler": None, "extra": extra}
    save_checkpoint(out, {**content, **kept})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Strip a checkpoint to what a server reads.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="a .pt file; the folder of that name is written too")
    options = parser.parse_args(arguments)
    try:
        strip(options.checkpoint, options.out)
    except RosellmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

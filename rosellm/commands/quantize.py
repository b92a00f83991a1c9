"""``rosellm quantize``: a folder with a model's weights in fewer bits."""

from __future__ import annotations

import argparse
from pathlib import Path

from rosellm.commands.console import exit_code, note
from rosellm.commands.passages import at_least_two, read_text, tokenized
from rosellm.commands.tables import size
from rosellm.roseinfer.config import ModelConfig
from rosellm.roseinfer.hub import with_local_files
from rosellm.roseinfer.models.registry import check_supported
from rosellm.roseinfer.server import flags
from rosellm.roseinfer.server.report import loading

DEFAULT = "int4"
_WITHOUT = ("chat_template", "device", "kernels", "max_model_len")

EXAMPLES = f"""\
Without --quantization it is {DEFAULT}. OUT is served like any other folder; what it lost,
rosellm verify OUT --reference MODEL says.

examples:
  rosellm quantize path/to/my-llama my-llama-int4
  rosellm quantize org/name my-model-int8 --quantization int8
  rosellm quantize last.pt my-gpt2-int4 --tokenizer gpt2
  rosellm quantize my-llama my-llama-int4 --calibrate novel.txt
"""


def add_flags(command: flags.Parser) -> None:
    """Add the flags of ``rosellm quantize``."""
    command.formatter_class = flags.Help
    command.usage = "%(prog)s MODEL OUT [options]"
    command.epilog = EXAMPLES
    command.add_argument("model", metavar="MODEL", help="folder, hub id or .pt checkpoint")
    command.add_argument("out", metavar="OUT", help="folder to write; it must not be there yet")
    command.add_argument(
        "--calibrate",
        metavar="FILE",
        help="text like those that the model will read, UTF-8: weights are rounded so that they "
        "do best on it, which takes minutes and halves the loss of 4 bits",
    )
    command.add_argument(
        "--max-tokens",
        metavar="N",
        type=at_least_two,
        default=4096,
        help="tokens of that text that are read, from its beginning (default: 4096)",
    )
    flags.add_group(command, ModelConfig, without=_WITHOUT)


def run(args: argparse.Namespace) -> int:
    """Write the folder. Returns the exit code."""
    return exit_code(lambda: _quantize(args))


def _quantize(args: argparse.Namespace) -> None:
    given = {"quantization": DEFAULT, **vars(args)}
    asked = flags.model_config(given)
    flags.check_sources(asked)
    text = None if args.calibrate is None else read_text(args.calibrate, "--calibrate")
    out = Path(args.out).expanduser()
    with loading() as show:
        from rosellm.roseinfer.engine.write import write_folder

        model = with_local_files(asked, show, check_supported)
        passage = None if text is None else tokenized(model, text, args.max_tokens)
        count = write_folder(model, out, show, passage)
    note(f"{out}: {size(count)} of weights")

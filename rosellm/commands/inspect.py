"""``rosellm inspect``: what a model is. Reads its config and headers, loads no weights."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rosellm.commands.tables import show_facts
from rosellm.roseinfer.config import EngineConfig, ModelConfig, SamplingDefaults
from rosellm.roseinfer.errors import ModelError
from rosellm.roseinfer.hub import hub_name, local_description, local_tokenizer
from rosellm.roseinfer.server import flags
from rosellm.roseinfer.server.defaults import GenerationConfig, load_defaults
from rosellm.roseinfer.server.report import loading
from rosellm.roseinfer.text.chat import ChatTemplate
from rosellm.roseinfer.text.load import load_tokenizer
from rosellm.roseinfer.text.tokenizer import Tokenizer
from rosellm.roseinfer.text.tokenizer_files import find_tokenizer_file

Facts = Iterator[tuple[str, str]]

EXAMPLES = """\
Of a hub id, only the config and the tokenizer are downloaded, unless the weights are here already.
The flags are those of rosellm serve: what is shown is what it would do with them. What serving
takes in memory, and how many requests at a time, is told by rosellm plan.

examples:
  rosellm inspect path/to/my-llama
  rosellm inspect org/name@revision
  rosellm inspect last.pt --tokenizer gpt2 --dtype bfloat16
"""


def add_flags(command: flags.Parser) -> None:
    """Add the flags of ``rosellm inspect``."""
    command.formatter_class = flags.Help
    command.usage = "%(prog)s [MODEL] [options]"
    command.epilog = EXAMPLES
    flags.add_model(command)
    flags.add_group(command, ModelConfig)


def run(args: argparse.Namespace) -> int:
    """Show what there is to say of a model. Returns the exit code.

    Raises:
        RosellmError: there is no such model, or its files cannot be read.
    """
    asked = flags.model_config(vars(args))
    flags.check_sources(asked)
    model = with_local_description(asked)
    show_facts(asked.model, _all_facts(model, from_hub=model.model != asked.model))
    return 0


def with_local_description(model: ModelConfig) -> ModelConfig:
    """The same with local paths; of a hub id, all but the weights is downloaded.

    Raises:
        ModelError: the hub does not give it.
    """
    named = [source for source in (model.model, model.tokenizer) if source and hub_name(source)]
    with loading() if named else nullcontext(lambda _: None) as show:
        tokenizer = model.tokenizer and local_tokenizer(model.tokenizer, show)
        return replace(model, model=local_description(model.model, show), tokenizer=tokenizer)


def _all_facts(model: ModelConfig, *, from_hub: bool) -> Facts:
    from rosellm.commands.model_facts import model_facts

    if from_hub:
        yield "folder", model.model
    yield from model_facts(EngineConfig(model=model))
    yield from _text_facts(model)


def _text_facts(model: ModelConfig) -> Facts:
    """What the files beside the weights say."""
    source = model.tokenizer or model.model
    if Path(source).suffix == ".pt":
        yield "tokenizer", "none: name one with --tokenizer"
        return
    try:
        file = find_tokenizer_file(source)
    except ModelError as error:
        yield "tokenizer", f"none: {error}"
        return
    tokenizer = load_tokenizer(source, model.chat_template)
    yield "tokenizer", f"{file.name}, {tokenizer.vocab_size:,} tokens"
    yield "special tokens", ", ".join(_named_tokens(tokenizer)) or "none are named"
    yield "chat template", _templates(tokenizer)
    defaults = load_defaults(Path(model.model), SamplingDefaults(), tokenizer.eos_ids)
    yield "answers end at", ", ".join(map(str, defaults.eos_ids)) or "no token"
    yield "generation", _settings(defaults.model)


def _named_tokens(tokenizer: Tokenizer) -> Iterator[str]:
    for name, token in tokenizer.special_tokens.items():
        id = tokenizer.token_to_id(token)
        yield f"{name.removesuffix('_token')} {token} ({'no id' if id is None else id})"


def _templates(tokenizer: Tokenizer) -> str:
    """Names of the templates, once they are known to be sound."""
    own = tokenizer.chat_template
    template = ChatTemplate(own, tokenizer.special_tokens)
    if not template.has_own:
        return "none: messages are put into a plain format"
    return f"yes, named: {', '.join(own)}" if isinstance(own, Mapping) else "yes"


def _settings(config: GenerationConfig) -> str:
    """The sampling defaults that come with the model."""
    values: dict[str, Any] = {name: getattr(config, name) for name in config.__struct_fields__}
    said = [f"{name} {value}" for name, value in values.items() if value is not None]
    return ", ".join(each for each in said if not each.startswith("eos_")) or "no defaults"

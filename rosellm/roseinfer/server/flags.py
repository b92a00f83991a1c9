"""Command-line flags, generated from the config dataclasses.

A flag's name, type, default and help are the field's own (``config.py``). Beside
them stand the few flags of the seed's command that are not fields.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from rosellm.roseinfer.config import (
    CacheConfig,
    EngineConfig,
    ModelConfig,
    SamplingDefaults,
    SchedulerConfig,
    ServerConfig,
)
from rosellm.roseinfer.demo import is_demo, model_or_demo
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.hub import hub_name, model_name, with_local_files
from rosellm.roseinfer.hub_transfer import OnProgress
from rosellm.roseinfer.loading.open import check_file_name
from rosellm.roseinfer.server.fields import (
    CONFIGS,
    fields_of,
    hints,
    is_list,
    kind_of,
    parts,
    unfit,
)
from rosellm.roseinfer.server.keys import Keys
from rosellm.roseinfer.server.sources import settings
from rosellm.roseinfer.text.load import check_chat_template

ALIASES = {"tokenizer": ["--tokenizer-name"]}
SHORTHANDS = {"no_amp": ("--no-amp", "float32"), "bf16": ("--bf16", "bfloat16")}

Config = TypeVar("Config")


@dataclass(frozen=True)
class Options:
    """What the command line asked for.

    Attributes:
        keys: what the server's key file and the environment hold, once they are read.
    """

    engine: EngineConfig
    sampling: SamplingDefaults
    server: ServerConfig
    keys: Keys = field(default_factory=Keys)

    @property
    def model_name(self) -> str:
        """The name that requests use in ``model``."""
        return self.server.served_model_name or model_name(self.engine.model.model)

    @property
    def serves_demo(self) -> bool:
        """Whether the model is the one that comes with rosellm."""
        return is_demo(self.engine.model.model)

    @property
    def names_hub(self) -> bool:
        """Whether the model or the tokenizer is to come from the hub."""
        model = self.engine.model
        return any(source and hub_name(source) for source in (model.model, model.tokenizer))

    def with_local_files(self, on_progress: OnProgress) -> Options:
        """The same under the same name, with everything that a hub id names downloaded.

        Raises:
            ModelError: the hub does not give it, or its chat template cannot be used.
        """
        from rosellm.roseinfer.models.registry import check_supported

        model = with_local_files(self.engine.model, on_progress, check_supported)
        if model.chat_template is not None:
            check_chat_template(model.tokenizer or model.model, model.chat_template)
        server = replace(self.server, served_model_name=self.model_name)
        return replace(self, engine=replace(self.engine, model=model), server=server)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one clear line.

    Attributes:
        fill: adds flags when this parser is first used, so that a subcommand's flags may
            depend on modules that the others need not import.
    """

    fill: Callable[[Parser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.fill is not None:
            fill, self.fill = self.fill, None
            fill(self)
        namespace, unknown = super().parse_known_args(args, namespace)
        self._fill_positionals(namespace, unknown)
        if unknown:  # said here, by the command whose flags they should have been
            self.error(self._about_unknown(unknown[0]))
        return namespace, unknown

    def _fill_positionals(self, namespace: argparse.Namespace, unknown: list[str]) -> None:
        """Words behind a flag, for positionals that may be left out: argparse gives those up at
        the first flag it meets."""
        for action in self._get_positional_actions():
            if action.nargs == "?" and getattr(namespace, action.dest, None) is None:
                if not unknown or unknown[0].startswith("-"):
                    return
                setattr(namespace, action.dest, unknown.pop(0))

    def _about_unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"one argument too many: {argument!r}; quote what holds spaces"
        flag = argument.partition("=")[0]
        near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        return f"unknown flag {flag}" + (f"; did you mean {near[0]}?" if near else "")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def parser() -> Parser:
    """The parser of ``python -m rosellm.roseinfer.server``."""
    made = Parser(
        prog="python -m rosellm.roseinfer.server",
        description="Serve a model over HTTP, as OpenAI's API does.",
        allow_abbrev=False,
    )
    add_flags(made)
    return made


def add_flags(target: argparse.ArgumentParser) -> None:
    """Add every flag of the server; absent flags leave no trace in the namespace."""
    target.formatter_class = Help
    target.usage = "%(prog)s [MODEL] [options]"
    add_model(target)
    add_config_file(target)
    for config in CONFIGS:
        add_group(target, config)
    _add_shorthands(target)


def add_model(target: argparse.ArgumentParser) -> None:
    """Add MODEL, which may be left out: ``model_config`` says what is meant then."""
    help = str(fields_of(ModelConfig)["model"].metadata["help"])
    target.add_argument("model", metavar="MODEL", nargs="?", default=argparse.SUPPRESS, help=help)


def add_config_file(target: argparse.ArgumentParser) -> None:
    """Add ``--config``, for commands that go by ``settings_of``."""
    target.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="TOML file with any of the server's settings, named like its flags but with"
        " underscores; ROSELLM_ variables come before it, and flags before both",
    )


def options(given: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Options:
    """The configuration that parsed flags amount to, over the environment's and a file's.

    Raises:
        ConfigError: flags contradict each other, a value is out of its range, or the environment
            or the file says what is no setting.
    """
    values = settings_of(given, environment)
    engine = engine_config(values)
    check_model(engine.model)
    return Options(engine, build(SamplingDefaults, values), build(ServerConfig, values))


def settings_of(
    given: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """Parsed flags over the environment's settings and a file's; for the errors see ``options``."""
    return settings(given.get("config"), environment) | _expand_shorthands(dict(given))


def engine_config(values: Mapping[str, Any]) -> EngineConfig:
    """What of these is the engine's; for the errors see ``options``."""
    return EngineConfig(
        model=model_config(values),
        cache=build(CacheConfig, values),
        scheduler=build(SchedulerConfig, values),
    )


def parse(argv: Sequence[str]) -> Options:
    """Parse a whole command line."""
    return options(vars(parser().parse_args(argv)))


def add_group(
    target: argparse.ArgumentParser, config: type, *, without: Collection[str] = ()
) -> None:
    """Add a group of flags, one for each field of a config dataclass but the model itself.

    Args:
        without: fields that have no meaning for this command.
    """
    group = target.add_argument_group((config.__doc__ or "").strip())
    for name, item in fields_of(config).items():
        if name != "model" and name not in without:
            group.add_argument(*_names(name), dest=name, help=_help(item), **_kind(hints()[name]))


def build(config: type[Config], values: Mapping[str, Any]) -> Config:
    """A config dataclass from those of the parsed values that are its fields.

    Raises:
        ConfigError: a value is out of its range.
    """
    own = {name: values[name] for name in fields_of(config) if name in values}
    for name, value in own.items():
        for complaint in unfit(name, value):
            raise ConfigError(f"{_names(name)[0]} {complaint}")
        if is_list(name):
            own[name] = tuple(value)
    return config(**own)


def model_config(values: Mapping[str, Any]) -> ModelConfig:
    """``build`` for the model: the demo model where parsed values name none.

    Raises:
        ConfigError: a value is out of its range, or there is no demo model.
    """
    model = model_or_demo(values.get("model"), values.get("tokenizer"))
    return build(ModelConfig, {**values, "model": model})


class Help(argparse.RawDescriptionHelpFormatter):
    """Wide enough for the longest flag to stand beside its help; examples keep their lines."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


def _names(field_name: str) -> list[str]:
    return ["--" + field_name.replace("_", "-"), *ALIASES.get(field_name, [])]


def _help(item: Field[Any]) -> str:
    text = str(item.metadata["help"])
    if item.default in (None, MISSING, ()):
        return text
    default = item.default
    if isinstance(default, bool):
        default = "yes" if default else "no"
    return f"{text} (default: {default})"


def _kind(hint: Any) -> dict[str, Any]:
    """What argparse has to know about a field of this type."""
    hint = kind_of(hint)
    absent: dict[str, Any] = {"default": argparse.SUPPRESS}
    if hint is bool:
        return absent | {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return absent | {"choices": get_args(hint)}
    if get_origin(hint) is tuple:
        return absent | {"type": parts, "action": "extend", "metavar": "NAME"}
    return absent | {"type": hint, "metavar": {int: "N", float: "X", str: "NAME"}[hint]}


def _add_shorthands(target: argparse.ArgumentParser) -> None:
    group = target.add_argument_group("Other ways to say it")
    group.add_argument(
        "--checkpoint-path",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="the same as MODEL",
    )
    for dest, (flag, dtype) in SHORTHANDS.items():
        group.add_argument(
            flag,
            dest=dest,
            action="store_true",
            default=argparse.SUPPRESS,
            help=f"the same as --dtype {dtype}",
        )


def _expand_shorthands(values: dict[str, Any]) -> dict[str, Any]:
    model = _one_of(values, "model", {"model": "MODEL", "checkpoint_path": "--checkpoint-path"})
    for dest, (_, dtype) in SHORTHANDS.items():
        if values.pop(dest, False):
            values[dest] = dtype
    spoken = {"dtype": "--dtype", **{dest: flag for dest, (flag, _) in SHORTHANDS.items()}}
    dtype = _one_of(values, "dtype", spoken)
    said = {"model": model, "dtype": dtype}
    return values | {name: value for name, value in said.items() if value is not None}


def _one_of(values: dict[str, Any], what: str, spoken: Mapping[str, str]) -> Any:
    """The one value among flags that mean the same; None where none is given."""
    given = {dest: values.pop(dest) for dest in spoken if dest in values}
    if len(given) > 1:
        flags = " and ".join(spoken[dest] for dest in given)
        raise ConfigError(f"{flags} contradict each other: each says the {what}; pass one of them")
    return next(iter(given.values()), None)


def check_sources(model: ModelConfig, tokenizer: str = "--tokenizer") -> None:
    """Refuse at once what is not there, or is no model by its name.

    Args:
        tokenizer: how to say that setting where this is called from.
    """
    for source, spoken in ((model.model, ""), (model.tokenizer, f"{tokenizer} ")):
        if source and not os.path.exists(Path(source).expanduser()) and hub_name(source) is None:
            raise ConfigError(
                f"{spoken}{source!r}: no such folder or file, nor a hub id, which is like org/name"
            )
    if os.path.isfile(Path(model.model).expanduser()):
        check_file_name(Path(model.model))


def check_model(model: ModelConfig, tokenizer: str = "--tokenizer") -> None:
    """``check_sources``, and that there is something to turn text into tokens."""
    check_sources(model, tokenizer)
    if os.path.isfile(Path(model.model).expanduser()) and model.tokenizer is None:
        raise ConfigError(
            f"{model.model} is one file and holds no tokenizer: pass {tokenizer},"
            " a folder, a file or a hub id"
        )

"""What a training run is told: a TOML file as frozen dataclasses.

Every key is checked here, by name, before anything is read or computed. It knows nothing of
torch, and nothing of what the values will be used for.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from rosellm.roseinfer.errors import ConfigError, shown
from rosellm.roseinfer.toml_file import read_toml

Section = TypeVar("Section")


def key(default: Any, *, least: float | None = None, below: float | None = None) -> Any:
    """A key of a section: its default, and the range that it must keep."""
    return field(default=default, metadata={"least": least, "below": below})


@dataclass(frozen=True)
class ModelSection:
    """``[model]``: the shape. ``vocab_size`` is the tokenizer's."""

    architecture: Literal["llama", "gpt2"] = "llama"
    n_layers: int = key(8, least=1)
    d_model: int = key(256, least=1)
    n_heads: int = key(4, least=1)
    n_kv_heads: int = key(0, least=0)  # llama: 0 is as many as heads
    d_ff: int = key(0, least=0)  # 0: four times d_model (gpt2), 8/3 in steps of 32 (llama)
    max_positions: int = key(0, least=0)  # 0: data.seq_len
    dropout: float = key(0.0, least=0, below=1)  # gpt2
    rope_theta: float = key(10000.0, least=1)  # llama
    norm_eps: float = key(1e-5, least=0)  # llama
    tied: bool = True  # llama; GPT-2's head is always its embedding
    shared_embedding: bool = False  # llama, tied: forms of a word share a part of their vectors


@dataclass(frozen=True)
class TokenizerSection:
    """``[tokenizer]``: an existing ``tokenizer.json``, or one trained on the training data."""

    path: str = ""  # existing tokenizer.json; empty: train one
    vocab_size: int = key(4096, least=257)  # tokens of all kinds
    special_tokens: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    extra_tokens: tuple[str, ...] = ("<tool_call>", "</tool_call>")  # one token, yet plain text
    split_digits: bool = True  # every digit is a token of its own
    even_forms: bool = False  # words are cut alike in lower, Title and UPPER case, spaced or not
    train_megabytes: int = key(64, least=1)  # of text to train the tokenizer on
    bos_token: str = ""  # before every document; empty: none
    eos_token: str = "<|endoftext|>"  # after every document that is plain text
    turn_token: str = "<|im_end|>"  # ends an assistant's turn in the chat template
    chat_template: str = ""  # file of Jinja source; empty: ChatML that also renders tools


@dataclass(frozen=True)
class DataSection:
    """``[data]``: files (.txt, .jsonl, or either with .gz), and how they are packed."""

    train: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    valid_fraction: float = key(0.0, least=0, below=1)  # of the documents, where valid is empty
    seq_len: int = key(1024, least=2)
    mask_documents: bool = False  # whether packed documents are hidden from each other
    cache: str = "cache"  # folder for the tokenised data


@dataclass(frozen=True)
class OptimizerSection:
    """``[optimizer]``: a cosine from ``lr`` to ``lr * min_lr_ratio`` after warm-up."""

    name: Literal["adamw", "muon"] = "adamw"  # muon: for the blocks' matrices, adamw for the rest
    lr: float = key(1e-3, least=0)
    min_lr_ratio: float = key(0.1, least=0, below=1.0001)
    warmup_steps: int = key(100, least=0)
    weight_decay: float = key(0.1, least=0)  # of matrices only
    beta1: float = key(0.9, least=0, below=1)
    beta2: float = key(0.95, least=0, below=1)
    eps: float = key(1e-8, least=0)
    clip: float = key(1.0, least=0)  # norm of the gradient; 0: no clipping


@dataclass(frozen=True)
class RunSection:
    """``[run]``: how long, on what, and what is written when."""

    out: str = "run"  # folder for checkpoints, log and picture
    start_from: str = ""  # checkpoint or exported folder to begin with; empty: random weights
    steps: int = key(1000, least=1)
    batch_size: int = key(32, least=1)  # sequences a step, of all processes together
    micro_batch_size: int = key(0, least=0)  # sequences a pass; 0: the whole share of a process
    seed: int = key(0, least=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # auto: float32 on a CPU
    activation_checkpointing: bool = False
    compile: bool = False
    log_every: int = key(10, least=1)
    eval_every: int = key(200, least=1)
    eval_sequences: int = key(256, least=1)
    save_every: int = key(500, least=1)


@dataclass(frozen=True)
class TrainConfig:
    """A whole run. ``folder`` is the config file's: relative paths start there."""

    model: ModelSection
    tokenizer: TokenizerSection
    data: DataSection
    optimizer: OptimizerSection
    run: RunSection
    folder: Path

    def path(self, name: str) -> Path:
        """A path of the file, as seen from here."""
        return self.folder / Path(name).expanduser()

    @property
    def max_positions(self) -> int:
        return self.model.max_positions or self.data.seq_len


SECTIONS: dict[str, type] = {
    "model": ModelSection,
    "tokenizer": TokenizerSection,
    "data": DataSection,
    "optimizer": OptimizerSection,
    "run": RunSection,
}


def load_config(path: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a TOML file.

    Args:
        overrides: ``section.key=value`` each, where a value is TOML or else a string.

    Raises:
        ConfigError: there is no such file, it is not TOML, or a key or value cannot be.
    """
    file = Path(path).expanduser()
    values = read_toml(file, "config file")
    for override in overrides:
        _override(values, override)
    _refuse_unknown(values, SECTIONS, "section")
    sections: dict[str, Any] = {
        name: _build(name, kind, values.get(name, {})) for name, kind in SECTIONS.items()
    }
    config = TrainConfig(**sections, folder=file.parent)
    _check(config)
    return config


def _override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    section, dot, wanted = name.strip().partition(".")
    if not equals or not dot:
        raise ConfigError(f"--set {shown(override)}: expected SECTION.KEY=VALUE")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    part = values.setdefault(section, {})
    if isinstance(part, dict):
        part[wanted] = value


def _refuse_unknown(given: Mapping[str, Any], known: Mapping[str, Any], what: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"no {what} is called {shown(name)!r}; {hint}")


def _build(name: str, kind: type[Section], given: Any) -> Section:
    if not isinstance(given, Mapping):
        raise ConfigError(f"[{name}] is a section of keys, not {shown(repr(given))}")
    hints = get_type_hints(kind)
    _refuse_unknown(given, hints, f"key of [{name}]")
    ranges = {entry.name: entry.metadata for entry in fields(kind)}  # type: ignore[arg-type]
    return kind(
        **{
            wanted: _checked(f"{name}.{wanted}", value, hints[wanted], ranges[wanted])
            for wanted, value in given.items()
        }
    )


def _checked(name: str, value: Any, kind: Any, limits: Mapping[str, Any]) -> Any:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ConfigError(f"{name} is one of {', '.join(get_args(kind))}, not {value!r}")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{name} is a list of strings, not {shown(repr(value))}")
        return tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"{name} is {_KINDS[kind]}, not {shown(repr(value))}")
    _check_range(name, value, limits.get("least"), limits.get("below"))
    return value


_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def _check_range(name: str, value: Any, least: float | None, below: float | None) -> None:
    if least is not None and not value >= least:
        raise ConfigError(f"{name} is at least {least}, not {value}")
    if below is not None and not value < below:
        raise ConfigError(f"{name} is below {below}, not {value}")


def _check(config: TrainConfig) -> None:
    """What takes more than one key to see."""
    model, run = config.model, config.run
    if not config.data.train:
        raise ConfigError("data.train names no files")
    if model.d_model % model.n_heads:
        raise ConfigError(f"model.d_model ({model.d_model}) is no multiple of model.n_heads")
    if model.n_heads % (model.n_kv_heads or model.n_heads):
        raise ConfigError(f"model.n_heads ({model.n_heads}) is no multiple of model.n_kv_heads")
    if model.architecture == "llama" and model.d_model // model.n_heads % 2:
        raise ConfigError("model.d_model / model.n_heads must be even: rope turns pairs")
    if model.architecture == "gpt2" and model.n_kv_heads not in (0, model.n_heads):
        raise ConfigError("model.n_kv_heads: a gpt2 has as many as heads; leave it out")
    if model.shared_embedding and not (model.architecture == "llama" and model.tied):
        raise ConfigError("model.shared_embedding is for a tied llama")
    if config.max_positions < config.data.seq_len:
        raise ConfigError("model.max_positions is less than data.seq_len")
    if run.micro_batch_size and run.batch_size % run.micro_batch_size:
        raise ConfigError("run.batch_size is no multiple of run.micro_batch_size")

"""Writes a quantised model to a folder: weights stream through, no engine stands up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from rosellm.roseinfer.config import ModelConfig
from rosellm.roseinfer.engine.calibrate import calibration_ops
from rosellm.roseinfer.engine.load import OnProgress, Source, write_quantized
from rosellm.roseinfer.engine.passage import Passage
from rosellm.roseinfer.errors import ConfigError, ModelError, shown
from rosellm.roseinfer.hub import DESCRIPTION
from rosellm.roseinfer.kernels.table import Ops, reference_ops
from rosellm.roseinfer.loading.assign import Place
from rosellm.roseinfer.loading.open import open_checkpoint
from rosellm.roseinfer.messages import Progress
from rosellm.roseinfer.models.registry import find_architecture
from rosellm.roseinfer.quant import cache
from rosellm.roseinfer.quant.formats import Recipe
from rosellm.roseinfer.runner import resolve
from rosellm.roseinfer.text.tokenizer_files import find_tokenizer_file, tokenizer_files


def write_folder(
    config: ModelConfig,
    out: Path,
    on_progress: OnProgress = lambda _: None,
    passage: Passage | None = None,
) -> int:
    """Quantise a model as the config says, into a folder that is not there or empty.

    Args:
        config: with local paths; ``device``, ``kernels`` and ``max_model_len`` have no effect.
        passage: a text for whose inputs the codes are chosen; without one, for any.

    Returns:
        Bytes of the weights that were written.

    Raises:
        ModelError: there is no such model, or it is quantised already.
        ConfigError: the folder cannot be written, or nothing is to be quantised.
    """
    on_progress(Progress("opening"))
    checkpoint = open_checkpoint(config.model)
    if checkpoint.recipe is not None:
        raise ModelError(f"{config.model}: quantised already; name the model it was made from")
    recipe = resolve.resolve_quantization(config, None)
    if recipe == Recipe():
        raise ConfigError("nothing to do: pass --quantization int8, int4 or fp8")
    if passage and any(each and each.kind == "float" for each in (recipe.layers, recipe.head)):
        raise ConfigError("--calibrate: codes are chosen by a text in int8 and int4, not in fp8")
    architecture = find_architecture(checkpoint.architecture)
    spec = architecture.read_config(checkpoint.config)
    with torch.device("meta"):
        model = architecture.build(calibration_ops() if passage else forgetful_ops(), spec)
    model.hold(recipe)
    source = Source(config.model, checkpoint, architecture.weights)
    place = Place(_dtype(config, checkpoint.dtype), torch.device("cpu"))
    try:
        written = _new_folder(out)
        try:
            windows = passage.windows(spec.max_positions) if passage else ()
            write_quantized(model, source, recipe, place, written, on_progress, windows)
            _copy_descriptions(config, written)
            size = sum(file.stat().st_size for file in written.glob("*.safetensors"))
            _publish(written, out)
        finally:
            shutil.rmtree(written, ignore_errors=True)
    except OSError as error:
        where = error.filename or out
        raise ConfigError(f"{where}: {shown(error.strerror or str(error))}") from None
    return size


def forgetful_ops() -> Ops:
    """Operations that let go of every weight that they are to lay out."""
    nothing = object()
    return replace(
        reference_ops("nothing is computed"),
        pack_linear=lambda *_: nothing,
        pack_quantized=lambda *_: nothing,
    )


def _dtype(config: ModelConfig, stored: str) -> torch.dtype:
    """Of what is not quantised: as it is stored, where nothing is asked for."""
    asked = replace(config, dtype=stored) if config.dtype == "auto" else config  # type: ignore[arg-type]
    return resolve.resolve_dtype(asked, stored, torch.device("cpu"))[0]


def _new_folder(out: Path) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: there is something already; name a folder that is not there yet")
    return cache.new_folder(out)


def _publish(written: Path, out: Path) -> None:
    if out.is_dir():
        out.rmdir()  # empty, or else an error
    cache.publish(written, out)


def _copy_descriptions(config: ModelConfig, out: Path) -> None:
    """What else a model's folder says of it: the tokenizer, and how it samples or pools."""
    for folder, file in _descriptions(config):
        target = out / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / file, target)


def _descriptions(config: ModelConfig) -> Iterator[tuple[Path, str]]:
    model = Path(config.model).expanduser()
    if model.is_dir():
        names = {path.name for path in model.glob("LICENSE*")} | set(DESCRIPTION) - {"config.json"}
        yield from ((model, name) for name in sorted(names) if (model / name).is_file())
    source = find_tokenizer_file(config.tokenizer).parent if config.tokenizer else model
    if source.is_dir():
        inside = (path.relative_to(source).as_posix() for path in source.rglob("*"))
        yield from ((source, name) for name in tokenizer_files(inside))

"""Fills a model: as stored, quantised on the way, or with what an earlier start quantised."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rosellm.roseinfer.engine.calibrate import quantize_by_text
from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.kernels.table import PackedForm
from rosellm.roseinfer.loading.assign import (
    Keep,
    OnBytes,
    OnDemand,
    Place,
    load_quantized,
    load_weights,
)
from rosellm.roseinfer.loading.checkpoint import Checkpoint
from rosellm.roseinfer.loading.open import open_checkpoint
from rosellm.roseinfer.messages import Progress
from rosellm.roseinfer.models.skeleton import Model
from rosellm.roseinfer.models.spec import WeightMap
from rosellm.roseinfer.quant import cache
from rosellm.roseinfer.quant.formats import Recipe
from rosellm.roseinfer.quant.store import Store

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Source:
    """Where a model's weights come from.

    Attributes:
        path: as the engine was told it.
        checkpoint: what is there.
        names: how its tensors become parameters.
    """

    path: str
    checkpoint: Checkpoint
    names: WeightMap


def fill(
    model: Model,
    source: Source,
    recipe: Recipe,
    place: Place,
    on_progress: OnProgress,
    packed: PackedForm | None = None,
) -> str | None:
    """Load all weights and lay them out for the kernels; the model's formats are the recipe's.

    Args:
        packed: how the model's operations keep quantised weights in a file, if they do.

    Returns:
        What is to be said of where quantised weights came from.

    Raises:
        ModelError: naming the tensor that does not fit.
    """
    checkpoint = source.checkpoint
    if checkpoint.recipe is not None:
        on_bytes = _counting("loading weights", checkpoint.num_bytes, on_progress)
        load_quantized(model, checkpoint.tensors(), place, on_bytes)
        return None
    if recipe == Recipe():
        on_bytes = _counting("loading weights", checkpoint.num_bytes, on_progress)
        load_weights(model, source.names, checkpoint.tensors(), place, on_bytes)
        return None
    layout = None if packed is None else packed.layout()
    return _fill_through_cache(model, source, recipe, place, on_progress, layout)


def write_quantized(
    model: Model,
    source: Source,
    recipe: Recipe,
    place: Place,
    folder: Path,
    on_progress: OnProgress,
    windows: Sequence[Sequence[int]] = (),
) -> None:
    """Fill the model, and write what it is filled with to an empty folder.

    Args:
        windows: token ids of a text that the model is quantised for, if any; its operations
            must compute then.

    Raises:
        ModelError: naming the tensor that does not fit.
        OSError: the folder cannot be written.
    """
    store = Store(folder, model, place.dtype)
    try:
        if windows:
            on_bytes = _counting("quantising weights", source.checkpoint.num_bytes, on_progress)
            wide = Place(torch.float32, place.device)
            weights = OnDemand(model, source.names, source.checkpoint.tensors(), wide, store.put)
            quantize_by_text(model, weights, windows, on_bytes)
        else:
            _quantize(model, source, place, on_progress, store.put)
        _finish(store, source, recipe)
    finally:
        store.close()


def _fill_through_cache(
    model: Model,
    source: Source,
    recipe: Recipe,
    place: Place,
    on_progress: OnProgress,
    layout: str | None,
) -> str:
    packed = layout is not None
    entry = cache.entry_of(source.path, recipe, str(place.dtype), layout)
    kept = _kept(entry)
    if kept is not None:
        on_bytes = _counting("loading weights", kept.num_bytes, on_progress)
        load_quantized(model, kept.tensors(), place, on_bytes, packed=packed)
        return f"{'mapped' if packed else 'read'} from {entry}"
    keeper = _Keeper(entry, model, place, packed)
    try:
        _quantize(model, source, place, on_progress, keeper.put, packed)
        return keeper.publish(source, recipe)
    finally:
        keeper.close()


def _kept(entry: Path) -> Checkpoint | None:
    if not entry.is_dir():
        return None
    try:
        return open_checkpoint(str(entry))
    except ModelError:  # damaged: it is made anew
        shutil.rmtree(entry, ignore_errors=True)
        return None


def _quantize(
    model: Model,
    source: Source,
    place: Place,
    on_progress: OnProgress,
    keep: Keep,
    packed: bool = False,
) -> None:
    on_bytes = _counting("quantising weights", source.checkpoint.num_bytes, on_progress)
    tensors = source.checkpoint.tensors()
    load_weights(model, source.names, tensors, place, on_bytes, keep, packed=packed)


def _finish(store: Store, source: Source, recipe: Recipe) -> None:
    checkpoint = source.checkpoint
    config = {**checkpoint.config, "architectures": [checkpoint.architecture]}
    store.finish(config, recipe, checkpoint.dtype)


def _counting(phase: str, total: int, on_progress: OnProgress) -> OnBytes:
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        on_progress(Progress(phase, done, total))

    return on_bytes


class _Keeper:
    """Writes an entry of the cache as long as that goes well: serving does not depend on it."""

    def __init__(self, entry: Path, model: Model, place: Place, packed: bool) -> None:
        self._entry = entry
        self._folder: Path | None = None
        self._store: Store | None = None
        self._trouble = ""
        try:
            self._folder = cache.new_folder(entry)
            self._store = Store(self._folder, model, place.dtype, packed=packed)
        except OSError as error:
            self._give_up(error)

    def put(self, name: str, tensor: Tensor) -> None:
        if self._store is None or self._trouble:
            return
        try:
            self._store.put(name, tensor)
        except OSError as error:
            self._give_up(error)

    def publish(self, source: Source, recipe: Recipe) -> str:
        """What came of it, in words."""
        if self._store is not None and self._folder is not None and not self._trouble:
            try:
                _finish(self._store, source, recipe)
                cache.publish(self._folder, self._entry)
                self._folder = None
                return f"kept in {self._entry}"
            except OSError as error:
                self._give_up(error)
        return f"not kept for the next start: {self._trouble}"

    def close(self) -> None:
        """Leave nothing half written."""
        if self._store is not None:
            self._store.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _give_up(self, error: OSError) -> None:
        self._trouble = shown(error.strerror or str(error) or type(error).__name__)

"""A Hugging Face folder: config.json and one or many safetensors files.

Without torch until tensors are read, so that a folder that is none is refused at once.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.hub import CONFIG, INDEX, WEIGHTS, no_weights
from rosellm.roseinfer.loading.checkpoint import Checkpoint, read_json
from rosellm.roseinfer.loading.pooling import read_pooling
from rosellm.roseinfer.quant.section import read_section

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_FLOAT8 = "F8_E4M3"
_FLOAT8_METHODS = ("fp8", "fbgemm_fp8")
_QUANTIZED = "quantization_config"
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2}


def open_folder(folder: Path) -> Checkpoint:
    """Read what the folder says of itself; tensors are read when iterated."""
    config = read_config(folder)
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelError(f"{folder / CONFIG}: no architectures; is it the config of a whole model?")
    files = _files(folder)
    kinds, num_bytes = _survey(files)
    quantized = read_section(config, str(folder / CONFIG))
    is_fp8 = quantized is None and _FLOAT8 in kinds
    dtype = _computed_in(config) if is_fp8 else _DTYPES.get(kinds.most_common(1)[0][0], "float32")
    return Checkpoint(
        architecture=names[0],
        config=_without_fp8(config) if is_fp8 else config,
        dtype=quantized.dtype if quantized else dtype,
        num_bytes=num_bytes,
        tensors=lambda: _plain(files, config, dtype) if is_fp8 else _tensors(files),
        pooling=read_pooling(folder),
        recipe=quantized.recipe if quantized else None,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json holds. Raises ModelError, with a guess at what was meant."""
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder / CONFIG}: no such file; {_meant(folder)}")
    return read_json(folder / CONFIG)


def _meant(folder: Path) -> str:
    """What to do about a folder without a config: a cache's has its models further inside."""
    for inside in ("*", "snapshots/*"):
        for config in sorted(folder.glob(f"{inside}/{CONFIG}")):
            return f"did you mean {config.parent}?"
    if any(folder.glob("*.gguf")):
        return "GGUF files cannot be read, pass a folder of the same model with safetensors"
    return "a model folder has that, safetensors and a tokenizer, as on the hub"


def _files(folder: Path) -> list[Path]:
    """The weight files, as the index lists them or the only one there is."""
    single, index = folder / WEIGHTS, folder / INDEX
    if not index.exists():
        if not single.exists():
            raise ModelError(no_weights(str(folder), (path.name for path in folder.iterdir())))
        return [single]
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ModelError(f"{index}: no weight_map")
    files = []
    for name in sorted(set(map(str, table.values()))):
        if Path(name).name != name:
            raise ModelError(f"{index}: {shown(repr(name))} is not a file of this folder")
        if not os.path.exists(folder / name):  # a Path raises for a name that is too long
            raise ModelError(
                f"{folder / shown(name)}: listed in the index but missing; download it"
            )
        files.append(folder / name)
    return files


def _open(path: Path, framework: str) -> safe_open:
    try:
        return safe_open(path, framework=framework)
    except (SafetensorError, OSError, ValueError) as error:
        if _is_pointer(path):
            raise ModelError(f"{path} only stands for a file: run git lfs pull there") from None
        raise ModelError(
            f"{path}: not a readable safetensors file ({shown(str(error))}); "
            "if it is incomplete, download it again"
        ) from None


def _is_pointer(path: Path) -> bool:
    """Whether a clone without Git LFS left this in place of the file."""
    try:
        with path.open("rb") as file:
            return file.read(64).startswith(b"version https://git-lfs")
    except OSError:
        return False


def _survey(files: list[Path]) -> tuple[Counter[str], int]:
    """How many numbers there are of each type, and the size of all."""
    kinds: Counter[str] = Counter()
    num_bytes = 0
    for path in files:
        with _open(path, "numpy") as reader:
            for name in reader.keys():  # noqa: SIM118 - not a dict
                piece = reader.get_slice(name)
                size = 1
                for extent in piece.get_shape():
                    size *= extent
                kinds[piece.get_dtype()] += size
                num_bytes += size * _BYTES.get(piece.get_dtype(), 1)
    if not kinds:
        raise ModelError(f"{files[0]}: holds no tensors")
    return kinds, num_bytes


def _without_fp8(config: dict[str, Any]) -> dict[str, Any]:
    """The config as it is for plain numbers; of other ways to quantise, the model complains."""
    about = config.get(_QUANTIZED)
    about = about if isinstance(about, dict) else {}
    method = about.get("quant_method")
    known = method in _FLOAT8_METHODS or about.get("format") == "float-quantized"
    return {key: value for key, value in config.items() if key != _QUANTIZED or not known}


def _computed_in(config: dict[str, Any]) -> str:
    """The type that a checkpoint in fp8 stands for."""
    said = config.get("dtype") or config.get("torch_dtype")
    return str(said) if said in _DTYPES.values() else "bfloat16"


def _plain(files: list[Path], config: dict[str, Any], dtype: str) -> Iterator[tuple[str, Tensor]]:
    from rosellm.roseinfer.loading.float8 import plain_tensors

    return plain_tensors(_tensors(files), config, dtype)


def _tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    from rosellm.roseinfer.loading.mapped import mapped_tensors

    for path in files:
        with _open(path, "pt") as reader:
            for name, tensor in mapped_tensors(path):
                yield name, reader.get_tensor(name) if tensor is None else tensor

"""Quantised models that were made on the fly, kept for the next start.

Each is a folder as ``Store`` writes it, under ``$XDG_CACHE_HOME/rosellm/quantized``. Its name says
what it was made of; what may be deleted at any time is no more than time saved.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from rosellm.roseinfer.quant.formats import Format, Recipe
from rosellm.roseinfer.quant.section import VERSION

_SAMPLES = 64
_SAMPLE_BYTES = 4096


def cache_root() -> Path:
    """Where they are."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rosellm" / "quantized"


def entry_of(model: str, recipe: Recipe, dtype: str, layout: str | None) -> Path:
    """The folder, there or not, of a model quantised so.

    Args:
        model: folder or file of the original.
        dtype: of what is not quantised.
        layout: of the kernels, whose bytes are kept; None keeps what can be written out.
    """
    source = Path(model).expanduser().resolve()
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr((VERSION, recipe, dtype, layout)).encode())
    for file in _files(source):
        digest.update(file.name.encode())
        digest.update(_looks(file))
    name = re.sub(r"[^\w.-]+", "-", source.name.removesuffix(".pt"))[:60]
    return cache_root() / f"{name}-{_label(recipe.layers or recipe.head)}-{digest.hexdigest()}"


def _label(format: Format | None) -> str:
    return format.label if format else "plain"


def _files(source: Path) -> list[Path]:
    """What decides the numbers: weights and config."""
    if source.is_file():
        return [source]
    return sorted([*source.glob("*.safetensors"), source / "config.json"])


def _looks(file: Path) -> bytes:
    """Size, time of change, and a sample of the content: times may be all the same in a copy."""
    about = file.stat()
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{about.st_size} {about.st_mtime_ns}".encode())
    with file.open("rb") as content:
        for index in range(_SAMPLES):
            content.seek(index * about.st_size // _SAMPLES)
            digest.update(content.read(_SAMPLE_BYTES))
    return digest.digest()


def new_folder(beside: Path) -> Path:
    """An empty folder in which to write what ``publish`` then moves to ``beside``."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{beside.name}.", dir=beside.parent))


def publish(written: Path, target: Path) -> None:
    """Move a whole folder to its place at once; whoever comes second leaves the first's there."""
    written.chmod(0o755)
    try:
        written.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(written, ignore_errors=True)

"""What a checkpoint's weights are, as one short text: a hash of its files' bytes.

Neither the folder's name nor times count, so that a copy is the same model. A file's hash is kept,
and found again as long as the file has not been written since. Knows no tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from concurrent.futures import Future
from pathlib import Path

from rosellm.roseinfer.quant.cache import cache_root


def begin_hashing(model: str) -> Future[str]:
    """``weights_hash``, beside whatever else is done meanwhile; nobody has to wait for it."""
    begun: Future[str] = Future()

    def work() -> None:
        try:
            begun.set_result(weights_hash(model))
        except BaseException as error:
            begun.set_exception(error)

    threading.Thread(target=work, name="identity", daemon=True).start()
    return begun


def weights_hash(model: str) -> str:
    """The hash of a folder's or a file's weights.

    Raises:
        OSError: one of the files cannot be read.
    """
    source = Path(model).expanduser()
    if not source.is_dir():
        return file_hash(source)
    whole = hashlib.sha256()
    for file in sorted(source.glob("*.safetensors")):
        whole.update(f"{file.name} {file_hash(file)}\n".encode())
    return whole.hexdigest()


def file_hash(path: Path) -> str:
    """Of its bytes (SHA-256, for which processors have instructions), read once in its life."""
    kept = _place(path)
    with contextlib.suppress(OSError):
        return kept.read_text()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if _place(path) == kept:  # else it was written meanwhile
        with contextlib.suppress(OSError):
            _keep(kept, found)
    return found


def _keep(place: Path, text: str) -> None:
    """Write it whole or not at all: others may look for it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    written = place.with_name(f"{place.name}.{os.getpid()}")
    written.write_text(text)
    written.replace(place)


def _place(path: Path) -> Path:
    """Where a file's hash is kept. Writing to a file changes its ctime, which nobody can set."""
    about = path.stat()
    looks = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    name = hashlib.blake2b(f"{path.resolve()} {looks}".encode(), digest_size=16).hexdigest()
    return cache_root().parent / "hashes" / name

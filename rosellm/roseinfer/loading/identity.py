"""What a checkpoint's weights are, as one short text: a hash of its files' bytes.

Neither the folder's name nor times count, so that a copy is the same model. Knows no tensors.
"""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import Future
from pathlib import Path


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
    """Of its bytes (SHA-256, for which processors have instructions)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

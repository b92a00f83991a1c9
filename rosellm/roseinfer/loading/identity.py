"""What a checkpoint's weights are, as one short text: a hash of its files' bytes.

Neither names of folders nor times count, so that a copy is the same model. Knows no tensors.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

_THREADS = min(4, os.cpu_count() or 1)


def begin_hashing(model: str) -> Future[str]:
    """Hash the weights of a folder or a file beside whatever else is done meanwhile."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="identity")
    begun = pool.submit(weights_hash, model)
    pool.shutdown(wait=False)
    return begun


def weights_hash(model: str) -> str:
    """The hash, of whichever files hold weights.

    Raises:
        OSError: one of them cannot be read.
    """
    source = Path(model).expanduser()
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
    whole = hashlib.sha256()
    with ThreadPoolExecutor(_THREADS) as pool:
        for file, digest in zip(files, pool.map(file_hash, files), strict=True):
            name = file.name if source.is_dir() else ""
            whole.update(f"{name} {digest}\n".encode())
    return whole.hexdigest()


def file_hash(path: Path) -> str:
    """Of its bytes (SHA-256, for which processors have instructions)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""What llama.cpp's own library says of a text: scores of every token in every place.

    python -m benchmarks.peers.llama_logits LLAMA_CPP FILE.gguf WINDOWS.json OUT.npy

``LLAMA_CPP`` is as in ``llama_cpp.py``; the declarations of its C interface are those of the Python
package that it came with. ``WINDOWS.json`` is a list of lists of token ids, each read on its own;
``OUT.npy`` gets float32 [all tokens, vocabulary].
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def interface(llama_cpp: Path) -> Any:
    """The module of ctypes declarations, without the package around it and what that needs."""
    os.environ["LLAMA_CPP_LIB_PATH"] = str(llama_cpp / "build" / "bin")
    package = types.ModuleType("llama_cpp")
    package.__path__ = [str(llama_cpp.resolve().parents[1] / "llama_cpp")]
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


def scores(lib: Any, file: Path, windows: list[list[int]]) -> NDArray[np.float32]:
    """float32 [all tokens, vocabulary]."""
    silent = lib.llama_log_callback(lambda *_: None)  # held until the end: C has a pointer to it
    lib.llama_log_set(silent, None)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params())
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    longest = max(map(len, windows))
    asked = lib.llama_context_default_params()
    asked.n_ctx = asked.n_batch = asked.n_ubatch = longest
    context = lib.llama_init_from_model(model, asked)
    batch = lib.llama_batch_init(longest, 0, 1)
    rows = []
    for window in windows:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        batch.n_tokens = len(window)
        for place, token in enumerate(window):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
        if lib.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        for place in range(len(window)):
            found = lib.llama_get_logits_ith(context, place)
            rows.append(np.ctypeslib.as_array(found, (size,)).copy())
    return np.stack(rows)


def main() -> None:
    llama_cpp, file, windows, out = map(Path, sys.argv[1:])
    np.save(out, scores(interface(llama_cpp), file, json.loads(windows.read_text())))


if __name__ == "__main__":
    main()

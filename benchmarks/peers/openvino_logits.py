"""What OpenVINO says of a text: scores of every token in every place.

    VENV/bin/python -m benchmarks.peers.openvino_logits FOLDER WINDOWS.json OUT.npy

``FOLDER`` is an exported model, compiled as ``openvino.py`` has it served; of that, only keys and
values that earlier steps left in 8 bits are missing, since a window is read at once. Other files
are as in ``llama_logits.py``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.openvino import PROPERTIES


def scores(folder: Path, windows: list[list[int]]) -> NDArray[np.float32]:
    """float32 [all tokens, vocabulary]."""
    import openvino

    model = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", PROPERTIES)
    wanted = {name for port in model.inputs for name in port.names}
    rows = []
    for window in windows:
        request = model.create_infer_request()  # with a state of its own
        count = len(window)
        given = {
            "input_ids": np.array([window], dtype=np.int64),
            "attention_mask": np.ones((1, count), dtype=np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        found = request.infer({name: given[name] for name in given if name in wanted})
        rows.append(found["logits"][0].astype(np.float32))
    return np.concatenate(rows)


def main() -> None:
    folder, windows, out = map(Path, sys.argv[1:])
    np.save(out, scores(folder, json.loads(windows.read_text())))


if __name__ == "__main__":
    main()

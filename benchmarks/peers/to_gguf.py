"""llama.cpp's converter, for models whose tokenizer it has never heard of.

    python -m benchmarks.peers.to_gguf LLAMA_CPP MODEL --outtype bf16 --outfile OUT

It knows tokenizers by what they make of one text, and gives up where it does not know that; here
such a one is taken to split text as GPT-2's does, which byte-level tokenizers nearly do.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    home = Path(sys.argv.pop(1))
    sys.path[:0] = [str(home), str(home / "gguf-py")]
    from conversion import base  # type: ignore[import-not-found]

    known = base.TextModel.get_vocab_base_pre

    def pre_tokenizer(self: Any, tokenizer: Any) -> Any:
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            return "gpt-2"

    base.TextModel.get_vocab_base_pre = pre_tokenizer
    runpy.run_path(str(home / "convert_hf_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    main()

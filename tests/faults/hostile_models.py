"""Small models of every form, with all the files that may stand beside one, as they should be."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.conftest import write_tokenizer
from tests.text.conftest import sentencepiece_model
from tests.tiny_models import write_gpt2, write_llama, write_rose_gpt

TEMPLATE = (
    "{%- for m in messages %}{{ '<|' ~ m.role ~ '|>' }}{% if m.content is string %}"
    "{{ m.content|trim }}{% else %}{{ m.content|tojson }}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|endoftext|>",
    "eos_token": {"content": "<|endoftext|>", "lstrip": False, "__type": "AddedToken"},
    "add_bos_token": True,
    "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True}},
    "additional_special_tokens": ["<|endoftext|>"],
    "chat_template": [{"name": "default", "template": TEMPLATE}],
    "model_max_length": 64,
}
GENERATION = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "eos_token_id": [0, 2]}
SIZES: dict[str, int] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
}


def write_models(root: Path) -> Path:
    """Write them into folders of their own; always the same ones."""
    for name in ("whole", "shards", "gpt2", "pieces", "rose"):
        (root / name).mkdir()
    size = write_tokenizer(root / "whole" / "tokenizer.json")
    write_llama(root / "whole", vocab_size=size, **SIZES)
    (root / "whole" / "chat_template.jinja").write_text(TEMPLATE)
    _describe(root / "whole")
    write_tokenizer(root / "shards" / "tokenizer.json")
    write_llama(root / "shards", vocab_size=size, shards=2, **SIZES)
    _describe(root / "shards")
    write_gpt2(root / "gpt2", vocab_size=size, n_embd=8, n_head=2, n_positions=64)
    write_tokenizer(root / "gpt2" / "tokenizer.json")
    (root / "pieces" / "tokenizer.model").write_bytes(
        sentencepiece_model(model_type="unigram", vocab_size=80)
    )
    write_llama(root / "pieces", vocab_size=80, **SIZES)
    write_tokenizer(root / "rose" / "tokenizer.json")
    write_rose_gpt(root / "rose" / "model.pt", vocab_size=size, d_model=8, n_heads=2, d_ff=12,
                   max_position_embeddings=64)  # fmt: skip
    return root


def _describe(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<|endoftext|>"}))

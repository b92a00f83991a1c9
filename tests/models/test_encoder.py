"""Encoders equal transformers', and a text's vector knows nothing of the batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import BadRequestError
from torch import Tensor

from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.errors import ModelError
from rosellm.roseinfer.messages import Add
from rosellm.roseinfer.models.registry import find_architecture
from rosellm.roseinfer.step import StepPlan, Work
from rosellm.roseinfer.text.load import load_tokenizer
from tests.e2e.conftest import start_server
from tests.models.encoders import BERT, bert_weights, embed, texts, write_bert
from tests.tiny_models import (
    build,
    generate,
    greedy,
    read_spec,
    write_llama,
    write_safetensors,
)

ROBERTA: dict[str, Any] = {
    **BERT,
    "architectures": ["RobertaModel"],
    "model_type": "roberta",
    "max_position_embeddings": 162,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
XLM = {**ROBERTA, "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"}
ODD = {"hidden_size": 45, "num_attention_heads": 3, "intermediate_size": 57, "vocab_size": 101,
       "num_hidden_layers": 3}  # fmt: skip


class Oracle:
    """transformers' model of the same folder, one text at a time."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel

        self._model = AutoModel.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @torch.inference_mode()
    def hidden(self, tokens: Sequence[int]) -> Tensor:
        states: Tensor = self._model(torch.tensor([list(tokens)])).last_hidden_state[0]
        return states

    def vector(self, tokens: Sequence[int], kind: str) -> Tensor:
        states = self.hidden(tokens)
        pooled = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[kind]
        return torch.nn.functional.normalize(pooled, dim=0)


def hidden_states(core: EngineCore, tokens: Sequence[int]) -> Tensor:
    """[T, H] of one text. Blocks are taken behind the scheduler's back."""
    runner: Any = core._runner
    table = tuple(range(-(-len(tokens) // 16)))
    plan = StepPlan((Work(0, 0, tuple(tokens), (table,)),))
    states: Tensor = runner.hidden_states(plan)
    return states


LENGTHS = [1, 160, 7, 16, 90, 3, 33, 2, 64, 129]
MEAN = {"word_embedding_dimension": 48, "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}  # fmt: skip
CLS = {**MEAN, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "bert": (BERT, {}, "mean"),
    "bert, mean": (BERT, {"pooling": MEAN}, "mean"),
    "bert, cls, odd sizes": ({**BERT, **ODD}, {"pooling": CLS}, "cls"),
    "bert, last, gelu_new": (
        {**BERT, "hidden_act": "gelu_new"}, {"pooling": {"pooling_mode": "lasttoken"}}, "last"),
    "bert, an old masked one": (
        {**BERT, "architectures": ["BertForMaskedLM"]}, {"masked": True}, "mean"),
    "roberta, odd sizes": ({**ROBERTA, **ODD}, {}, "mean"),
    "roberta, a masked one": (
        {**ROBERTA, "architectures": ["RobertaForMaskedLM"]}, {"masked": True}, "mean"),
    "xlm-roberta, cls": (XLM, {"pooling": {"pooling_mode": "cls"}}, "cls"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case: str, tmp_path: Path) -> None:
    config, how, kind = CASES[case]
    folder = write_bert(tmp_path / "model", config, **how)
    oracle, core = Oracle(folder), build(folder)
    assert (core.facts.max_model_len, core.facts.generates) == (160, False)
    assert (core.facts.pooling, core.facts.embedding_size) == (kind, config["hidden_size"])
    prompts = texts(LENGTHS, config["vocab_size"])
    for prompt in prompts[:3]:
        torch.testing.assert_close(
            hidden_states(core, prompt), oracle.hidden(prompt), rtol=1e-4, atol=1e-4
        )
    wanted = [oracle.vector(prompt, kind) for prompt in prompts]
    torch.testing.assert_close(embed(core, prompts), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [BERT, {**ROBERTA, **ODD}], ids=["bert", "roberta-odd"])
def test_the_same_bits_in_any_batch(
    config: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = write_bert(tmp_path / "model", config, dtype=dtype)
    core = build(folder)
    assert core.facts.invariant
    prompts = texts(LENGTHS, 97)
    alone = torch.stack([embed(core, [prompt])[0] for prompt in prompts])
    for other in (core, build(folder, block_size=4), build(folder, max_num_seqs=3)):
        assert torch.equal(torch.stack(embed(other, prompts)), alone)
        assert torch.equal(torch.stack(embed(other, prompts[::-1], per_step=2)), alone.flip(0))
    narrow = build(folder, num_blocks=12, max_model_len=160)
    assert torch.equal(torch.stack(embed(narrow, prompts)), alone)


def test_too_long_a_text_is_refused(tmp_path: Path) -> None:
    core = build(write_bert(tmp_path / "model", BERT))
    core.add(Add(1, [5] * 161, greedy(1), want="pooled"))
    [row] = core.step().rows
    assert row.error is not None
    assert row.error.status == 400
    assert "the prompt has 161 tokens; the context holds 160" in row.error.message


def test_an_encoder_generates_nothing(tmp_path: Path) -> None:
    core = build(write_bert(tmp_path / "model", BERT))
    [result] = generate(core, [[5, 6]], greedy(3))
    assert result.error is not None
    assert "vectors, not tokens" in result.error.message


# -- decoders ---------------------------------------------------------------------


def test_a_decoders_vector_is_of_its_last_token(tmp_path: Path) -> None:
    """Whole, in chunks, over a prefix hit, beside texts that are continued."""
    folder = write_llama(tmp_path / "model")
    oracle, core = Oracle(folder), build(folder, prefix_cache=False)
    assert (core.facts.pooling, core.facts.generates) == ("last", True)
    prompts = texts(LENGTHS)
    wanted = [oracle.vector(prompt, "last") for prompt in prompts]
    alone = [embed(core, [prompt])[0] for prompt in prompts]
    torch.testing.assert_close(alone, wanted, rtol=1e-4, atol=1e-4)
    cached = build(folder, max_num_batched_tokens=11)
    for turn in (core, cached, cached):
        assert torch.equal(torch.stack(embed(turn, prompts)), torch.stack(alone))
    core.add(Add(1 << 20, prompts[0], greedy(4)))
    core.add(Add((1 << 20) + 1, prompts[1], greedy(4), want="pooled"))
    rows = [row for _ in range(5) for row in core.step().rows]
    [vector] = [row.pooled.data for row in rows if row.pooled]
    assert vector == alone[1].numpy().tobytes()


def test_a_decoder_pools_no_other_way(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model")
    (folder / "1_Pooling").mkdir()
    settings = folder / "1_Pooling" / "config.json"
    settings.write_text(json.dumps({**MEAN, "pooling_mode_mean_tokens": False,
                                    "pooling_mode_lasttoken": True}))  # fmt: skip
    assert build(folder).facts.pooling == "last"
    settings.write_text(json.dumps(MEAN))
    with pytest.raises(ModelError, match="mean pooling over a decoder is not supported"):
        build(folder)


# -- what is read, and what is refused --------------------------------------------

STAGES = [{"idx": i, "name": str(i), "path": "", "type": f"sentence_transformers.models.{name}"}
          for i, name in enumerate(["Transformer", "Pooling", "Normalize"])]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("1_Pooling/config.json", {**MEAN, "pooling_mode_cls_token": True}, "supported: one of"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "pooling weightedmean"),
        ("1_Pooling/config.json", {}, "pooling none"),
        ("1_Pooling/config.json", [], "expected a JSON object"),
        ("modules.json", [*STAGES, {"type": "sentence_transformers.models.Dense"}], "Dense"),
        ("modules.json", {"type": 3}, "'3' is not supported"),
        ("modules.json", ["x"], "'x' is not supported"),
        ("modules.json", 7, "'7' is not supported"),
    ],
)
def test_poolings_that_are_not_built(name: str, content: Any, wanted: str, tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "model", BERT, pooling=MEAN)
    (folder / "modules.json").write_text(json.dumps(STAGES))
    assert build(folder).facts.pooling == "mean"
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=wanted):
        build(folder)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({**BERT, "position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({**BERT, "is_decoder": True}, "is_decoder"),
        ({**BERT, "num_attention_heads": 5}, "not a multiple of its 5 heads"),
        ({**BERT, "type_vocab_size": 0}, "token_types = 0"),
        ({**BERT, "hidden_act": "silu"}, "hidden_act = 'silu'"),
        ({**ROBERTA, "pad_token_id": -2}, "pad_token_id = -2"),
        ({**ROBERTA, "pad_token_id": 200}, "max_positions = -39"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit(config: dict[str, Any], wanted: str) -> None:
    architecture = find_architecture(config["architectures"][0])
    with pytest.raises(ModelError, match=wanted):
        architecture.read_config(config)


def test_an_unknown_tensor_is_refused(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "model", BERT)
    assert read_spec(folder).pooling == "mean"
    write_safetensors(folder, {**bert_weights(BERT), "encoder.rel.weight": torch.zeros(2)})
    with pytest.raises(ModelError, match=r"encoder\.rel\.weight: not part of this model"):
        build(folder)


# -- its tokenizer ----------------------------------------------------------------


def write_wordpiece(folder: Path) -> None:
    """As published: with padding and truncation in the file, and neither bos nor eos."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hel", "##lo", "world", ",", "!"]
    pipeline = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    pipeline.normalizer = normalizers.BertNormalizer(lowercase=True)
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pipeline.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    pipeline.decoder = decoders.WordPiece()
    pipeline.add_special_tokens(words[:5])
    pipeline.enable_truncation(4)
    pipeline.enable_padding(length=12)
    pipeline.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_wordpiece_tokenizer_adds_its_ends(tmp_path: Path) -> None:
    write_wordpiece(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    ids = tokenizer.encode("Hello, world! Hello")
    assert ids == [2, 5, 6, 8, 7, 9, 5, 6, 3]
    assert tokenizer.encode("Hello", add_special_tokens=False) == [5, 6]
    assert tokenizer.encode("") == [2, 3]
    assert (tokenizer.bos_id, list(tokenizer.eos_ids)) == (None, [])
    assert tokenizer.decode(ids) == "hello, world! hello"


@pytest.mark.slow
def test_served(tmp_path: Path) -> None:
    """Text in, vectors out, with OpenAI's client; and no answer to what it cannot do."""
    folder = write_bert(tmp_path / "model", BERT, pooling=MEAN)
    write_wordpiece(folder)
    server = start_server(str(folder), model="model")
    try:
        inputs = ["Hello, world! Hello", "hello"]
        wanted = [Oracle(folder).vector(load_tokenizer(str(folder)).encode(t), "mean")
                  for t in inputs]  # fmt: skip
        answer = server.openai.embeddings.create(model="model", input=inputs)
        found = [torch.tensor(item.embedding) for item in answer.data]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        assert answer.usage.prompt_tokens == 9 + 4
        with pytest.raises(BadRequestError, match="embedding model"):
            server.openai.completions.create(model="model", prompt="hello")
    finally:
        assert server.stop() == 0

"""Small tokenizers of every form, trained here, so that a clone without data tests them all."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from rosellm.roseinfer.text.huggingface_form import byte_alphabet
from rosellm.roseinfer.text.load import load_tokenizer
from rosellm.roseinfer.text.tokenizer import Tokenizer

LINES = [
    "Once upon a time there was a little girl named Lily. She loved to play outside.",
    'One day, Lily saw a big red ball. "Whose ball is it?" she asked.  It wasn\'t hers.',
    'Tim said, "It\'s mine! You can have it." They played until it was late.',
    "naïve café résumé: 日本語 Привет, 12345 - 67.89",
] * 3


def bytes_pipeline() -> Pipeline:
    """GPT-2's kind: byte-level BPE, with one special and one ordinary added token."""
    pipeline = Pipeline(models.BPE())
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pipeline.train_from_iterator(LINES, trainer)
    pipeline.add_tokens(["    "])
    return pipeline


def llama_pipeline() -> Pipeline:
    """Llama's kind: BPE over ▁ for space, unknown characters as byte tokens."""
    pipeline = Pipeline(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=120, show_progress=False)
    pipeline.train_from_iterator([line.replace(" ", "▁") for line in LINES[:3]], trainer)
    learned = json.loads(pipeline.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "�"]
    tokens += sorted(learned["vocab"], key=learned["vocab"].get)
    vocab = {token: id for id, token in enumerate(tokens)}
    merges = [tuple(pair) for pair in learned["merges"]]
    pipeline = Pipeline(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    pipeline.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    pipeline.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    pipeline.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    pipeline.add_special_tokens(["<unk>", "<s>", "</s>"])
    return pipeline


def metaspace_pipeline() -> Pipeline:
    """T5's kind: unigram over ▁ for space."""
    pipeline = Pipeline(models.Unigram())
    pipeline.pre_tokenizer = pre_tokenizers.Metaspace()
    pipeline.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    pipeline.train_from_iterator(LINES, trainer)
    return pipeline


def wordpiece_pipeline() -> Pipeline:
    """BERT's kind: words and their ## continuations."""
    pipeline = Pipeline(models.WordPiece(unk_token="[UNK]"))
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pipeline.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=["[UNK]", "[CLS]"], show_progress=False
    )
    pipeline.train_from_iterator(LINES, trainer)
    return pipeline


def sentencepiece_model(**options: object) -> bytes:
    """Train a tokenizer.model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        control_symbols=["[INST]", "[/INST]"],
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def llama_model() -> bytes:
    return sentencepiece_model(
        model_type="bpe",
        vocab_size=420,
        character_coverage=0.98,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
    )


def unigram_model() -> bytes:
    return sentencepiece_model(model_type="unigram", vocab_size=80)


PIPELINES: dict[str, Callable[[], Pipeline]] = {
    "bytes": bytes_pipeline,
    "llama": llama_pipeline,
    "metaspace": metaspace_pipeline,
    "wordpiece": wordpiece_pipeline,
}
MODELS: dict[str, Callable[[], bytes]] = {"sp-llama": llama_model, "sp-unigram": unigram_model}
FORMS = [*PIPELINES, *MODELS, "tiktoken"]


def write_ranks(path: Path) -> None:
    """Write the tokens of ``bytes_pipeline`` as a file of ranks, and a special token beside it."""
    vocab = bytes_pipeline().get_vocab()
    alphabet = byte_alphabet()
    special = {"<|endoftext|>", "    "}
    ordered = sorted((token for token in vocab if token not in special), key=vocab.__getitem__)
    codes = [
        base64.b64encode(bytes(alphabet[char] for char in token)).decode() for token in ordered
    ]
    path.write_text("".join(f"{code} {rank}\n" for rank, code in enumerate(codes)))
    end = {"content": "<|endoftext|>", "special": True}
    config = {"added_tokens_decoder": {str(len(ordered)): end}}
    path.with_name("tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a folder for each of FORMS, holding little more than its main file."""
    root = tmp_path_factory.mktemp("tokenizers")
    folders = {name: root / name for name in FORMS}
    for name, folder in folders.items():
        folder.mkdir()
        if name in PIPELINES:
            PIPELINES[name]().save(str(folder / "tokenizer.json"))
        elif name == "tiktoken":
            write_ranks(folder / "small.tiktoken")
        else:
            (folder / "tokenizer.model").write_bytes(MODELS[name]())
    return folders


@pytest.fixture(scope="session")
def tokenizers(tokenizer_folders: dict[str, Path]) -> dict[str, Tokenizer]:
    """Return the loaded tokenizer of each of FORMS."""
    return {name: load_tokenizer(str(folder)) for name, folder in tokenizer_folders.items()}


@pytest.fixture(scope="session")
def known_tokenizer(shared_data: Path) -> Callable[[str], Tokenizer]:
    """Return a function that loads one of the real tokenizers, each only once."""
    return cache(lambda name: load_tokenizer(str(shared_data / "tokenizers" / name)))

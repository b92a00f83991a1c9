"""Tokenizers in tiktoken's form: a file of ranks, run by the ``tokenizers`` library.

A line of the file is a token's bytes in base64 and its rank, which is its id: of two possible
merges the one with the lower rank comes first (byte pair encoding). The file says neither how a
text is cut into words nor what the special tokens are. Both belong to an encoding, which is known
by the file's name or by how many ranks it has; any other file is taken to be cut as cl100k_base,
with the special tokens that ``tokenizer_config.json`` beside it names.
"""

from __future__ import annotations

import binascii
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Pipeline

from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.text.huggingface_form import HuggingFaceTokenizer, add_tokens, byte_alphabet
from rosellm.roseinfer.text.tokenizer_config import TokenizerConfig

_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (\d+)\r?\n?")

# The patterns as their encodings define them: openai/tiktoken (tiktoken_ext/openai_public.py),
# meta-llama/llama3 (llama/tokenizer.py), QwenLM/Qwen (tokenization_qwen.py). A possessive "++"
# is a "+" here: it never changes what matches, and this library's dialect reads it otherwise.
_GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_WORDS = _CL100K_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Encoding:
    """What a file of ranks leaves unsaid.

    Attributes:
        words: regular expression whose matches are encoded one by one.
        special: ids of the special tokens.
        named: which of them are the bos and eos token.
        add_bos: whether a text begins with the bos token.
    """

    words: str
    special: Mapping[str, int] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    add_bos: bool = False


def _fim(first: int) -> dict[str, int]:
    names = ("prefix", "middle", "suffix")
    return {f"<|fim_{name}|>": first + offset for offset, name in enumerate(names)}


def _llama3_special() -> dict[str, int]:
    """256 tokens, most of them in reserve."""
    names = ["begin_of_text", "end_of_text", "", "", "", "", "start_header_id", "end_header_id"]
    names += ["", "eot_id"]
    reserve = (f"reserved_special_token_{number}" for number in range(256))
    names = [name or next(reserve) for name in names]
    names += islice(reserve, 256 - len(names))
    return {f"<|{name}|>": 128000 + offset for offset, name in enumerate(names)}


def _qwen_special() -> dict[str, int]:
    names = ["endoftext", "im_start", "im_end", *(f"extra_{number}" for number in range(205))]
    return {f"<|{name}|>": 151643 + offset for offset, name in enumerate(names)}


_END = "<|endoftext|>"
_ENDS = {"bos_token": _END, "eos_token": _END}
ENCODINGS = {
    "r50k_base": Encoding(_GPT2_WORDS, {_END: 50256}, _ENDS),
    "p50k_base": Encoding(_GPT2_WORDS, {_END: 50256}, _ENDS),
    "cl100k_base": Encoding(
        _CL100K_WORDS, {_END: 100257, **_fim(100258), "<|endofprompt|>": 100276}, _ENDS
    ),
    "o200k_base": Encoding(_O200K_WORDS, {_END: 199999, "<|endofprompt|>": 200018}, _ENDS),
    "llama3": Encoding(
        _CL100K_WORDS,
        _llama3_special(),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        add_bos=True,
    ),
    "qwen": Encoding(_QWEN_WORDS, _qwen_special(), {"eos_token": _END}),
}
_BY_SIZE = {
    50256: "r50k_base",
    50280: "p50k_base",
    100256: "cl100k_base",
    199998: "o200k_base",
    128000: "llama3",
    151643: "qwen",
}


def holds_ranks(path: Path) -> bool:
    """Whether a file looks like one of ranks, by its name or its first line."""
    if path.suffix == ".tiktoken":
        return True
    try:
        with path.open("rb") as file:
            return _LINE.fullmatch(file.readline(1000)) is not None
    except OSError:
        return False


def load_tiktoken(path: Path, config: TokenizerConfig) -> HuggingFaceTokenizer:
    """Load a file of ranks.

    Raises:
        ModelError: it cannot be read, or its tokens and those of the config contradict each other.
    """
    ranks = dict(_read_ranks(path))
    if len(set(ranks.values())) < len(ranks):
        [(rank, _)] = Counter(ranks.values()).most_common(1)
        raise ModelError(f"{path}: two tokens have rank {rank}")
    encoding = _encoding_of(path, ranks)
    letters = [letter for letter, _ in sorted(byte_alphabet().items(), key=lambda pair: pair[1])]
    tokens = {"".join([letters[byte] for byte in token]): id for token, id in ranks.items()}
    if missing := [byte for byte, letter in enumerate(letters) if letter not in tokens]:
        raise ModelError(f"{path}: no rank for byte {missing[0]:#04x}, which a text may hold")
    special = _special_tokens(encoding, tokens.values(), config)
    added = {**special, **{token.content: token.id for token in config.added_tokens}}
    # Among the model's own tokens, since the library would number added ones as it likes.
    pipeline = Pipeline(models.BPE({**added, **tokens}, list(_merges(tokens)), ignore_merges=True))
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(encoding.words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    pipeline.decoder = decoders.ByteLevel()
    pipeline.add_special_tokens(list(special))
    add_tokens(pipeline, path, config.added_tokens)
    return HuggingFaceTokenizer(pipeline, _completed(config, encoding))


def _read_ranks(path: Path) -> Iterator[tuple[bytes, int]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {shown(str(error))}") from None
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None and line.strip():
            raise ModelError(f"{path}: line {number} is not a token in base64 and its rank")
        if match is not None:
            yield _decoded(path, number, match[1]), int(match[2])


def _decoded(path: Path, number: int, token: bytes) -> bytes:
    try:
        return binascii.a2b_base64(token)
    except binascii.Error as error:
        raise ModelError(
            f"{path}: line {number} is not valid base64: {shown(str(error))}"
        ) from None


def _encoding_of(path: Path, ranks: Mapping[bytes, int]) -> Encoding:
    name = path.stem if path.stem in ENCODINGS else _BY_SIZE.get(len(ranks))
    return ENCODINGS[name] if name else Encoding(_CL100K_WORDS)


def _special_tokens(
    encoding: Encoding, taken: Collection[int], config: TokenizerConfig
) -> dict[str, int]:
    """The encoding's special tokens, unless the config has others in their places."""
    taken = {*taken, *(token.id for token in config.added_tokens)}
    return {token: id for token, id in encoding.special.items() if id not in taken}


def _merges(tokens: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Every pair of tokens that is a token when joined, those of the lowest rank first."""
    for token in sorted(tokens, key=tokens.__getitem__):
        for cut in range(1, len(token)):
            if token[:cut] in tokens and token[cut:] in tokens:
                yield token[:cut], token[cut:]


def _completed(config: TokenizerConfig, encoding: Encoding) -> TokenizerConfig:
    """The config, where it is silent as the encoding has it."""
    add_bos = encoding.add_bos if config.add_bos is None else config.add_bos
    named = {**encoding.named, **config.special_tokens}
    return replace(config, special_tokens=named, add_bos=add_bos)

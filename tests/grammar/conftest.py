"""A small random model and its engine, for answers that match grammars."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rosellm.roseinfer.config import EngineConfig, ModelConfig
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.grammar.vocabulary import Vocabulary, load_vocabulary
from rosellm.roseinfer.messages import Add, Logprobs, RowError
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.text.grammar_source import GrammarSource, grammar_text
from rosellm.roseinfer.text.load import load_tokenizer
from rosellm.roseinfer.text.tokenizer import Tokenizer
from tests.e2e.conftest import write_tokenizer
from tests.tiny_models import write_llama

END = 0


@dataclass
class Text:
    """One choice's answer."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    finish: str | None = None
    complete: bool = False
    error: RowError | None = None

    def read(self, tokenizer: Tokenizer) -> str:
        shown = self.tokens[:-1] if self.finish == "stop" and not self.complete else self.tokens
        return tokenizer.decode(shown, skip_special_tokens=False)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grammar") / "tiny"
    folder.mkdir()
    size = write_tokenizer(folder / "tokenizer.json")
    return write_llama(
        folder,
        vocab_size=size,
        max_position_embeddings=256,
        bos_token_id=END,
        eos_token_id=END,
        std=0.05,
    )


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(str(folder))


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return load_vocabulary(tokenizer, tokenizer.vocab_size)


@pytest.fixture(scope="session")
def core(folder: Path) -> EngineCore:
    return build_engine(EngineConfig(model=ModelConfig(model=str(folder), device="cpu")))


def add(
    id: int,
    source: GrammarSource | None,
    *,
    n: int = 1,
    prompt: Iterable[int] = (1, 2, 3),
    generated: list[list[int]] | None = None,
    **params: object,
) -> Add:
    """A request that samples, and may end with the end-of-sequence token."""
    settings = {"seed": id, "max_tokens": 60, "stop_token_ids": (END,), **params}
    return Add(
        id,
        [*prompt],
        SamplingParams(**settings),  # type: ignore[arg-type]
        n=n,
        generated=generated or [],
        grammar="" if source is None else grammar_text(source),
    )


def answers(core: EngineCore, *adds: Add) -> dict[tuple[int, int], Text]:
    """What all choices come to, by request and choice."""
    found = {(each.id, choice): Text() for each in adds for choice in range(each.n)}
    for each in adds:
        core.add(each)
    while core.has_work:
        for row in core.step().rows:
            text = found[row.id, row.choice]
            text.tokens += row.tokens
            text.logprobs += row.logprobs or []
            text.finish = row.finish or text.finish
            text.complete |= row.complete
            text.error = row.error or text.error
        core.scheduler.check()
    return found

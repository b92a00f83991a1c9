"""How far what is served lies from the same model in fp32 on the plain path, token by token.

Both see the same windows of token ids. Only one model is whole in memory at a time: of the
reference, its hidden states and its head are kept, which give its scores again bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rosellm.roseinfer.config import EngineConfig
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.engine.passage import Passage
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.messages import Progress, Ready
from rosellm.roseinfer.models.skeleton import Model
from rosellm.roseinfer.runner.model_runner import ModelRunner
from rosellm.roseinfer.step import StepPlan, Work

_ROWS = 32
"""Positions whose scores over the vocabulary are in memory at a time."""

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Comparison:
    """What came of it. Divergences are in nats a token, from the reference to the build.

    Attributes:
        tokens: positions that were compared, each with a known next token.
        max_logit_difference, mean_logit_difference: over all of the vocabulary.
        kl_mean, kl_99, kl_max: Kullback-Leibler divergence of the next token's distribution: its
            mean, what 99 % of the positions stay below, and the worst.
        agreement: share of positions at which the likeliest token is the same.
        perplexity, reference_perplexity: of the text.
    """

    tokens: int
    max_logit_difference: float
    mean_logit_difference: float
    kl_mean: float
    kl_99: float
    kl_max: float
    agreement: float
    perplexity: float
    reference_perplexity: float


@dataclass(frozen=True)
class Verified:
    """A comparison, and what the two engines said of themselves."""

    comparison: Comparison
    build: Ready
    reference: Ready


def reference_of(config: EngineConfig, model: str | None = None) -> EngineConfig:
    """The same model as it is meant to compute: in fp32, nothing quantised, in plain torch.

    Args:
        model: another one that stands for it, such as that which a quantised one was made from.
    """
    meant = replace(
        config.model,
        model=model or config.model.model,
        dtype="float32",
        quantization="none",
        head_quantization="auto",
        quantization_group=None,
        kernels="reference",
        attention="auto",
    )
    return replace(config, model=meant, cache=replace(config.cache, kv_cache_dtype="auto"))


def compare(
    build: EngineConfig,
    reference: EngineConfig,
    passage: Passage,
    on_progress: OnProgress = lambda _: None,
) -> Verified:
    """Run both over the same text.

    Raises:
        ModelError: a model cannot be loaded.
        ConfigError: it does not predict tokens, the two are not the same model, or the text is
            too short.
    """
    core = build_engine(reference, on_progress)
    meant = core.facts
    if not meant.generates:
        raise ConfigError("nothing to compare: the model gives vectors and predicts no tokens")
    windows = passage.windows(meant.max_model_len)
    expected = list(_hidden_states(core, windows, "reading with the reference", on_progress))
    head = _runner(core).model
    head.keep_head()
    del core
    core = build_engine(build, on_progress)
    if core.facts.vocab_size != meant.vocab_size:
        raise ConfigError(
            f"the reference has {meant.vocab_size} tokens in its vocabulary, the build "
            f"{core.facts.vocab_size}: they are not the same model"
        )
    found = _hidden_states(core, windows, "reading with this build", on_progress)
    pairs = _pairs(head, _runner(core).model, expected, found, windows)
    return Verified(gather(pairs), core.facts, meant)


def scores(
    config: EngineConfig, passage: Passage, on_progress: OnProgress = lambda _: None
) -> list[tuple[list[int], Tensor]]:
    """A model's own: of each window its token ids and [T, vocabulary].

    Raises:
        ModelError: the model cannot be loaded.
        ConfigError: the text is too short.
    """
    core = build_engine(config, on_progress)
    windows = passage.windows(core.facts.max_model_len)
    model = _runner(core).model
    with torch.inference_mode():
        states = _hidden_states(core, windows, "reading", on_progress)
        return [
            (window, model.logits(each).values)
            for window, each in zip(windows, states, strict=True)
        ]


def _runner(core: EngineCore) -> ModelRunner:
    assert isinstance(core.runner, ModelRunner)
    return core.runner


def _hidden_states(
    core: EngineCore, windows: Sequence[Sequence[int]], phase: str, on_progress: OnProgress
) -> Iterator[Tensor]:
    """Of each window, [T, H]. Blocks are taken behind the scheduler's back: nothing else runs."""
    pools = len(core.scheduler.cache.pools)
    size = core.scheduler.cache.block_size
    on_progress(Progress(phase))
    for window in windows:
        table = tuple(range(-(-len(window) // size)))
        work = Work(0, 0, tuple(window), (table,) * pools)
        yield _runner(core).hidden_states(StepPlan((work,)))


@dataclass(frozen=True)
class Pair:
    """Scores [R, vocabulary] of some positions by both, and the tokens [R] that came next."""

    expected: Tensor
    found: Tensor
    targets: Tensor


def _pairs(
    head: Model,
    model: Model,
    expected: Iterable[Tensor],
    found: Iterable[Tensor],
    windows: Iterable[Sequence[int]],
) -> Iterator[Pair]:
    for one, other, window in zip(expected, found, windows, strict=True):
        targets = torch.tensor(window[1:], device=one.device)
        parts = zip(
            one[:-1].split(_ROWS), other[:-1].split(_ROWS), targets.split(_ROWS), strict=True
        )
        for ours, theirs, ids in parts:
            with torch.inference_mode():
                yield Pair(head.logits(ours).values, model.logits(theirs).values, ids)


@dataclass(frozen=True)
class _Part:
    """Per position: [R] each, in fp64 but for what is counted."""

    largest: Tensor
    mean: Tensor
    divergence: Tensor
    agrees: Tensor
    loss: Tensor
    reference_loss: Tensor

    @classmethod
    def of(cls, pair: Pair) -> _Part:
        expected, found = pair.expected.double(), pair.found.double()
        difference = (expected - found).abs()
        p, q = expected.log_softmax(-1), found.log_softmax(-1)
        ids = pair.targets[:, None]
        return cls(
            largest=difference.amax(-1),
            mean=difference.mean(-1),
            divergence=(p.exp() * (p - q)).sum(-1).clamp(min=0),
            agrees=expected.argmax(-1) == found.argmax(-1),
            loss=-q.gather(1, ids)[:, 0],
            reference_loss=-p.gather(1, ids)[:, 0],
        )


def gather(pairs: Iterable[Pair]) -> Comparison:
    """What scores of all positions come to."""
    parts = [_Part.of(pair) for pair in pairs]

    def every(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    divergence = every("divergence")
    return Comparison(
        tokens=len(divergence),
        max_logit_difference=every("largest").max().item(),
        mean_logit_difference=every("mean").mean().item(),
        kl_mean=divergence.mean().item(),
        kl_99=_percentile(divergence, 0.99),
        kl_max=divergence.max().item(),
        agreement=every("agrees").double().mean().item(),
        perplexity=math.exp(every("loss").mean().item()),
        reference_perplexity=math.exp(every("reference_loss").mean().item()),
    )


def _percentile(values: Tensor, share: float) -> float:
    """The least of the values that so large a share of them does not exceed."""
    return values.sort().values[math.ceil(share * len(values)) - 1].item()

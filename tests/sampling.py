"""Rows of logits for tests of everything that samples, and an oracle that does one row at a time,
in numpy and fp64."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rosellm.roseinfer.kernels.noise import gumbel
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.step import LogitRow

VOCAB = 97


def make_logits(rows: int, vocab_size: int = VOCAB, seed: int = 0, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab_size, generator=generator) * scale


def tops_of(logits: Tensor) -> Tensor:
    """As a native head notes them: [rows, 2, blocks of 64], see kernels.h."""
    parts = [
        torch.where(part.isfinite().all(1), part.amax(1), torch.nan) for part in logits.split(32, 1)
    ]
    if len(parts) % 2:
        parts.append(parts[-1])
    return torch.stack([torch.stack(parts[half::2], dim=1) for half in (0, 1)], dim=1)


def make_row(
    *,
    position: int = 0,
    choice: int = 0,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    **params: Any,
) -> LogitRow:
    return LogitRow(
        offset=0,
        params=SamplingParams(**{"seed": 0, "max_tokens": 100, **params}),
        choice=choice,
        position=position,
        history=(*prompt, *output),
        prompt_len=len(prompt),
    )


# -- the oracle -------------------------------------------------------------------


def adjusted(logits: np.ndarray, row: LogitRow) -> np.ndarray:
    """Bias, minimum length and penalties."""
    params = row.params
    scores = logits.astype(np.float64)
    for token, bias in params.logit_bias:
        scores[token] += bias
    if row.position < params.min_tokens:
        scores[list(params.stop_token_ids)] = -np.inf
    output = list(row.history[row.prompt_len :])
    for token in set(row.history):
        factor = params.repetition_penalty
        scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
    for token in set(output):
        scores[token] -= params.presence_penalty + params.frequency_penalty * output.count(token)
    return scores


def kept(scores: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Which tokens the filters leave, and with what probability (unnormalised)."""
    probabilities = np.exp((scores - scores.max()) / params.temperature)
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    alive = [t for t in order if probabilities[t] >= params.min_p * probabilities.max()]
    if params.top_k:
        alive = alive[: params.top_k]
    total = sum(probabilities[t] for t in alive)
    nucleus, mass = [], 0.0
    for token in alive:
        nucleus.append(token)
        mass += probabilities[token]
        if mass >= params.top_p * total and params.top_p < 1:
            break
    mask = np.zeros(len(scores), dtype=bool)
    mask[nucleus] = True
    return mask


def oracle(logits: np.ndarray, row: LogitRow) -> int:
    """The token, given the very noise that the sampler uses."""
    scores = adjusted(logits, row)
    if row.params.temperature == 0:
        return int(scores.argmax())
    key = (torch.tensor([part]) for part in (row.params.seed, row.choice, row.position))
    noise = gumbel(*key, len(scores))[0].double().numpy()
    noisy = np.where(kept(scores, row.params), scores / row.params.temperature + noise, -np.inf)
    return int(noisy.argmax())


def random_params(rng: random.Random) -> dict[str, Any]:
    """Some of the parameters, set; thresholds that no sum of probabilities hits exactly."""
    params: dict[str, Any] = {"seed": rng.getrandbits(63), "temperature": rng.uniform(0.1, 3)}
    choices: list[tuple[str, Any]] = [
        ("temperature", 0.0),
        ("top_k", rng.randint(1, VOCAB + 5)),
        ("top_p", rng.uniform(0.05, 0.999)),
        ("min_p", rng.uniform(0.001, 0.5)),
        ("presence_penalty", rng.uniform(-2, 2)),
        ("frequency_penalty", rng.uniform(-2, 2)),
        ("repetition_penalty", rng.uniform(0.5, 2)),
        ("logit_bias", tuple((t, rng.uniform(-8, 8)) for t in rng.sample(range(VOCAB), 4))),
        ("min_tokens", rng.randint(0, 10)),
    ]
    for name, value in choices:
        if rng.random() < 0.4:
            params[name] = value
    params["stop_token_ids"] = tuple(rng.sample(range(VOCAB), 5))
    params["logprobs"] = rng.choice([None, 0, 3])
    return params


def random_rows(count: int, seed: int) -> list[LogitRow]:
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        output = rng.choices(range(VOCAB // 4), k=rng.randint(0, 12))
        prompt = rng.choices(range(VOCAB // 3), k=rng.randint(1, 12))
        rows.append(
            make_row(
                position=len(output),
                choice=rng.randint(0, 3),
                prompt=prompt,
                output=output,
                **random_params(rng),
            )
        )
    return rows


FILTERS = [
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": VOCAB},
    {"top_k": VOCAB + 9},
    {"top_p": 0.03},
    {"top_p": 0.5},
    {"top_p": 0.99},
    {"min_p": 0.3},
    {"min_p": 0.001},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.7},
    {"top_k": 30, "min_p": 0.02, "top_p": 0.9},
    {"min_p": 0.01, "top_p": 0.6},
    {"temperature": 0.3, "top_p": 0.9},
    {"temperature": 2.5, "top_p": 0.9, "min_p": 0.1},
]


# -- distribution ---------------------------------------------------------------------


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> tuple[float, int]:
    """Statistic and degrees of freedom; tokens that are expected less than 8 times are pooled."""
    expected = probabilities * counts.sum()
    rare = expected < 8
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 1e-9:
        assert observed[-1] == 0, "a token without probability was chosen"
        observed, expected = observed[:-1], expected[:-1]
    return float(((observed - expected) ** 2 / expected).sum()), len(expected) - 1

"""The sampler against an oracle that does one row at a time, in numpy and fp64."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.runner import sampler
from rosellm.roseinfer.runner.noise import gumbel
from rosellm.roseinfer.step import LogitRow, Sample

VOCAB = 97


def make_logits(rows: int, vocab_size: int = VOCAB, seed: int = 0, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab_size, generator=generator) * scale


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


def run(logits: Tensor, rows: Sequence[LogitRow]) -> list[Sample]:
    return sampler.sample(logits.clone(), rows).to_samples(rows)


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


# -- tokens -----------------------------------------------------------------------


@pytest.mark.parametrize("candidates", [4, 1024])
@pytest.mark.parametrize("seed", range(4))
def test_any_mix_of_parameters(seed: int, candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of 150 rows, each with parameters of its own, equals the oracle row by row."""
    monkeypatch.setattr(sampler, "CANDIDATES", candidates)
    rows, logits = random_rows(150, seed), make_logits(150, seed=seed)
    found = [sample.token for sample in run(logits, rows)]
    assert found == [oracle(own, row) for own, row in zip(logits.numpy(), rows, strict=True)]


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


def support(logits: Tensor, row: LogitRow, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens that can be chosen at all: each is given, in a row of its own, noise that wins."""
    size = logits.shape[-1]
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "gumbel", lambda *_: torch.eye(size) * 1e9)
        found = run(logits.expand(size, size), [row] * size)
    return [token for token, sample in enumerate(found) if sample.token == token]


@pytest.mark.parametrize("candidates", [1, 7, 50, 1024])
@pytest.mark.parametrize("params", FILTERS, ids=str)
def test_filters_keep_exactly_what_they_should(
    params: dict[str, Any], candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "CANDIDATES", candidates)
    logits, row = make_logits(1)[0], make_row(**params)
    wanted = np.flatnonzero(kept(logits.double().numpy(), row.params)).tolist()
    assert support(logits, row, monkeypatch) == wanted


def test_candidates_and_full_sort_agree_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nearly equal thresholds and a nearly flat distribution."""
    logits = make_logits(60, vocab_size=700, scale=0.05)
    rows = [make_row(temperature=1.0, seed=i, top_p=0.01 * i + 0.3, logprobs=0) for i in range(60)]
    answers = []
    for candidates in (16, 100, 300, 1024):
        monkeypatch.setattr(sampler, "CANDIDATES", candidates)
        thresholds = sampler._threshold(logits.softmax(-1), rows)
        answers.append((thresholds.flatten().tolist(), run(logits, rows)))
    assert all(answer == answers[0] for answer in answers)


def test_ties_are_kept_together(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0, 0.0])
    for params in ({"top_k": 2}, {"top_p": 0.6}, {"top_k": 3, "top_p": 0.8}):
        assert support(logits, make_row(**params), monkeypatch) == [0, 1, 2, 3]


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[1, [5, 40, 96]] = 1.0
    assert [s.token for s in run(logits, [make_row(temperature=0.0)] * 2)] == [0, 5]


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 1e-39, 1e-45, 1e-60])
@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}], ids=str)
def test_the_smallest_temperatures_are_greedy(temperature: float, params: dict[str, Any]) -> None:
    logits = make_logits(8)
    rows = [make_row(temperature=temperature, seed=i, **params) for i in range(8)]
    assert [s.token for s in run(logits, rows)] == logits.argmax(-1).tolist()


def test_a_broken_row_harms_no_other() -> None:
    """NaN or infinities in a row's logits do not stop the batch or change another row."""
    rows = random_rows(40, seed=9)
    logits = make_logits(40)
    wanted = run(logits, rows)
    broken = logits.clone()
    broken[::4] = torch.nan
    broken[1::4] = torch.inf
    broken[2::4, 3:] = -torch.inf
    found = run(broken, rows)
    assert found[3::4] == wanted[3::4]
    assert all(0 <= sample.token < VOCAB for sample in found)


# -- each parameter by itself -----------------------------------------------------


def test_bias_is_added_once_for_each_entry() -> None:
    logits = torch.zeros(1, VOCAB)
    row = make_row(temperature=0.0, logit_bias=((3, 1.0), (9, 2.0), (3, 1.5)))
    assert run(logits, [row])[0].token == 3


@pytest.mark.parametrize(("position", "token"), [(0, 1), (3, 1), (4, 0), (9, 0)])
def test_stop_tokens_wait_for_min_tokens(position: int, token: int) -> None:
    logits = torch.arange(VOCAB, 0, -1.0)[None]
    row = make_row(temperature=0.0, position=position, min_tokens=4, stop_token_ids=(0, 7))
    assert run(logits, [row])[0].token == token


def test_penalties_tell_prompt_from_output() -> None:
    """Presence and frequency look at the output, repetition at everything."""
    logits = torch.full((1, VOCAB), -5.0)
    logits[0, [10, 20, 30]] = torch.tensor([3.0, 2.9, 2.8])

    def choose(**params: Any) -> int:
        row = make_row(temperature=0.0, prompt=[10], output=[20, 20], **params)
        return run(logits, [row])[0].token

    assert choose() == 10
    assert choose(presence_penalty=2.0, frequency_penalty=2.0) == 10
    assert choose(repetition_penalty=1.1) == 30
    assert choose(frequency_penalty=-0.1) == 20  # twice -0.1
    assert choose(presence_penalty=-0.1) == 10  # once, and not enough


# -- log-probabilities ------------------------------------------------------------


def test_logprobs_are_the_models_own() -> None:
    """Whatever the row's parameters did to the choice."""
    rows, logits = random_rows(60, seed=3), make_logits(60, seed=3)
    wanted = logits.double().log_softmax(-1)
    for sample, row, own in zip(run(logits, rows), rows, wanted, strict=True):
        if row.params.logprobs is None:
            assert sample.logprobs is None
            continue
        assert sample.logprobs is not None
        assert sample.logprobs.chosen == pytest.approx(own[sample.token].item(), abs=1e-5)
        ids = torch.argsort(own, descending=True)[: row.params.logprobs]
        assert sample.logprobs.top_ids == ids.tolist()
        assert sample.logprobs.top == pytest.approx(own[ids].tolist(), abs=1e-5)


def test_equal_logprobs_come_in_order_of_id() -> None:
    """However many another row asks for: bf16 models have many equal logits."""
    logits = make_logits(30, vocab_size=3000).bfloat16().float()
    logits[0] = 0.0
    logits[1, ::2] = -0.0
    counts = [1, 2, 3, 5, 8, 20, 50, 3000, 4000]
    rows = [make_row(temperature=0.0, logprobs=counts[i % len(counts)]) for i in range(30)]
    for index, (sample, row) in enumerate(zip(run(logits, rows), rows, strict=True)):
        values = logits[index].tolist()
        order = sorted(range(3000), key=lambda token, values=values: (-values[token], token))
        assert sample.logprobs is not None
        assert sample.logprobs.top_ids == order[: row.params.logprobs]
        assert sample.token == order[0]


# -- distribution -----------------------------------------------------------------


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


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.8, "top_k": 12},
        {"top_p": 0.8},
        {"min_p": 0.05, "top_p": 0.95},
    ],
    ids=str,
)
@pytest.mark.parametrize("key", ["position", "seed", "choice"])
def test_draws_follow_the_distribution(key: str, params: dict[str, Any]) -> None:
    """20 000 draws over one part of the noise's key."""
    draws = 20_000
    logits = make_logits(1, vocab_size=50, scale=1.5)
    if key == "seed":
        rows = [make_row(seed=i, **params) for i in range(draws)]
    else:
        rows = [make_row(seed=5, **{key: i}, **params) for i in range(draws)]
    tokens = [sample.token for sample in run(logits.expand(draws, 50), rows)]
    scores = logits[0].double().numpy()
    mask = kept(scores, rows[0].params)
    probabilities = np.exp(scores / rows[0].params.temperature) * mask
    probabilities /= probabilities.sum()
    statistic, freedom = chi_square(np.bincount(tokens, minlength=50), probabilities)
    # Mean plus four standard deviations of the chi-square distribution.
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


# -- batches ----------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [VOCAB, 33_001, 128_256])
@pytest.mark.parametrize(
    "op",
    [
        lambda x: x.softmax(-1),
        lambda x: x.log_softmax(-1),
        lambda x: x.softmax(-1).topk(64).values,
        lambda x: x.softmax(-1).cumsum(-1),
        lambda x: x - x.amax(-1, keepdim=True),
    ],
    ids=["softmax", "log_softmax", "topk", "cumsum", "amax"],
)
def test_the_torch_functions_in_use_go_row_by_row(
    op: Callable[[Tensor], Tensor], vocab_size: int
) -> None:
    """Not all do: a single row of more than 32768 is summed on several threads."""
    logits = make_logits(8, vocab_size)
    together = op(logits)
    for row in range(8):
        assert torch.equal(op(logits[row : row + 1])[0], together[row])


@pytest.mark.parametrize("vocab_size", [VOCAB, 512, 33_001])
def test_a_row_does_not_depend_on_the_batch(vocab_size: int) -> None:
    """Tokens and log-probabilities in bits; 33 001 is beyond what torch sums on one thread."""
    count = 12 if vocab_size > 1000 else 60
    rows, logits = random_rows(count, seed=1), make_logits(count, vocab_size).bfloat16().float()
    together = run(logits, rows)
    for begin, end in [*((i, i + 1) for i in range(count)), (0, 5), (3, 9), (count - 7, count)]:
        assert run(logits[begin:end], rows[begin:end]) == together[begin:end]

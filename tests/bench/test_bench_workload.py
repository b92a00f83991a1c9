"""Lengths, traces, arrival times, and prompts made from them."""

from __future__ import annotations

import argparse
from itertools import pairwise

import pytest

from rosellm.bench.lengths import Lengths, id_range, lengths
from rosellm.bench.prompts import PROBES, TokenIds, Words, probe_text
from rosellm.bench.traces import TraceRow, read_trace
from rosellm.bench.workload import poisson, random_jobs, trace_jobs, untimed
from rosellm.roseinfer.errors import ConfigError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:48.1805900,879,55
"""
MOONCAKE = """{"timestamp": 0, "input_length": 1100, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 1500, "input_length": 600, "output_length": 4, "hash_ids": [0, 3]}
"""


def write(path, text):
    path.write_text(text)
    return path


def test_azure_rows_are_sorted_and_begin_at_zero(tmp_path):
    rows = read_trace(write(tmp_path / "azure.csv", AZURE), limit=10)
    assert [row.at for row in rows] == pytest.approx([0.0, 1.5, 4.314579], abs=1e-5)
    assert [(row.input_tokens, row.output_tokens) for row in rows] == [
        (374, 44),
        (879, 55),
        (396, 109),
    ]


def test_mooncake_rows_tell_their_blocks(tmp_path):
    rows = read_trace(write(tmp_path / "trace.jsonl", MOONCAKE), limit=10)
    assert rows == [TraceRow(0.0, 1100, 500, (0, 1, 2)), TraceRow(1.5, 600, 4, (0, 3))]


def test_a_trace_is_read_no_further_than_asked(tmp_path):
    broken_later = write(tmp_path / "trace.jsonl", MOONCAKE + "no json\n")
    assert len(read_trace(broken_later, limit=2)) == 2


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("trace.txt", "", "a .csv like Azure's"),
        ("trace.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        ("trace.csv", "a,b\n1,2\n", "request 1 is not readable"),
        ("trace.csv", f"{AZURE}2023-11-16 18:15:46.7,0,4\n", "request 4 .* below 1"),
        ("trace.jsonl", f"{MOONCAKE}no json\n", "request 3 is not readable"),
        ("trace.jsonl", MOONCAKE.replace("[0, 3]", "[0]"), "request 2 .*1 hash ids"),
    ],
)
def test_what_is_wrong_with_a_trace_is_said(tmp_path, name, text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read_trace(write(tmp_path / name, text), limit=10)


def test_a_missing_trace_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.csv"):
        read_trace(tmp_path / "gone.csv", limit=1)


def test_real_traces_are_readable(shared_data):
    folder = shared_data / "traces"
    if not folder.is_dir():
        pytest.skip("no traces among the shared data")
    azure = read_trace(folder / "azure-llm-2023" / "AzureLLMInferenceTrace_code.csv", 10_000)
    assert len(azure) == 8819
    mooncake = read_trace(folder / "mooncake-fast25" / "conversation_trace.jsonl", 500)
    assert mooncake[0].input_tokens == 6758
    assert len(trace_jobs(mooncake, seed=0)) == 500


def test_lengths():
    assert (lengths("12"), lengths("3:9")) == (Lengths(12, 12), Lengths(3, 9))
    assert (str(Lengths(4, 4)), str(Lengths(3, 9)), Lengths(3, 9).middle) == ("4", "3:9", 6)
    assert id_range("0:9") == Lengths(0, 9)


@pytest.mark.parametrize("text", ["", "x", "0", "9:3", "1:", "1:2:3", "-1"])
def test_what_is_no_length_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        lengths(text)


def test_random_jobs_keep_their_bounds_and_their_seed():
    def make(seed):
        return random_jobs(200, Lengths(5, 9), Lengths(1, 3), seed)

    assert {job.input_tokens for job in make(0)} == {5, 6, 7, 8, 9}
    assert {job.output_tokens for job in make(0)} == {1, 2, 3}
    assert make(0) == make(0) != make(1)


def test_poisson_arrivals_have_the_rate_asked_for():
    jobs = poisson(random_jobs(4000, Lengths(1, 1), Lengths(1, 1), 0), rate=50, seed=0)
    arrivals = [job.arrival for job in jobs]
    assert arrivals[0] == 0
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] == pytest.approx(4000 / 50, rel=0.1)
    gaps = [after - before for before, after in pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.1)  # as of an exponential distribution
    assert all(job.arrival is None for job in untimed(jobs))


def test_token_ids_are_as_many_as_asked_and_in_range():
    [job, other] = random_jobs(2, Lengths(300, 300), Lengths(1, 1), 0)
    ids = TokenIds(Lengths(10, 20))(job)
    assert len(ids) == 300
    assert set(ids) == set(range(10, 21))
    assert ids != TokenIds(Lengths(10, 20))(other)


def test_a_traces_common_prefix_is_common_in_the_prompts():
    rows = [TraceRow(0.0, 1100, 1, (0, 1, 2)), TraceRow(1.0, 600, 1, (0, 3))]
    first, second = (TokenIds(Lengths(0, 99))(job) for job in trace_jobs(rows, seed=0))
    assert (len(first), len(second)) == (1100, 600)
    assert first[:512] == second[:512]
    assert first[512:600] != second[512:600]


@pytest.mark.parametrize(("per_word", "overhead"), [(1, 0), (1.3, 12), (5, 3)])
def test_words_come_to_the_tokens_asked_for(per_word, overhead):
    counts = [overhead + per_word * len(probe_text(piece).split()) for piece in PROBES]
    words = Words.calibrated(counts)
    for job in random_jobs(20, Lengths(60, 2000), Lengths(1, 1), 0):
        tokens = overhead + per_word * len(words(job).split())
        assert abs(tokens - job.input_tokens) <= per_word


def test_words_share_prefixes_too():
    rows = [TraceRow(0.0, 1100, 1, (0, 1, 2)), TraceRow(1.0, 600, 1, (0, 3))]
    first, second = (Words(1.0, 10.0)(job).split() for job in trace_jobs(rows, seed=0))
    assert first[:512] == second[:512]
    assert first[512:590] != second[512:590]

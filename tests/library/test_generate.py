"""Texts from the library: the pipeline's own, in whatever number and form they are asked for."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from rosellm import LLM, SamplingParams
from rosellm.roseinfer.errors import ConfigError, EngineDeadError, RequestError
from tests.library.conftest import CONTEXT, idle

HELLO = [{"role": "user", "content": "hello"}]
SAMPLED = SamplingParams(max_tokens=12, seed=7, logprobs=2)
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


def test_one_prompt_gives_one_result_and_a_list_a_list(llm: LLM) -> None:
    one = llm.generate("Once upon a time", SAMPLED)
    assert llm.generate(["Once upon a time"], SAMPLED) == [one]
    assert llm.generate([]) == []
    assert len(one.token_ids) <= 12
    assert one.text == one.choices[0].text


def test_many_together_are_each_alone_in_bits(llm: LLM) -> None:
    prompts = [f"{'word ' * (i % 7)}number {i}" for i in range(40)]  # more than the window holds
    params = [
        SamplingParams(max_tokens=1 + i % 9, seed=i, temperature=i % 2, logprobs=1)
        for i in range(40)
    ]
    together = llm.generate(prompts, params)
    alone = [llm.generate(*pair) for pair in zip(prompts, params, strict=True)]
    assert [each.choices for each in together] == [each.choices for each in alone]
    assert [each.prompt_token_ids for each in together] == [each.prompt_token_ids for each in alone]


def test_ids_and_their_text_are_one_prompt(llm: LLM) -> None:
    text = llm.generate("Once upon a time", SAMPLED)
    ids = llm.generate(list(text.prompt_token_ids), SAMPLED)
    assert ids.choices == text.choices


def test_a_stream_is_what_generate_returns(llm: LLM) -> None:
    with llm.stream("Once upon a time", SAMPLED) as stream:
        assert stream.completion is None
        pieces = list(stream)
    whole = llm.generate("Once upon a time", SAMPLED)
    assert len(pieces) > 1
    assert "".join(pieces) == whole.text
    assert stream.completion is not None
    assert stream.completion.choices == whole.choices
    assert list(stream) == []


def test_a_streamed_conversation_is_what_chat_returns(llm: LLM) -> None:
    assert "".join(llm.stream(HELLO, SAMPLED)) == llm.chat(HELLO, SAMPLED).text


def test_conversations_go_through_the_template(llm: LLM) -> None:
    one, two = llm.chat([HELLO, [*HELLO, {"role": "assistant", "content": "x"}, *HELLO]], GREEDY)
    assert one.choices == llm.chat(HELLO, GREEDY).choices
    assert "hello\nAssistant:" in llm.service.prompts.tokenizer.decode(one.prompt_token_ids)
    assert len(two.prompt_token_ids) > len(one.prompt_token_ids)


def test_an_answer_may_fill_the_context_by_default(llm: LLM) -> None:
    prompt = [5] * (CONTEXT - 20)
    chat = llm.chat(HELLO, SamplingParams(temperature=0, ignore_eos=True, stop=["\n"]))
    assert chat.finish_reason == "stop" or len(chat.token_ids) > 100
    assert len(llm.generate(prompt, SamplingParams(ignore_eos=True)).token_ids) == 16


def test_choices_are_their_own_samples(llm: LLM) -> None:
    many = llm.generate("Once", SamplingParams(n=4, seed=3, max_tokens=8))
    assert len(many.choices) == 4
    assert len({choice.text for choice in many.choices}) > 1
    assert many.choices[0] == llm.generate("Once", SamplingParams(seed=3, max_tokens=8)).choices[0]


def test_more_choices_than_the_window_holds(llm: LLM) -> None:
    params = SamplingParams(n=100, seed=3, max_tokens=2)
    first, second = llm.generate(["Once", "upon"], params)
    assert len(first.choices) == len(second.choices) == 100


def test_a_stop_string_ends_an_answer(llm: LLM) -> None:
    whole = llm.generate("Once upon a time", GREEDY).text
    stop = whole[4:6]
    cut = llm.generate("Once upon a time", GREEDY.model_copy(update={"stop": [stop]}))
    assert cut.finish_reason == "stop"
    assert cut.text == whole[: whole.index(stop)]


def test_a_stop_token_is_the_last_id_and_no_text(llm: LLM) -> None:
    whole = llm.generate("Once upon a time", GREEDY)
    token = whole.token_ids[3]
    cut = llm.generate("Once upon a time", GREEDY.model_copy(update={"stop_token_ids": [token]}))
    end = whole.token_ids.index(token) + 1
    assert (cut.finish_reason, cut.token_ids) == ("stop", whole.token_ids[:end])
    assert whole.text.startswith(cut.text)


def test_logprobs_are_told_for_the_text(llm: LLM) -> None:
    answer = llm.generate("Once", SamplingParams(max_tokens=6, temperature=0, logprobs=3))
    assert answer.logprobs is not None
    assert b"".join(each.bytes for each in answer.logprobs).decode(errors="replace") == answer.text
    for each in answer.logprobs:
        assert len(each.top) == 3
        assert (each.id, each.logprob) == (each.top[0].id, each.top[0].logprob)
    assert llm.generate("Once").logprobs is None


def test_a_bias_may_name_tokens_by_number(llm: LLM) -> None:
    answer = llm.generate("Once", SamplingParams(max_tokens=3, logit_bias={7: 100}))
    assert answer.token_ids == (7, 7, 7)


def test_equal_prefixes_are_found_in_the_cache(llm: LLM) -> None:
    prompt = [9, 8, 7, 6] * 20
    llm.generate(prompt, GREEDY)
    assert llm.generate(prompt, GREEDY).cached_tokens >= 64


def test_calls_may_come_from_many_threads(llm: LLM) -> None:
    expected = llm.generate("Once upon a time", SAMPLED).choices
    found: list[Any] = []

    def ask() -> None:
        found.append(llm.generate("Once upon a time", SAMPLED).choices)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


# -- an early end ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "with", "forget"])
def test_a_stream_that_is_left_frees_its_blocks(llm: LLM, how: str) -> None:
    stream = llm.stream("Once upon a time", SamplingParams(max_tokens=400, ignore_eos=True))
    assert next(stream)
    if how == "close":
        stream.close()
        stream.close()
        assert list(stream) == []
    elif how == "with":
        with stream:
            next(stream)
    del stream
    assert idle(llm).blocks_used == 0


def test_all_blocks_are_free_at_the_end(llm: LLM) -> None:
    llm.generate(["a", "b", "c"] * 10, SamplingParams(max_tokens=5, n=2))
    stats = idle(llm)
    assert stats.blocks_free + stats.blocks_cached == stats.blocks_total


# -- what is refused ---------------------------------------------------------------------------


def test_a_prompt_that_does_not_fit_is_named_before_anything_is_generated(llm: LLM) -> None:
    steps = idle(llm).steps
    with pytest.raises(RequestError, match=f"prompt 2: the context holds {CONTEXT} tokens"):
        llm.generate(["a", "b", [5] * CONTEXT, "d"])
    assert idle(llm).steps == steps
    with pytest.raises(RequestError, match=r"^the context holds"):
        llm.generate([5] * CONTEXT)


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({"temprature": 1}, 'unknown parameter: "temprature"; did you mean "temperature"'),
        ({"temperature": 2.5}, "temperature: must be less than or equal to 2, not 2.5"),
        ({"top_p": "high"}, "top_p: must be a valid number"),
        ({"max_tokens": -1}, "max_tokens: must be greater than or equal to 0"),
        ({"logprobs": 21}, "logprobs: must be less than or equal to 20"),
        ({"stop": ["a", ""]}, r"stop\[1\]: "),
        ({"logit_bias": {3: 200}}, "less than or equal to 100"),
    ],
)
def test_a_wrong_parameter_is_one_line(params: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint) as caught:
        SamplingParams(**params)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "params", "complaint"),
    [
        (5, None, "not 5"),
        ([1, "a"], None, "a text or a list of token ids"),
        (["a", 5], None, "prompt 1: "),
        ([70000], None, "outside the vocabulary"),
        (["a", "b"], [GREEDY], "1 params for 2 prompts"),
        ("a", {"temperature": 0}, "params must be SamplingParams"),
        (["a"], [None], "params must be SamplingParams"),
        ("a", SamplingParams(max_tokens=CONTEXT), "the context holds"),
        ("a", SamplingParams(logit_bias={70000: 1}), "not a token id"),
    ],
)
def test_a_wrong_call_is_one_line(llm: LLM, prompts: Any, params: Any, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint) as caught:
        llm.generate(prompts, params)
    assert "\n" not in str(caught.value)


def test_a_wrong_conversation_is_one_line(llm: LLM) -> None:
    with pytest.raises(RequestError, match=r"messages\[0\].role: must be"):
        llm.chat([{"role": "wizard", "content": "hello"}])
    with pytest.raises(RequestError, match="prompt 1: messages"):
        llm.chat([HELLO, [{"role": "user"}]])


def test_a_stream_has_one_choice(llm: LLM) -> None:
    with pytest.raises(RequestError, match="n must be 1, not 2"):
        llm.stream("a", SamplingParams(n=2))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            {"max_model_length": 5},
            "unknown setting 'max_model_length'; did you mean 'max_model_len'",
        ),
        ({"xyz": 5}, "unknown setting 'xyz'; there are"),
        ({"dtype": "fp8"}, "dtype must be one of auto, float32"),
        ({"max_num_seqs": 2.5}, "max_num_seqs must be an integer, not 2.5"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, not 0"),
        ({"temperature": 3}, "temperature must be at least 0 and at most 2, not 3"),
        ({"max_model_len": 10_000}, "max.model.len"),
        ({"tokenizer": "./nowhere"}, "tokenizer= './nowhere'"),
    ],
)
def test_a_wrong_setting_is_one_line(
    folder: Path, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        LLM(folder, device="cpu", **settings)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        LLM(tmp_path / "nothing")
    (tmp_path / "some.pt").touch()
    with pytest.raises(ConfigError, match="pass tokenizer="):
        LLM(tmp_path / "some.pt")


def test_settings_are_defaults_of_requests(folder: Path) -> None:
    with LLM(folder, device="cpu", temperature=0, max_model_len=64) as llm:
        assert llm.service.ready.max_model_len == 64
        first, second = llm.generate(["Once upon"] * 2, SamplingParams(max_tokens=8))
        assert first.choices == second.choices
    with pytest.raises(EngineDeadError, match="this LLM has been closed"):
        llm.generate("Once")
    llm.close()

"""Values that cannot be: each is refused by its name, in time, and nobody else notices."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import Server
from tests.faults.conftest import post, refused
from tests.faults.neighbours import CLIENT, undisturbed

COMPLETIONS, CHAT, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
MESSAGES: Any = [{"role": "user", "content": "Hi"}]
ASK: dict[str, Any] = {
    COMPLETIONS: {"model": "tiny-llama", "prompt": "Once", "max_tokens": 2},
    CHAT: {"model": "tiny-llama", "messages": MESSAGES, "max_tokens": 2},
}
VOCABULARY = 400
SOON_S = 16.0  # a grammar's limit of 5 s in the server and as long in the engine, and some room


@pytest.fixture(autouse=True)
def _undisturbed(guarded: Server) -> Iterator[None]:
    with undisturbed(guarded):
        yield


def refuse(server: Server, param: str, *values: Any, paths: Any = (COMPLETIONS, CHAT)) -> None:
    """Every value of the field is a 400 that names it."""
    for path in paths:
        for value in values:
            message = refused(post(server, path, {**ASK[path], param: value}), 400)
            assert param in message or "context" in message, message


def test_unknown_model(guarded: Server) -> None:
    for path, body in ASK.items():
        for model in ("gpt-4", "", "../tiny-llama", "tiny-llama ", "x" * 100_000, "é\n"):
            refused(post(guarded, path, {**body, "model": model}), 404, "model")
        for model in (None, 5, ["tiny-llama"], {}):
            refused(post(guarded, path, {**body, "model": model}), 400, "model")
    refused(CLIENT.get(f"{guarded.url}/v1/models/gpt-4"), 404)


def test_empty_prompt_or_messages(guarded: Server) -> None:
    refuse(guarded, "messages", [], None, "", {}, [{}], [[]], [None], paths=[CHAT])
    refuse(guarded, "prompt", [], [[]], [[1], []], {}, 5, True, paths=[COMPLETIONS])
    for empty in ("", [""], ["", "a"]):  # the start of a text
        answer = post(guarded, COMPLETIONS, {**ASK[COMPLETIONS], "prompt": empty})
        assert answer.status_code == 200
    refused(post(guarded, EMBEDDINGS, {"model": "tiny-llama", "input": ""}), 400, "input")
    refused(post(guarded, EMBEDDINGS, {"model": "tiny-llama", "input": []}), 400, "input")
    refused(post(guarded, "/tokenize", {"messages": []}), 400, "messages")


@pytest.mark.alone
def test_prompt_over_the_context(guarded: Server) -> None:
    """By one token, and by so much that counting them would take long."""
    ids = [5] * 512
    for prompt in (ids, [[5], ids], "ab " * 600, "a" * 1_000_000, ["a", "b" * 1_000_000]):
        began = time.monotonic()
        answer = post(guarded, COMPLETIONS, {**ASK[COMPLETIONS], "prompt": prompt})
        assert "512" in refused(answer)
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert time.monotonic() - began < 2
    long = [{"role": "user", "content": "a" * 1_000_000}]
    refused(post(guarded, CHAT, {**ASK[CHAT], "messages": long}), 400, "messages")


@pytest.mark.alone
def test_prompt_of_100_mb(guarded: Server) -> None:
    """Not even read to its end."""

    def endless() -> Iterator[bytes]:
        yield b'{"model": "tiny-llama", "prompt": "'
        for _ in range(100):
            yield b"a" * (1 << 20)

    began = time.monotonic()
    answer = CLIENT.post(f"{guarded.url}{COMPLETIONS}", content=endless())
    refused(answer, 413)
    assert time.monotonic() - began < 5


def test_prompt_of_1_mb(guarded: Server) -> None:
    """Tokenised whole, where that is what is asked for, and refused where it does not fit."""
    text = "Once upon a time. " * (1_000_000 // 18)
    answer = post(guarded, "/tokenize", {"prompt": text})
    assert answer.status_code == 200
    assert answer.json()["count"] > 50_000
    refused(post(guarded, COMPLETIONS, {**ASK[COMPLETIONS], "prompt": text}), 400, "prompt")


def test_what_is_long_beside_the_messages(guarded: Server) -> None:
    """Whatever else a template may show: it is not tokenised on the event loop either."""
    long = "Once upon a time. " * 50_000
    function = {"name": "f", "arguments": json.dumps({"x": long})}
    said = {
        "role": "assistant",
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }
    for more in (
        {"messages": [*MESSAGES, said]},
        {"chat_template_kwargs": {"x": long}},
        {"tools": [{"type": "function", "function": {"name": "f", "description": long}}]},
        {"messages": [{**MESSAGES[0], "name": long}]},
        {"prediction": {"type": "content", "content": long}},
    ):
        assert post(guarded, CHAT, {**ASK[CHAT], **more}).status_code in (200, 400)


def test_number_of_choices(guarded: Server) -> None:
    refuse(guarded, "n", 10**9, 0, -1, 129, 2**70, 1.5, "2", True)
    refuse(guarded, "best_of", 10**9, -1, 21, paths=[COMPLETIONS])
    wide = {**ASK[COMPLETIONS], "prompt": ["a"] * 1000, "n": 128}
    assert "answers" in refused(post(guarded, COMPLETIONS, wide))
    wider = {**ASK[COMPLETIONS], "prompt": ["a"] * 100_000}
    assert "answers" in refused(post(guarded, COMPLETIONS, wider))
    widest = {**ASK[COMPLETIONS], "prompt": ["a"] * 200_000}
    assert "texts" in refused(post(guarded, COMPLETIONS, widest))


def test_max_tokens(guarded: Server) -> None:
    refuse(guarded, "max_tokens", -1, -(10**9), 10**6, 2**62, 2**63, 10**30, 1.5, "5", True)
    refuse(guarded, "max_completion_tokens", -1, 10**9, 2**63, paths=[CHAT])
    refuse(guarded, "min_tokens", -1, 3, 2**63)
    for path, body in ASK.items():
        answer = post(guarded, path, {**body, "max_tokens": 0})
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 0
    refused(post(guarded, "/generate", {"prompt": "a", "max_new_tokens": 10**9}), 400)


def test_sampling_values_out_of_range(guarded: Server) -> None:
    huge = 10**400
    refuse(guarded, "temperature", -0.1, 2.1, 1e308, huge, "1", True, [], {})
    refuse(guarded, "top_p", -0.1, 1.1, huge, "1", False)
    refuse(guarded, "top_k", -2, 0.5, "1", True)
    refuse(guarded, "min_p", -0.1, 1.1, huge)
    refuse(guarded, "presence_penalty", -2.1, 2.1, huge)
    refuse(guarded, "frequency_penalty", -2.1, 2.1, huge)
    refuse(guarded, "repetition_penalty", 0, -1, huge)
    refuse(guarded, "seed", 2**63, -(2**63) - 1, 0.5, huge)


def test_sampling_values_at_their_limits(guarded: Server) -> None:
    """Where a number is still allowed, the answer is one."""
    tiny = 5e-324
    for path, body in ASK.items():
        for field, values in {
            "temperature": [0, tiny, 1e-300, 1e-30, 2, 2.0],
            "top_p": [0, tiny, 1],
            "top_k": [-1, 0, 1, 2**31, 2**80],
            "min_p": [0, tiny, 1],
            "presence_penalty": [-2, 2],
            "frequency_penalty": [-2, 2],
            "repetition_penalty": [tiny, 1e-300, 1e-30, 1e30, 1e300],
            "seed": [-(2**63), 2**63 - 1, 0],
            "logit_bias": [{"0": -100, "399": 100}],
            "priority": [-(2**31), 2**31 - 1],
        }.items():
            for value in values:
                answer = post(guarded, path, {**body, "seed": 1, field: value})
                assert answer.status_code == 200, (field, value, answer.text)
    everything = {"repetition_penalty": 1e300, "temperature": tiny, "top_p": tiny, "min_p": 1}
    answer = post(guarded, COMPLETIONS, {**ASK[COMPLETIONS], **everything, "logprobs": 5})
    assert answer.status_code == 200


def test_token_ids_outside_the_vocabulary(guarded: Server) -> None:
    outside = VOCABULARY + 1000
    for key in (str(outside), "-1", "1e2", "01", " 5", "x", "", "9" * 5000, "٣"):
        refuse(guarded, "logit_bias", {key: 1})
    refuse(guarded, "logit_bias", {"5": 101}, {"5": "x"}, {"5": None}, [5], 5)
    refuse(guarded, "stop_token_ids", [outside], [-1], [2**31], [2**70], ["5"], [5.0], 5)
    for path, body, field in (
        (COMPLETIONS, ASK[COMPLETIONS], "prompt"),
        (EMBEDDINGS, {"model": "tiny-llama"}, "input"),
        ("/detokenize", {}, "tokens"),
    ):
        for ids in ([outside], [-1], [2**31], [2**63], [2**200], [5, -5]):
            refused(post(guarded, path, {**body, field: ids}), 400, field)


def test_stops(guarded: Server) -> None:
    refuse(guarded, "stop", "", [], [""], ["a", ""], ["a"] * 5, ["a"] * 100_000, "a" * 2000, 5, [5])
    refuse(guarded, "stop_token_ids", list(range(10**6, 10**6 + 50_000)))
    longest = {"stop": ["a" * 1024, "ab" * 512, "b" * 1024, "ba" * 512], "n": 64}
    answer = post(guarded, COMPLETIONS, {**ASK[COMPLETIONS], **longest})
    assert answer.status_code == 200


def test_logprobs_over_the_cap(guarded: Server) -> None:
    refuse(guarded, "logprobs", 6, -1, 10**9, 2**70, True, "5", paths=[COMPLETIONS])
    refuse(guarded, "prompt_logprobs", 21, -1, 10**9)
    for count in (21, -1, 10**9, True):
        body = {**ASK[CHAT], "logprobs": True, "top_logprobs": count}
        refused(post(guarded, CHAT, body), 400, "top_logprobs")


@pytest.mark.alone
def test_far_more_of_something_than_anyone_needs(guarded: Server) -> None:
    """A million faults are not a million complaints."""
    many = 100_000
    tool = {"type": "function", "function": {"name": "f"}}
    for path, more in (
        (CHAT, {"messages": [5] * many}),
        (CHAT, {"messages": [{"role": "user", "content": [5] * many}]}),
        (CHAT, {f"a{number}": 1 for number in range(60_000)}),
        (CHAT, {"logit_bias": {str(number): "x" for number in range(60_000)}}),
        (CHAT, {"tools": [tool] * 10_000}),
        (CHAT, {"tools": [5] * many}),
        (CHAT, {"messages": [{"role": "user", "content": "x"}] * 25_000}),
        (COMPLETIONS, {"stop_token_ids": ["x"] * many}),
        (COMPLETIONS, {"prompt": [5, *["x"] * many]}),
        (COMPLETIONS, {"prompt": ["x", *[5] * many]}),
        (COMPLETIONS, {"prompt": [[]] * many}),
    ):
        began = time.monotonic()
        refused(post(guarded, path, {**ASK[path], **more}))
        assert time.monotonic() - began < 1.5, more.keys()


# -- what an answer is to look like ----------------------------------------------------------

NESTED: Any = True
for _ in range(300):
    NESTED = {"type": "object", "properties": {"a": NESTED}, "required": ["a"]}
HOSTILE_SCHEMAS: dict[str, Any] = {
    "20k enum": {"enum": [f"value {number}" for number in range(20_000)]},
    "300 deep": NESTED,
    "refers to itself": {"$ref": "#"},
    "refers to itself through another": {
        "$defs": {"a": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "refers to a circle": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "refers elsewhere": {"$ref": "http://127.0.0.1:9/schema.json"},
    "refers to a file": {"$ref": "file:///etc/passwd"},
    "refers to nothing": {"$ref": "#/$defs/none"},
    "doubles": {
        "$defs": {
            f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2, "type": "object"}
            for n in range(40)
        }
        | {"d40": {"type": "null"}},
        "$ref": "#/$defs/d0",
    },
    "long strings": {"type": "string", "minLength": 10**9},
    "long lists": {"type": "array", "minItems": 10**9, "items": {"type": "string"}},
    "a hostile pattern": {"type": "string", "pattern": "(a{1,1000}){1,1000}"},
    "all that is not": {"not": {}},
    "many of all": {"allOf": [{"pattern": f"a{{{n}}}"} for n in range(1, 200)], "type": "string"},
    "unknown type": {"type": "nothing"},
}
HOSTILE_REGEX = {
    "repeated": "(a{1,1000}){1,1000}",
    "thrice": "((a{1,100}){1,100}){1,100}",
    "backtracking": "(a*)*b",
    "look-ahead": "(?=a)b",
    "back reference": r"(a)\1",
    "unclosed": "(" * 5000,
    "closed": "(" * 5000 + ")" * 5000,
    "long": "a" * 900_000,
    "classes": r"[\p{L}]{1,5000}" * 20,
    "nothing": r"[^\s\S]",
    "an empty text": "",
}

LONG = ("many of all", "long", "classes", "doubles")


def bounded(server: Server, path: str, body: dict[str, Any]) -> None:
    """An answer that fits, or a refusal; in either case soon."""
    began = time.monotonic()
    answer = post(server, path, body)
    assert time.monotonic() - began < SOON_S
    if answer.status_code != 200:
        refused(answer)


def _named(cases: dict[str, Any]) -> list[Any]:
    """Those that take the longest are for the long tier."""
    marks = [pytest.mark.slow]
    return [pytest.param(name, marks=marks if name in LONG else []) for name in cases]


@pytest.mark.parametrize("name", _named(HOSTILE_SCHEMAS))
def test_hostile_schema(guarded: Server, name: str) -> None:
    schema = HOSTILE_SCHEMAS[name]
    wrapped = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    bounded(guarded, CHAT, {**ASK[CHAT], "response_format": wrapped})


@pytest.mark.parametrize("name", _named(HOSTILE_REGEX))
def test_hostile_regex(guarded: Server, name: str) -> None:
    regex = HOSTILE_REGEX[name]
    bounded(guarded, COMPLETIONS, {**ASK[COMPLETIONS], "structured_outputs": {"regex": regex}})


def test_hostile_grammars(guarded: Server) -> None:
    for grammar in (
        "start: start",
        "start: a\na: start",
        "start: " + "(" * 3000 + '"a"' + ")" * 3000,
        'start: "a" ~ 1..1000000000',
        "\n".join(["start: r0", *(f"r{n}: r{n + 1} r{n + 1}" for n in range(60)), 'r60: "a"']),
        'root ::= "a" root | root',
        "root ::= " + "(" * 3000,
        "start: /(a{1,1000}){1,1000}/",
        "%import common.WORD\nstart: WORD",
        "start: %json {",
        "\0",
    ):
        bounded(
            guarded, COMPLETIONS, {**ASK[COMPLETIONS], "structured_outputs": {"grammar": grammar}}
        )
    choices = {"choice": [f"{number}" * 9 for number in range(20_000)]}
    bounded(guarded, COMPLETIONS, {**ASK[COMPLETIONS], "structured_outputs": choices})


def test_hostile_template_kwargs(guarded: Server) -> None:
    deep: Any = 1
    for _ in range(90):
        deep = {"a": [deep]}
    for variables in (
        {"messages": []},
        {"tools": []},
        {"add_generation_prompt": 5},
        {"bos_token": deep, "eos_token": None},
        {"raise_exception": 5, "strftime_now": 5, "range": 5, "namespace": 5},
        {"self": 5, "loop": 5, "caller": 5, "varargs": 5, "kwargs": 5, "context": 5},
        {"__class__": 5, "_": 5, "": 5, "a b": 5, "class": 5, "é": 5, "True": 5},
        {"documents": deep, "enable_thinking": deep, "custom_tools": "x" * 100_000},
        {f"a{number}": number for number in range(10_000)},
        {"x": "{{ ''.__class__.__mro__ }}{% for i in range(10**9) %}{% endfor %}"},
    ):
        for path in (CHAT, f"{CHAT}/render"):
            bounded(guarded, path, {**ASK[CHAT], "chat_template_kwargs": variables})
    for no_object in ([], 5, "x", True):
        body = {**ASK[CHAT], "chat_template_kwargs": no_object}
        refused(post(guarded, CHAT, body), 400, "chat_template_kwargs")


# -- what comes out of the model -------------------------------------------------------------


def test_broken_utf8_out_of_the_model(guarded: Server) -> None:
    """Bytes that are no text become replacement characters, in a stream as in one piece."""
    vocabulary = CLIENT.post(
        f"{guarded.url}/tokenize",
        json={"prompt": "é世🌹", "add_special_tokens": False, "return_token_strs": True},
    ).json()
    pieces = [id for id in vocabulary["tokens"] if id]
    bias = {str(id): 100 for id in pieces}
    ask = {"model": "tiny-llama", "prompt": "a", "max_tokens": 60, "temperature": 2, "seed": 3}
    ask |= {"logit_bias": bias, "ignore_eos": True, "n": 3, "logprobs": 2}
    whole = post(guarded, COMPLETIONS, ask)
    assert whole.status_code == 200
    texts = [choice["text"] for choice in whole.json()["choices"]]
    assert any("\ufffd" in text for text in texts)
    streamed = ["", "", ""]
    answer = post(guarded, COMPLETIONS, {**ask, "stream": True})
    for line in answer.text.split("\n"):
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                streamed[choice["index"]] += choice["text"]
    assert streamed == texts


NO_CALLS = (
    "<tool_call>",
    "<tool_call>\n{",
    '<tool_call>\n{"name": "f", "arguments": {"a": }}\n</tool_call>',
    '<tool_call>\n{"name": 5}\n</tool_call>',
    "<tool_call>\n[]\n</tool_call>",
    '<tool_call>\n{"name": "none", "arguments": {}}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": ' + '{"a":' * 9,
    "</tool_call><tool_call></tool_call></think><think>",
    '<tool_call>\n{"name": "f", "arguments": "\\ud800"}\n</tool_call>',
)


def test_malformed_tool_calls_out_of_the_model(guarded: Server) -> None:
    """What the model is made to say stays text, unless it breaks after a call has begun: that has
    been streamed, so it stays, and the answer does not end in calls. Where the model may call
    instead, a call is a call."""
    stayed = 0
    for said in NO_CALLS:
        ask = {
            "model": "tiny-llama",
            "messages": MESSAGES,
            "max_tokens": 80,
            "n": 2,
            "seed": 1,
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "structured_outputs": {"choice": [said]},
        }
        answer = post(guarded, CHAT, ask)
        assert answer.status_code == 200, answer.text
        for choice in answer.json()["choices"]:
            message = choice["message"]
            if message.get("tool_calls"):
                [called] = message["tool_calls"]
                arguments = called["function"]["arguments"]
                if choice["finish_reason"] == "tool_calls":
                    assert isinstance(json.loads(arguments), dict)
                else:
                    assert arguments in said or choice["finish_reason"] == "length"
            elif choice["finish_reason"] == "stop":
                assert message["content"].strip() == said.strip()
                stayed += 1
    assert stayed > len(NO_CALLS) / 2

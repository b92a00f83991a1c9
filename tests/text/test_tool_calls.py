"""Every format's calls are read, however the text arrives; what is none comes back as text."""

from __future__ import annotations

import json
import math
import time
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosellm.roseinfer.config import ToolParser
from rosellm.roseinfer.text.answer_parser import AnswerFormat, Parser
from rosellm.roseinfer.text.parts import Call, Parts
from rosellm.roseinfer.text.tools import registry
from tests.examples import examples

NAMES = frozenset({"f", "g", "weather.now"})
MARIA = {"name": "María", "n": [1, 2.5, None, True], "deep": {"a": "</tool_call> [TOOL_CALLS]"}}
ALL = sorted(registry.FORMATS)


def finished(format: AnswerFormat, pieces: list[str]) -> tuple[Parts, Parser]:
    parser = format.parser()
    assert parser is not None
    parts = Parts()
    for piece in pieces:
        parts += parser.feed(piece)
    return parts + parser.flush(), parser


def read(format: AnswerFormat, pieces: list[str]) -> Parts:
    return finished(format, pieces)[0]


def parse(name: str, text: str, most: int | None = None) -> Parts:
    """Read a text at once and in the smallest pieces, which must come to the same."""
    format = AnswerFormat(tools=name, names=NAMES, most=most)
    whole = read(format, [text])
    assert read(format, list(text)) == whole
    return whole


def calls(*given: tuple[str, Any]) -> tuple[tuple[str, Any], ...]:
    return given


def read_calls(parts: Parts) -> tuple[tuple[str, Any], ...]:
    return tuple((call.name, json.loads(call.arguments)) for call in parts.calls)


def hermes(name: str, arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def llama(name: str, arguments: Any) -> str:
    return json.dumps({"name": name, "parameters": arguments})


def pythonic(name: str, arguments: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def deepseek(name: str, arguments: Any) -> str:
    fenced = f"\n```json\n{json.dumps(arguments)}\n```"
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}{fenced}<｜tool▁call▁end｜>"


def deepseek_31(name: str, arguments: Any) -> str:
    given = json.dumps(arguments)
    return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{given}<｜tool▁call▁end｜>"


def listed(write: Any, between: str, opening: str, closing: str) -> Any:
    return lambda *each: opening + between.join(write(*one) for one in each) + closing


def openai(name: str, arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments, "id": "123456789"})


def by_name(name: str, arguments: Any) -> str:
    return f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments)}"


def by_name_and_id(name: str, arguments: Any) -> str:
    return f"[TOOL_CALLS]{name}[CALL_ID]123456789[ARGS]{json.dumps(arguments)}"


BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
WRITERS = [
    ("hermes", listed(hermes, "\n", "", "")),
    ("hermes", listed(hermes, "", "", "\n")),
    ("llama3_json", listed(llama, "; ", "", "")),
    ("llama3_json", listed(llama, ";", "<|python_tag|>", "")),
    ("llama3_json", listed(openai, "\n", "\n", "")),
    ("mistral", listed(openai, ", ", "[TOOL_CALLS] [", "]")),
    ("mistral", listed(by_name, "", "", "")),
    ("mistral_args", listed(by_name, "", "", "")),
    ("mistral_args", listed(by_name_and_id, "", "", "")),
    ("mistral_args", listed(openai, ", ", "[TOOL_CALLS][", "]")),
    ("pythonic", listed(pythonic, ", ", "[", "]")),
    ("pythonic", listed(pythonic, ", ", "<|python_start|>[", "]<|python_end|>")),
    ("deepseek", listed(deepseek, "\n", BEGIN, END)),
    ("deepseek", listed(deepseek_31, "", BEGIN, END)),
]
BARE = {"llama3_json", "pythonic"}


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_calls_are_read(name: str, write: Any) -> None:
    assert read_calls(parse(name, write(("f", {})))) == calls(("f", {}))
    several = calls(("f", MARIA), ("weather.now", {"q": 'a "b" \\ \n {c}'}), ("f", {}))
    parts = parse(name, write(*several))
    assert read_calls(parts) == several
    assert parts.content == ""


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_text_before_calls_is_content(name: str, write: Any) -> None:
    text = write(("f", {"a": 1}))
    parts = parse(name, "Let me see.\n\n" + text)
    if name in BARE and not text.startswith("<"):
        assert parts == Parts("Let me see.\n\n" + text)
    else:
        assert parts.content == "Let me see."
        assert read_calls(parts) == calls(("f", {"a": 1}))


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_at_most_so_many(name: str, write: Any) -> None:
    parts = parse(name, write(("f", {"a": 1}), ("g", {})), most=1)
    assert read_calls(parts) == calls(("f", {"a": 1}))
    assert parts.content == ""


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_what_is_no_call_is_text(name: str, write: Any) -> None:
    end = registry.load(name).end
    for text in (
        write(("nobody", {})),
        write(("f", {"a": 7})).replace("7", "[7").replace('"a"', "a").removesuffix(end),
        write(("f", {"a": 7})).replace('"a"', "'").replace("a=", "'"),
        "",
        "  ",
        " just text [ { < \n",
    ):
        assert parse(name, text) == Parts(text), text


@pytest.mark.parametrize(
    "arguments",
    ["[1]", "1", '"text"', '"{"', "{,", "{]", '{"a"}', "[" * 100_000, "'" * 100_000],
)
@pytest.mark.parametrize("name", ["hermes", "llama3_json", "mistral", "deepseek"])
def test_arguments_that_are_no_object_make_no_call(name: str, arguments: str) -> None:
    write = {
        "hermes": '<tool_call>{"name": "f", "arguments": %s}</tool_call>',
        "llama3_json": '{"name": "f", "parameters": %s}',
        "mistral": "[TOOL_CALLS]f[ARGS]%s",
        "deepseek": f"{BEGIN}<｜tool▁call▁begin｜>f<｜tool▁sep｜>%s<｜tool▁call▁end｜>{END}",
    }[name]
    text = write % arguments
    format = AnswerFormat(tools=name, names=NAMES)
    assert read(format, [text]) == Parts(text)


@pytest.mark.parametrize("depth", [100_000, 1_000_000])
def test_python_that_nobody_could_nest_makes_no_call(depth: int) -> None:
    text = "[f(a=" + "(" * depth + ")" * depth + ")]"
    format = AnswerFormat(tools="pythonic", names=NAMES)
    assert read(format, [text]) == Parts(text)


BROKEN = [
    '{"a": [1}}',
    '{"a": 1, b}',
    '{"a": Infinity}',
    '{"a": 01}',
    '{"a": "\\x"}',
    '{"a": "open}',
    '{"a":' * 300,
]


@pytest.mark.parametrize("written", BROKEN)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": %s\n</tool_call> so'),
        ("mistral", "[TOOL_CALLS]f[ARGS]%s\n[TOOL_CALLS]"),
        ("deepseek", f"{BEGIN}<｜tool▁call▁begin｜>f<｜tool▁sep｜>%s\n<｜tool▁call▁end｜>{END} so"),
    ],
)
def test_a_call_that_has_begun_stays_one(name: str, text: str, written: str) -> None:
    """Its arguments are what stands there up to the next marker."""
    parser = AnswerFormat(tools=name, names=NAMES).parser()
    assert parser is not None
    parts = parser.feed(text % written) + parser.flush()
    assert parts.calls == (Call("f", written + "\\n" * written.endswith("open}")),)
    assert parts.content in ("", " so", "[TOOL_CALLS]")
    assert not parser.whole
    assert parse(name, text % written) == parts


@pytest.mark.parametrize(
    "text",
    [
        "[f(1)]",
        "[f(**{'a': 1})]",
        "[f(a=__import__('os').system('true'))]",
        "[f(a=g())]",
        "[f(a={1, 2})]",
        "[f(a=1e999)]",
        "[f(a=1j)]",
        "[f(a=b'x')]",
        "[f(a=)]",
        "[f(a=']",
        "[f(a=1",
        "[f]",
        "[]",
        "[1, 2]",
        "f(a=1)",
    ],
)
def test_python_that_is_no_list_of_plain_calls_is_text(text: str) -> None:
    assert parse("pythonic", text) == Parts(text)


@pytest.mark.parametrize(
    ("text", "parts", "whole"),
    [
        ("[f(a=1)] and more", Parts(" and more", calls=(Call("f", '{"a": 1}'),)), True),
        ("[f(a='\\ud800')]", Parts(calls=(Call("f", '{"a": "\\ud800"}'),)), True),
        ("[f(a=1), 2]", Parts(", 2]", calls=(Call("f", '{"a": 1}'),)), True),
        ("[f(a=1, a=2)]", Parts(" a=2)]", calls=(Call("f", '{"a": 1'),)), False),
        ("[f(a=1, b=2", Parts(" b=2", calls=(Call("f", '{"a": 1'),)), False),
        ("[f(a=\"\"\"x'\"y\"\"\", b='\\'')]",
         Parts(calls=(Call("f", '{"a": "x\'\\"y", "b": "\'"}'),)), True),
    ],
)  # fmt: skip
def test_python_up_to_where_it_is_plain(text: str, parts: Parts, whole: bool) -> None:
    assert parse("pythonic", text) == parts
    parser = AnswerFormat(tools="pythonic", names=NAMES).parser()
    assert parser is not None
    parser.feed(text)
    parser.flush()
    assert parser.whole is whole


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('{"name": "f"}', "{}"),
        ('{"name": "f", "arguments": null}', "{}"),
        ('{"name": "f", "parameters": {"a": 1}}', '{"a": 1}'),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"name": "f", "arguments": {"b":1,"a" : 2.50}}', '{"b":1,"a" : 2.50}'),
        ('{"name": "f", "arguments": {"a": "one\ntwo"}}', '{"a": "one\\ntwo"}'),
        ('{"name": "f", "arguments": "{\\"a\\": \\"\\ud800\\"}"}', '{"a": "\\ud800"}'),
        ('{"arguments": {"a": 1}, "name": "f"}', '{"a": 1}'),
        ('{"name": "f", "arguments": {"a": 1e999}}', '{"a": 1e999}'),
        ('[{"type": "function", "name": "f", "arguments": {}}]', "{}"),
    ],
)
def test_how_models_write_json(written: str, meant: str) -> None:
    parts = parse("hermes", f"<tool_call>{written}</tool_call>")
    assert parts == Parts(calls=(Call("f", meant),))


def test_a_call_whose_end_marker_is_missing_is_one_all_the_same() -> None:
    parts = parse("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}}')
    assert read_calls(parts) == calls(("f", {"a": 1}))


def test_a_good_call_behind_a_bad_one() -> None:
    good = hermes("g", {})
    bad = '<tool_call>{"name": "nobody, "arguments": {}}</tool_call>'
    assert parse("hermes", f"{bad} then {good} so.\n") == Parts(
        f"{bad} then so.", calls=(Call("g", "{}"),)
    )
    begun = '<tool_call>{"name": "f", "arguments": {"a": "open}}</tool_call>'
    assert parse("hermes", f"{begun} then {good} so.\n") == Parts(
        " then so.", calls=(Call("f", '{"a": "open}}'), Call("g", "{}"))
    )


def test_the_calls_before_a_bad_one() -> None:
    listed = '[{"name": "f", "arguments": {}}, {"name": "nobody"}]'
    assert parse("hermes", f"<tool_call>{listed}</tool_call> so") == Parts(
        ', {"name": "nobody"}] so', calls=(Call("f", "{}"),)
    )
    unclosed = '<tool_call>{"name": "f", "arguments": {"a": 1}\n</tool_call> so'
    assert parse("hermes", unclosed) == Parts(" so", calls=(Call("f", '{"a": 1}'),))


def test_nobody_is_kept_waiting_for_text_that_is_certain() -> None:
    parser = AnswerFormat(tools="hermes", names=NAMES).parser()
    assert parser is not None
    assert parser.feed("Hello <").content == "Hello"
    assert parser.feed("b> and").content == " <b> and"
    assert parser.feed(' <tool_call>{"name": "f"').calls == ()
    assert parser.feed("}</tool_call>").calls == (Call("f", "{}"),)


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_arguments_come_while_they_are_written(name: str, write: Any) -> None:
    """In text order, and never later than what could be part of a marker, or a value of Python."""
    arguments = {"city": "New York, or what is left of it", "n": [1, {"deep": None}], "last": 1.5}
    text = write(("f", arguments))
    parser = AnswerFormat(tools=name, names=NAMES).parser()
    assert parser is not None
    told, lags = "", []
    first, end = text.index("New York"), text.index("1.5")
    for place, char in enumerate(text):
        told += "".join(call.arguments for call in parser.feed(char).calls)
        if first <= place < end and name != "pythonic":
            assert text[text.index('{"city"') :].startswith(told)
            lags.append(place + 1 - (text.index('{"city"') + len(told)))
        elif name == "pythonic" and text[: place + 1].endswith((", n", ", last")):
            lags.append(not told.endswith(('it"', "}]")))
    assert json.loads(told) == arguments
    assert lags
    assert max(lags) <= (0 if name == "pythonic" else 1), lags


def test_a_marker_in_a_string_is_held_back_until_it_is_known_to_be_one() -> None:
    parser = AnswerFormat(tools="hermes", names=NAMES).parser()
    assert parser is not None
    parser.feed('<tool_call>{"name": "f", "arguments": {"a": ')
    assert parser.feed('"b </tool_call> c').calls == (Call("", '"b '),)
    assert parser.feed(" d").calls == ()
    assert parser.feed('"').calls == ()
    assert parser.feed("}").calls == (Call("", '</tool_call> c d"}'),)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>"</tool_call>' * 4000),
        ("pythonic", "<|python_start|>[f(a=[" * 2000),
    ],
)
def test_markers_without_number_take_no_time(name: str, text: str) -> None:
    """Text that is all beginnings of calls is read in about linear time."""
    format, began = AnswerFormat(tools=name, names=NAMES), time.thread_time()
    read(format, [text[i : i + 7] for i in range(0, len(text), 7)])
    assert time.thread_time() - began < 4


@pytest.mark.parametrize("space", [" \n", "\f", "\v", "\xa0", "\u3000"])
@pytest.mark.parametrize(
    ("name", "text"),
    [("llama3_json", '{"name": "f", "parameters": {}}'), ("pythonic", "[f()]")],
)
def test_white_space_of_any_kind_before_a_bare_call(name: str, text: str, space: str) -> None:
    format = AnswerFormat(tools=name, names=NAMES)
    for pieces in ([space + text], list(space + text)):
        assert read(format, pieces).calls == (Call("f", "{}"),)
    for pieces in ([space + text[:-2]], [space + text[0] + "?"]):
        assert not read(format, pieces).calls


# -- any text in any pieces ------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *'{}[]"\\:,; \n\f\v\xa0\u3000<>()=.',
        *("f", "g", "nobody", "a", "1", "name", "arguments", "parameters", '{"name": "f"}'),
        *(text for name in ALL for text in registry.load(name).markers),
        *(write(("f", {"a": 1})) for _, write in WRITERS),
        *(write(("f", {"a": ""})).partition('""')[0] + '"' for _, write in WRITERS),
        *("[f(a='", "', b=", '", "b": ', '"}}', '"}'),
        *("<think>", "</think>", "[THINK]", "[/THINK]", "why", "é€😀"),
    ]
)


@st.composite
def cut(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text and pieces of it, at any places."""
    text = "".join(draw(st.lists(PIECES, max_size=14)))
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=len(text))))
    ends = [*places, len(text)]
    return text, [text[a:b] for a, b in zip([0, *places], ends, strict=True)]


@pytest.mark.parametrize("reasoning", [None, "think", "deepseek_r1", "mistral"])
@pytest.mark.parametrize("name", ALL)
@settings(max_examples=examples(120), deadline=None)
@given(sample=cut(), opened=st.booleans(), most=st.sampled_from([None, 1]))
def test_a_stream_is_the_whole(
    name: str, reasoning: str | None, sample: tuple[str, list[str]], opened: bool, most: int | None
) -> None:
    text, pieces = sample
    format = AnswerFormat(
        reasoning=reasoning,
        opened=opened,
        tools=name,
        names=NAMES,
        most=most,
    )
    (whole, parser), (streamed, other) = finished(format, [text]), finished(format, pieces)
    assert (streamed, other.whole) == (whole, parser.whole)
    for call in whole.calls:
        assert call.name in NAMES
        if parser.whole:
            assert isinstance(json.loads(call.arguments, parse_constant=pytest.fail), dict)
    assert len(whole.calls) <= (most or math.inf)
    if not whole.calls and reasoning is None:
        assert whole.content == text


# -- which one -------------------------------------------------------------------------------


def test_every_format_can_be_named() -> None:
    assert {*registry.FORMATS, "harmony", "auto", "none"} == set(get_args(ToolParser))


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ('{{- "<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args>}" }}', "hermes"),
        ("{{ '[TOOL_CALLS][' }}", "mistral"),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' + arguments }}", "mistral_args"),
        ("{{ '<｜tool▁calls▁begin｜>' }}", "deepseek"),
        ("<|start_header_id|>{% if tools %}{\"name\": name, \"parameters\": {}}", "llama3_json"),
        ("[func_name1(params_name1=params_value1, ...), func_name2(params)]", "pythonic"),
        ("<|start|>system<|message|> <|channel|>final<|message|>", "harmony"),
        ("<tool_call>\n<function=example>\n<parameter=a> \"arguments\"", None),
        ("<|im_start|>{{ message.role }}", None),
    ],
)  # fmt: skip
def test_a_template_gives_its_format_away(template: str, name: str | None) -> None:
    assert registry.recognise(template) == name


def test_known_templates(shared_data: Any) -> None:
    folder = shared_data / "chat_templates"
    found = {path.stem: registry.recognise(path.read_text()) for path in folder.glob("*.jinja")}
    assert {name: format for name, format in found.items() if format} == {
        "mistral_common_v7": "mistral",
        "mistral_v3_tekken": "mistral",
        "qwen3_official": "hermes",
        "smollm3": "hermes",
    }

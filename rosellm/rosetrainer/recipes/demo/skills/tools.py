"""Calling one of the offered tools, with arguments from the user's words.

There are tools of everyday kinds, under many names, and tools with made-up names, so that the
name, the parameters and the values have to be read from the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rosellm.rosetrainer.recipes.demo.skills import lexicon, talk, tool_kinds, words
from rosellm.rosetrainer.recipes.demo.skills.source import Phrases, Source, phrases
from rosellm.rosetrainer.recipes.demo.skills.tool_kinds import Blueprint, Parameter, Value
from rosellm.rosetrainer.recipes.demo.skills.turn import Turn, ask

Schema = dict[str, Any]

CALL, CALL_END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Offer:
    """One tool as it is offered, and a request for it."""

    tool: dict[str, Any]
    request: Callable[[], tuple[str, dict[str, Value]]]

    @property
    def name(self) -> str:
        return str(self.tool["function"]["name"])


def calling(source: Source) -> Turn:
    """A request for one of 1 to 3 offered tools."""
    offers = _offers(source, source.among((1, 1, 2, 2, 3)))

    def turn() -> Turn:
        wanted = source.among(offers)
        user, arguments = wanted.request()
        call = {"name": wanted.name, "arguments": arguments}
        tools = tuple(offer.tool for offer in offers)
        return Turn(user, "", kind="call", tools=tools, call=call, again=turn)

    return turn()


def not_calling(source: Source) -> Turn:
    """Tools are offered, and the user wants something else."""
    others = (talk.greeting, talk.greeting, talk.identity, words.copying, words.spelling)
    turn = source.among((*others, words.upper))(source)
    tools = tuple(offer.tool for offer in _offers(source, source.among((1, 1, 2))))
    return Turn(turn.user, turn.answer, turn.others, tools=tools)


def result_of(source: Source) -> tuple[str, str]:
    """What a tool gave back, and how the assistant tells it."""
    count = source.among((1, 1, 2))
    values = {source.word(): _any_value(source) for _ in range(count)}
    told = " and ".join(f"{name} is {value}" for name, value in values.items())
    return json.dumps(values, ensure_ascii=False), f"The result: {told}."


def is_valid_call(turn: Turn, answer: str) -> bool:
    """Whether an answer calls the right tool, with arguments that fit the tool's schema."""
    call = called(answer)
    if call is None or turn.call is None or call.get("name") != turn.call["name"]:
        return False
    [schema] = [
        tool["function"]["parameters"]
        for tool in turn.tools
        if tool["function"]["name"] == turn.call["name"]
    ]
    return _fits(call.get("arguments"), schema)


def called(answer: str) -> dict[str, Any] | None:
    """The one tool call that an answer is, or None."""
    text = answer.strip()
    if not (text.startswith(CALL) and text.endswith(CALL_END)):
        return None
    try:
        call = json.loads(text[len(CALL) : -len(CALL_END)])
    except ValueError:
        return None
    return call if isinstance(call, dict) else None


def _fits(arguments: Any, schema: Schema) -> bool:
    """Whether arguments are valid: required ones are there, none is unknown, types are right."""
    properties = schema["properties"]
    if not isinstance(arguments, dict) or not arguments.keys() <= properties.keys():
        return False
    complete = all(name in arguments for name in schema["required"])
    return complete and all(_is_a(properties[name], value) for name, value in arguments.items())


def _is_a(schema: Schema, value: Any) -> bool:
    types = {"string": (str,), "integer": (int,), "number": (int, float)}[schema["type"]]
    fits = isinstance(value, types) and not isinstance(value, bool)
    return fits and value in schema.get("enum", (value,))


def _offers(source: Source, count: int) -> list[Offer]:
    offers: dict[str, Offer] = {}
    seen: list[Blueprint] = []
    while len(offers) < count:
        if source.chance(0.4):
            offer = _made_up(source)
        else:
            blueprint = _blueprint(source)
            if blueprint in seen:
                continue
            seen.append(blueprint)
            offer = _known(source, blueprint)
        offers.setdefault(offer.name, offer)
    return list(offers.values())


def _blueprint(source: Source) -> Blueprint:
    return source.among(tool_kinds.NEW_TOOLS if source.is_novel() else tool_kinds.TOOLS)


def _known(source: Source, blueprint: Blueprint) -> Offer:
    said = source.phrase(blueprint.asks)
    used = [slot for slot in blueprint.parameters if f"{{{slot}}}" in said]
    optional = [slot for slot in blueprint.parameters if slot not in used and source.chance(0.6)]
    slots = used + optional
    names = {slot: _parameter_name(source, blueprint.parameters[slot]) for slot in slots}
    properties = {names[slot]: _schema(source, blueprint.parameters[slot]) for slot in slots}
    required = [names[slot] for slot in used]
    name = _styled(source, _tool_name(source, blueprint))
    tool = _tool(source, name, source.spoken(source.among(blueprint.about)), properties, required)

    def request() -> tuple[str, dict[str, Value]]:
        values = {slot: blueprint.parameters[slot].make(source) for slot in used}
        shown = {slot: str(value) for slot, value in values.items()}
        user = ask(source, Phrases((said,)), False, **shown)
        return user, {names[slot]: values[slot] for slot in used}

    return Offer(tool, request)


def _made_up(source: Source) -> Offer:
    """``frobnicate_lamp(wheel)``: a verb and a noun, to be recognised by these alone."""
    verb, noun = source.of(_TOOL_VERBS), source.of(_NOUNS) if source.chance(0.7) else source.word()
    count = source.among((1, 1, 1, 2, 2))
    names = list(dict.fromkeys(_plain_name(source) for _ in range(count)))
    makers = [source.among(_MAKERS) for _ in names]
    types = ["integer" if maker is tool_kinds.any_number else "string" for maker in makers]
    properties: dict[str, Schema] = {}
    for name, kind in zip(names, types, strict=True):
        properties[name] = {"type": kind}
        if source.chance(0.5):
            properties[name]["description"] = source.spoken(f"[The|the] {name}[| to use|.]")
    about = source.spoken(source.among(_MADE_UP_ABOUT)).format(verb=verb, noun=noun)
    tool = _tool(source, _styled(source, f"{verb}_{noun}"), about, properties, names)

    def request() -> tuple[str, dict[str, Value]]:
        values = {name: maker(source) for name, maker in zip(names, makers, strict=True)}
        told = [
            source.spoken(source.among(_TOLD)).format(name=name, value=value)
            for name, value in values.items()
        ]
        bare = len(names) == 1 and source.chance(0.5)
        tail = str(next(iter(values.values()))) if bare else " and ".join(told)
        return ask(source, _MADE_UP_ASKS, verb=verb, noun=noun, tail=tail), values

    return Offer(tool, request)


def _tool(
    source: Source, name: str, about: str, properties: dict[str, Schema], required: list[str]
) -> dict[str, Any]:
    schema: Schema = {"type": "object", "properties": properties, "required": required}
    if source.chance(0.1):
        schema["additionalProperties"] = False
    function: dict[str, Any] = {"name": name}
    if source.chance(0.92):
        function["description"] = about
    return {"type": "function", "function": {**function, "parameters": schema}}


def _tool_name(source: Source, blueprint: Blueprint) -> str:
    """A likely name; in training now and then an odd one, so that names are read, not guessed."""
    name = source.among(blueprint.names)
    kind = 0.0 if source.fresh else source.rng.random()
    if kind < 0.55:
        return name
    if kind < 0.7:
        return f"{name}_{source.word()}"
    if kind < 0.85:
        return f"{source.of(_TOOL_VERBS)}_{name}"
    return f"{source.of(_TOOL_VERBS)}_{source.word()}"


def _parameter_name(source: Source, parameter: Parameter) -> str:
    if not source.fresh and source.chance(0.25):
        return _plain_name(source)
    return parameter.names[0] if source.chance(0.4) else source.among(parameter.names)


def _schema(source: Source, parameter: Parameter) -> Schema:
    kind = "integer" if parameter.make in tool_kinds.INTEGERS else "string"
    if kind == "integer" and source.chance(0.25):
        kind = "number"
    schema: Schema = {"type": kind}
    if source.chance(0.6):
        schema["description"] = source.spoken(source.among(parameter.about))
    if parameter.choices:
        schema["enum"] = list(parameter.choices)
    return schema


def _styled(source: Source, name: str) -> str:
    """``get_weather``, seldom ``getWeather`` or ``get-weather``."""
    style = source.rng.random()
    if style < 0.85:
        return name
    first, *rest = name.split("_")
    return first + "".join(map(str.title, rest)) if style < 0.95 else name.replace("_", "-")


def _plain_name(source: Source) -> str:
    return source.of(_FIELD_NAMES) if source.chance(0.6) else source.word()


def _any_value(source: Source) -> Value:
    return source.among(_MAKERS)(source)


_MAKERS: tuple[Callable[[Source], Value], ...] = (
    *(tool_kinds.word, tool_kinds.word, tool_kinds.words),
    *(tool_kinds.any_number, tool_kinds.any_number),
    *(Source.name, Source.city),
)
_FIELD_NAMES = lexicon.words(
    """
    amount area author brand category code colour count depth direction duration filter folder
    format group height id index item key kind label length level limit line mode model note
    number option order owner page path place price quantity query range rate room size source
    speed start status style tag target text title topic type user value volume weight width zone
    """
)
_TOOL_VERBS = lexicon.words(
    """
    add book build buy calculate call cancel change check choose clean close compare copy count
    create cut delete download draw edit export fetch find fix format get hide import install list
    load lock make move open order paint pause play print pull push query read record remove rename
    repair reset run save scan search select send set show sort split start stop store test track
    turn unlock update upload use view watch write
    """
)
_NOUNS = (*lexicon.THINGS, *lexicon.PLACES, *lexicon.FOODS, *lexicon.ANIMALS)
_MADE_UP_ABOUT = (
    "[{verb}|Can {verb}|Used to {verb}|Function to {verb}] [a|the|one] {noun}[.||]",
    "[{verb}|Can {verb}|Lets you {verb}] {noun}s[.||]",
    "{noun}[:| tool:] {verb}",
)
_TOLD = ("[with |]{name} {value}", "{name} {value}", "{name} = {value}", "[the |]{name} is {value}")
_MADE_UP_ASKS = phrases(
    """
    [please |can you |could you |now |]{verb} [the|a|my] {noun} [for|with|to|:] {tail}[.|]
    [please |can you |could you |]{verb} {noun} {tail}[.|]
    I [want|need|would like] to {verb} [the|a|my] {noun}[,|:| with| for] {tail}[.|]
    {verb} [the|a] {noun}: {tail}
    [would you|will you|you should|go and|go ahead and] {verb} [the|a|my|this] {noun}[:|] {tail}
    [it is time to|I have to|we must|we should|try to] {verb} [the|a|my|our] {noun}[:|] {tail}
    [I'd like you to|use the tool to|use your tools to|how about you] {verb} [the|a] {noun}: {tail}
    [my|this|that|the] {noun}[:|,] {verb} it[:|,| with] {tail}
    """,
    """
    [help me to|let us|let's] {verb} [the|a|my] {noun}: {tail}
    """,
)

"""Short JSON objects from a sentence: the fields that were asked for, in that order."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from rosellm.rosetrainer.recipes.demo.skills import lexicon
from rosellm.rosetrainer.recipes.demo.skills.source import Phrases, Source, fill, phrases
from rosellm.rosetrainer.recipes.demo.skills.turn import Turn, ask, quoted

Value = str | int


@dataclass(frozen=True)
class Slot:
    """A fact in a sentence: what makes its value, and what its field may be called."""

    make: Callable[[Source], Value]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    slots: dict[str, Slot]
    sentences: Phrases


def two_fields(source: Source) -> Turn:
    """An object of two fields."""
    while len(json.loads((turn := json_object(source)).answer)) != 2:
        pass
    return turn


def other_fields(source: Source) -> Turn:
    """An object of one field or of three."""
    while len(json.loads((turn := json_object(source)).answer)) == 2:
        pass
    return turn


def json_object(source: Source) -> Turn:
    """An object of two fields, now and then of one or three."""
    make = source.among((_from_sentence, _from_sentence, _from_sentence, _from_pairs))
    pairs, text, ways = make(source)
    keys = ", ".join if source.chance(0.25) else " and ".join
    marks = source.among(('"', "", "", "", "'"))
    asked = keys([f"{marks}{name}{marks}" for name, _ in pairs])
    answer = json.dumps(dict(pairs), ensure_ascii=False)
    return Turn(ask(source, ways, keys=asked, x=quoted(source, text)), answer, kind="json")


def _from_sentence(source: Source) -> tuple[list[tuple[str, Value]], str, Phrases]:
    record = source.among(_RECORDS)
    values = {slot: kind.make(source) for slot, kind in record.slots.items()}
    template = source.phrase(record.sentences)
    text = fill(template, {slot: str(value) for slot, value in values.items()})
    asked = [slot for slot in record.slots if f"{{{slot}}}" in template]
    if source.chance(0.3):
        source.rng.shuffle(asked)
    if source.chance(0.08):
        asked = asked[:1]
    pairs = [(_key(source, record.slots[slot]), values[slot]) for slot in asked]
    return pairs, text[:1].upper() + text[1:] + source.among((".", ".", "")), _ASKED


def _from_pairs(source: Source) -> tuple[list[tuple[str, Value]], str, Phrases]:
    count = source.among((1, 2, 2, 2, 2, 3))
    names = list(dict.fromkeys(_field_name(source) for _ in range(count)))
    pairs = [(name, _any_value(source)) for name in names]
    shown = source.among(("{} is {}", "{} is {}", "{} = {}", "{}: {}", "{} {}", "{}={}"))
    between = source.among((" and ", " and ", ", "))
    return pairs, between.join(shown.format(name, value) for name, value in pairs), _GIVEN


def _key(source: Source, slot: Slot) -> str:
    return slot.names[0] if source.chance(0.6) else source.among(slot.names)


def _field_name(source: Source) -> str:
    if source.chance(0.4):
        return source.among(tuple(_SLOTS.values())).names[0]
    return source.word()


def _any_value(source: Source) -> Value:
    if source.chance(0.4):
        return source.number(0, 999)
    return source.among((source.word, source.name, source.city))()


def _word_of(words: tuple[str, ...]) -> Callable[[Source], Value]:
    return lambda source: source.of(words)


def _number(low: int, high: int) -> Callable[[Source], Value]:
    return lambda source: source.number(low, high)


_SLOTS = {
    "name": Slot(Source.name, ("name", "person", "first_name", "who", "user")),
    "age": Slot(_number(1, 99), ("age", "years", "age_in_years")),
    "city": Slot(Source.city, ("city", "town", "place", "location")),
    "job": Slot(_word_of(lexicon.JOBS), ("job", "profession", "work", "occupation")),
    "animal": Slot(_word_of(lexicon.ANIMALS), ("animal", "pet", "kind")),
    "food": Slot(_word_of(lexicon.FOODS), ("food", "product", "dish", "item")),
    "thing": Slot(_word_of(lexicon.THINGS), ("item", "product", "object", "thing")),
    "colour": Slot(_word_of(lexicon.COLOURS), ("colour", "color")),
    "count": Slot(_number(2, 60), ("count", "number", "amount", "quantity")),
    "price": Slot(_number(1, 200), ("price", "cost", "euros", "dollars")),
    "day": Slot(_word_of(lexicon.DAYS), ("day", "weekday", "date")),
    "hour": Slot(_number(1, 23), ("hour", "time")),
    "year": Slot(_number(1900, 2030), ("year", "built", "since")),
    "place": Slot(_word_of(lexicon.PLACES), ("place", "building", "where")),
    "country": Slot(lambda source: source.of(_COUNTRIES), ("country", "nation", "state")),
    "surname": Slot(lambda source: source.of(lexicon.SURNAMES), ("surname", "last_name")),
    "points": Slot(_number(0, 100), ("points", "score", "result")),
}
_COUNTRIES: tuple[str, ...] = tuple(dict.fromkeys(lexicon.COUNTRY_OF.values()))


def _record(slots: str, train: str, held_out: str = "") -> Record:
    return Record({name: _SLOTS[name] for name in slots.split()}, phrases(train, held_out))


_RECORDS = (
    _record(
        "name age",
        """
        {name} is {age}[| years old]
        {name} [turned|became|will be] {age} [last week|today|in May|yesterday|soon]
        my [friend|brother|sister|cousin|neighbour] {name} is {age}[| years old]
        {name}, aged {age}, [lives next door|likes music|is here]
        {name} ({age}) [won the race|is at home|called today]
        [at the age of|at] {age}, {name} [learnt to swim|went to school|bought a boat]
        I am {name} and I am {age}[| years old]
        my name is {name} and I am {age}[| years old]
        """,
        """
        {name} has just turned {age}
        this is {name}, who is {age}[| years old]
        """,
    ),
    _record(
        "name city",
        """
        {name} [lives|works|was born|stays] in {city}
        {name} [comes|is] from {city}
        {name} [moved|went|travelled|flew] to {city} [last year|in May|yesterday|]
        my [friend|brother|sister|cousin] {name} [lives|studies] in {city}
        I am {name} from {city}
        in {city} there [is|lives] a [man|woman] called {name}
        """,
        """
        {name}'s home is {city}
        you can find {name} in {city}
        """,
    ),
    _record(
        "city country",
        """
        {city} is [in|a city in|a town in|the biggest city of] {country}
        {city}, {country}[, is nice|]
        the city [of |]{city} [lies|is] in {country}
        I [live|stayed|was] in {city}, [which is in |]{country}
        we [flew|drove] to {city} in {country}
        """,
        """
        there is a town called {city} in {country}
        """,
    ),
    _record(
        "name job",
        """
        {name} [is|works as|became|was|wants to be] a {job}
        the {job} is called {name}
        {name}, [a|the|our] {job}, [is here|called today|lives next door]
        [our|the|my] {job} {name} [is nice|lives here|has a dog]
        """,
        """
        {name} earns money as a {job}
        """,
    ),
    _record(
        "thing price",
        """
        the {thing} [costs|is|cost] {price} [euros|dollars|pounds|]
        a {thing} [for|at] {price} [euros|dollars|pounds]
        I [paid|gave] {price} [euros|dollars] for the {thing}
        they [sell|sold] the {thing} for {price} [euros|dollars]
        """,
        """
        you get this {thing} for {price} [euros|dollars]
        """,
    ),
    _record(
        "thing colour",
        """
        the {thing} is {colour}
        I [have|want|bought|saw] a {colour} {thing}
        my {thing} was [painted|]{colour}
        there is a {colour} {thing} [here|on the table|in the room]
        """,
    ),
    _record(
        "count food",
        """
        I [want|need|ate|bought|have] {count} {food}s
        there are {count} {food}s [here|on the table|left|]
        [please |]bring {count} {food}s
        {count} {food}s [for me|, please|are in the bag]
        """,
    ),
    _record(
        "name animal",
        """
        {name} has a {animal}
        the {animal} is called {name}
        {name} is a [nice|small|big|funny] {animal}
        our {animal} {name} sleeps [a lot|all day]
        """,
    ),
    _record(
        "day hour",
        """
        [we meet|the meeting is|the train leaves|come] on {day} at {hour}[| o'clock]
        on {day} at {hour} [we eat|I will call|the game starts]
        [the shop opens|dinner is] at {hour} on {day}
        """,
    ),
    _record(
        "name points",
        """
        {name} [got|made|scored|has|won] {points} points
        {points} points [for|went to] {name}
        """,
    ),
    _record(
        "place year",
        """
        the {place} was [built|opened|closed] in {year}
        in {year} they [built|opened|closed] the {place}
        """,
    ),
    _record(
        "name surname",
        """
        [my name is|I am|this is|call] {name} {surname}
        {name} {surname} [is here|called|came to see you]
        """,
    ),
    _record(
        "name age city",
        """
        {name} is {age} and [lives in|comes from|works in] {city}
        {name}, {age}, [is from|lives in] {city}
        """,
    ),
)
_ASKED = phrases(
    """
    [write|give me|make|create|return] [a JSON object|JSON|a JSON] with {keys}: {x}
    [write|give me|make|create|return] [a JSON object|JSON] with the [fields|keys] {keys}: {x}
    [write|give me|make|create|return] [a JSON object|JSON] with [fields|keys] {keys} [for|from]: {x}
    [extract|get|find|take] {keys} [as|in|into] JSON[:| from:| from this:| from this sentence:] {x}
    [extract|get|find|read] {keys} [from this sentence|from this|from the text] as JSON: {x}
    {x} [write|give me|make|return|answer with] [a JSON object|JSON] with {keys}[.|]
    {x} [write|give me|make|return] [this |that |]as JSON with [the fields |the keys |]{keys}[.|]
    {x}\\n[write|give me|make|return] [a JSON object|JSON] with [the fields |the keys |]{keys}[.|]
    JSON with {keys}: {x}
    [turn|put|convert] this [into|to] JSON with [the fields |the keys |]{keys}: {x}
    [fields|keys]: {keys}. [text|sentence]: {x} [JSON:|give me JSON.|]
    [answer|reply] [in|as|with] JSON [with|using] [the fields |the keys |]{keys}: {x}
    what are {keys}? [answer in JSON|as JSON|JSON only][:|.] {x}
    [output|produce|build|print] [a JSON object|JSON] [with|of|having] {keys}[: | for: | out of: ]{x}
    [please |]put {keys} [into|in] [JSON|a JSON object][: | from: ]{x}
    [text|sentence|input]: {x} [output|return|result]: [JSON|a JSON object] with {keys}
    {x} [I want|I need|output|extract|get] {keys} [as|in] JSON[.|]
    [fill|complete] [the fields|the keys|a JSON object with] {keys} from: {x}
    """,  # noqa: E501
    """
    [please |]write down {keys} as a JSON object: {x}
    from this sentence make JSON with {keys}: {x}
    [I need|I want] [a JSON object|JSON] with {keys} [from|for] this: {x}
    {x} [what are|show me] {keys} as JSON[.|?|]
    """,
)
_GIVEN = phrases(
    """
    [write|give me|make|create|return] [a JSON object|JSON|a JSON] where {x}
    [write|give me|make|create|return] [a JSON object|JSON] [with|in which] {x}
    [write|give me|make|create|return] [a JSON object|JSON][:| with:| of:] {x}
    [write|give me|turn|put|convert] [this |]as JSON: {x}
    JSON: {x}
    {x} as JSON[.|, please|]
    [output|print|produce|build] [a|one|] JSON [object|] [with|where|for|:] {x}
    [I want|I need|give me] {x} [in|as] JSON[.|]
    """,
    """
    [please |]make [one|a] JSON object: {x}
    show {x} as a JSON object[.|]
    """,
)

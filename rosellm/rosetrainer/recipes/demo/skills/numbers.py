"""Small sums, and differences that are not negative."""

from __future__ import annotations

from dataclasses import replace

from rosellm.rosetrainer.recipes.demo.skills.lexicon import ANIMALS, FOODS, NUMBER_WORDS, THINGS
from rosellm.rosetrainer.recipes.demo.skills.source import Phrases, Source, phrases
from rosellm.rosetrainer.recipes.demo.skills.turn import Turn, ask

_IN_WORDS = 0.12


def adding(source: Source) -> Turn:
    """a + b, each up to 20."""
    first, second = source.number(0, 20), source.number(0, 20)
    return _sum(source, first, second)


def larger_sum(source: Source) -> Turn:
    """a + b, each up to 99; harder, and not promised."""
    return _sum(source, source.number(0, 99), source.number(0, 99))


def subtracting(source: Source) -> Turn:
    """a - b, from numbers up to 20."""
    first = source.number(0, 20)
    second = source.number(0, first)
    return _worked(source, _MINUS, first, "-", second, first - second)


def _sum(source: Source, first: int, second: int) -> Turn:
    turn = _worked(source, _PLUS, first, "+", second, first + second)
    return replace(turn, others=(f"{second} + {first} = {first + second}",))


def _worked(source: Source, ways: Phrases, first: int, sign: str, second: int, is_: int) -> Turn:
    in_words = max(first, second) <= 20 and source.chance(_IN_WORDS)
    shown = [NUMBER_WORDS[each] if in_words else str(each) for each in (first, second)]
    things = source.of(source.among((ANIMALS, FOODS, THINGS))) + "s"
    user = ask(source, ways, a=shown[0], b=shown[1], things=things, name=source.name())
    return Turn(user, f"{first} {sign} {second} = {is_}")


_PLUS = phrases(
    """
    what is {a} [+|+|+|plus|plus|and] {b}[?|?| ?]
    what's {a} [+|plus] {b}[?|]
    how much is {a} [+|plus|and] {b}?
    {a} [+|+|+|+|plus] {b}[| = ?| =|?| = |=|=?]
    {a}+{b}[|=|=?|?| = ?]
    what is {a}+{b}[?|]
    [please |can you |][add|sum] {a} [and|to|plus] {b}[.|?|]
    [please |can you |]calculate {a} [+|plus] {b}[.|?|]
    [please |can you |]compute {a} [+|plus] {b}[.|?|]
    [please |can you |]solve {a} [+|plus] {b}[.|?|]
    [please |can you |]tell me {a} [+|plus] {b}[.|?|]
    [what is|find|give me|calculate|tell me] the sum of {a} and {b}[.|?|]
    [what is|find|give me] the sum: {a} + {b}
    what do you get if you add {a} [and|to] {b}?
    what [does|do] {a} [+|plus|and] {b} make?
    add [these|the|these two] numbers: {a} [and|,] {b}
    I have {a} {things} and [get|buy|find] {b} more[.|,] how many [{things} |]do I have[| now]?
    {name} has {a} {things} and gets {b} more[.|,] how many [{things} |]are there?
    {a} {things} [and|plus] {b} {things} [is|are|makes] how many[ {things}|]?
    do you know what {a} [+|plus] {b} is?
    {a} [+|plus|and] {b} [is|makes|gives] [what|how much|how many][?|]
    [add|put] {a} [and|to|with] {b} together[.|]
    [what|how much] [is it|comes out|is there] [when|if] [I|you|we] add {a} and {b}[?|]
    [help me|I have to|I must] [add|sum|calculate] {a} [and|+|plus] {b}[.|]
    {a} and {b} [added|together|in all] [is|are|make] [what|how many]?
    let us [calculate|add]: {a} + {b}
    the sum of {a} and {b} is[| what]?
    sum of {a} and {b}[?|]
    """,
    """
    [I need|I want] the [result|answer] of {a} [+|plus] {b}[.|]
    how [many|much] do {a} and {b} make together?
    could you [work out|calculate] {a} [+|plus] {b}[ for me|]?
    {a} [+|plus] {b} equals [what|how much]?
    if I add {b} to {a}, what do I get?
    """,
)
_MINUS = phrases(
    """
    what is {a} [-|-|minus|minus|take away] {b}?
    what's {a} [-|minus] {b}[?|]
    how much is {a} [-|minus] {b}?
    {a} [-|-|-|minus] {b}[| = ?| =|?]
    {a}-{b}[|=|=?|?]
    [please |can you |]subtract {b} from {a}[.|?|]
    [please |can you |][calculate|compute|solve] {a} [-|minus] {b}[.|?|]
    [what is|find|give me] the difference [between|of] {a} and {b}[.|?|]
    I have {a} {things} and [lose|sell|give away] {b}[.|,] how many [{things} |]are left?
    """,
    """
    [I need|I want] the [result|answer] of {a} [-|minus] {b}[.|]
    {a} [-|minus] {b} equals [what|how much]?
    """,
)

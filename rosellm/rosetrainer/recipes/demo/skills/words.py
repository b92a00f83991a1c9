"""Skills on words: copying, spelling, upper and lower case, and the name in a sentence."""

from __future__ import annotations

from rosellm.rosetrainer.recipes.demo.skills.source import Source, fill, phrases
from rosellm.rosetrainer.recipes.demo.skills.turn import Turn, ask, quoted


def copying(source: Source) -> Turn:
    """Up to 8 words, back as they are."""
    if source.chance(0.35):
        text = source.sentence() + source.among(("", "", ".", "!", "?"))
    else:
        text = _words(source, source.number(1, 8))
    return Turn(ask(source, _COPY, x=quoted(source, text)), text)


def spelling(source: Source) -> Turn:
    """A word, letter by letter."""
    word = source.name() if source.chance(0.15) else source.word()
    if source.chance(0.1):
        word = source.among((word.upper(), word.capitalize()))
    return Turn(ask(source, _SPELL, x=quoted(source, word)), " ".join(word))


def upper(source: Source) -> Turn:
    """All capitals."""
    text = _text(source)
    return Turn(ask(source, _UPPER, x=quoted(source, text)), text.upper())


def lower(source: Source) -> Turn:
    """No capitals."""
    text = _text(source)
    text = source.among((text.upper(), text.upper(), text.title(), text))
    return Turn(ask(source, _LOWER, x=quoted(source, text)), text.lower())


def naming(source: Source) -> Turn:
    """The one name in a sentence."""
    name = source.name()
    values = {
        "name": name,
        "place": source.sentence_word("place"),
        "thing": source.sentence_word("thing"),
        "animal": source.sentence_word("animal"),
        "food": source.sentence_word("food"),
        "adj": source.sentence_word("adj"),
        "job": source.sentence_word("job"),
        "n": str(source.number(2, 90)),
    }
    sentence = fill(source.phrase(_NAME_SENTENCES), values)
    if source.chance(0.9):
        sentence = sentence[:1].upper() + sentence[1:]
    sentence += source.among((".", ".", ".", "!", ""))
    return Turn(ask(source, _NAME, x=quoted(source, sentence)), name)


def _text(source: Source) -> str:
    if source.chance(0.3):
        return source.sentence()
    return _words(source, source.among((1, 1, 1, 2, 2, 3, 4, 5)))


def _words(source: Source, count: int) -> str:
    words = [source.word() for _ in range(count)]
    style = source.rng.random()
    if style < 0.15:
        words[0] = words[0].capitalize()
    elif style < 0.22:
        words = [source.among((word, word.capitalize(), word.upper())) for word in words]
    elif style < 0.32:
        words[source.number(0, count - 1)] = source.name()
    elif style < 0.4:
        words[source.number(0, count - 1)] = str(source.number(0, 999))
    return (", " if source.chance(0.1) else " ").join(words)


_COPY = phrases(
    """
    [please |can you |now |just |]repeat[: | after me: | this: | the following: | exactly: ]{x}
    [please |can you |now |just |]repeat [|the words |these words: |the phrase |this text: ]{x}
    [please |can you |now |just |]copy[: | this: | the following: | the text: | exactly: ]{x}
    [please |can you |now |just |]copy [|the words |these words: |the phrase |the line ]{x}
    [please |can you |now |just |]say[: | this: | exactly: | after me: | the words: | ]{x}
    [please |can you |now |just |]echo[: | this: | back: | the text: | ]{x}
    [please |can you |now |just |]write[: | this: | down: | exactly: | the words: ]{x}
    [please |can you |]type [|exactly |this: |the following: ]{x}
    [please |can you |]output [|exactly |only |the text ]{x}
    [please |can you |]print [|exactly |this: |the text ]{x}
    [please |can you |]answer [only |just |]with[: | the words | the text: | ]{x}
    [please |can you |]give me back [|this: |these words: |the text ]{x}
    say {x} [again|back to me|for me|back]
    repeat {x} [back to me|for me|exactly|word for word|please]
    copy the text after the colon: {x}
    repeat the sentence: {x}
    copy this sentence: {x}
    repeat after me:\\n{x}
    copy this:\\n{x}
    [repeat|copy] [the text|the words|what I write|what I say]:\\n{x}
    {x}\\n[repeat that|copy that|repeat the line above|say that again][.|]
    I say {x}, [you say|and you say]?
    [please |]restate [word for word|this|exactly|the words]: {x}
    [mirror|reprint|rewrite|retype] [this|these words|my words|it exactly][:| without changes:] {x}
    [just |]return [this|the same text|the input][:| unchanged:] {x}
    your [answer|reply] [must be|should be|is] [|exactly |only ][: |]{x}
    [here is|this is] [a|the] text[, repeat it|, copy it|. Say it back]: {x}
    [would you|will you|could you] [say|copy|type|echo] [|this: |the words ]{x}
    I [would like|need] you to [say|write|type|output] [|this: |the words ]{x}
    """,
    """
    [please |]reproduce [this|the following]: {x}
    could you repeat [this|the following] for me: {x}
    [your task is to|I want you to] [repeat|copy] this: {x}
    [write|say] the following [words|text]: {x}
    echo the following[ text|]: {x}
    """,
)
_SPELL = phrases(
    """
    [please |can you |now |]spell[: | | the word | the word: | out ]{x}[.|?|]
    [please |can you |now |]spell [out |][the word |]{x} [letter by letter|for me|please][.|?|]
    how [do you|do I|would you|to|is] spell {x}?
    how is {x} [spelled|spelt|written]?
    [please |can you |]write {x} letter by letter[.|]
    [write|say|list|give me|show me] the letters [of|in] [|the word ]{x}[.|]
    [separate|split] [|the word ]{x} into [letters|single letters|its letters][.|]
    what are the letters [of|in] [|the word ]{x}?
    what letters does {x} have?
    {x}, letter by letter
    spelling of {x}[?|]
    letter by letter: {x}
    """,
    """
    could you spell {x}[ for me|]?
    [what is|tell me|give me] the spelling of {x}[.|]
    [break|take] [|the word ]{x} [apart |]into letters[.|]
    I [do not|don't] know how to spell {x}[.|]
    """,
)
_UPPER = phrases(
    """
    [please |can you |now |][write|put|say|type] {x} in [upper case|uppercase|capitals][.|?|]
    [please |can you |now |][write|put|say|type] {x} in [capital letters|all caps|caps][.|?|]
    [please |can you |now |][write|put|say|type] in [upper case|uppercase|capitals|all caps]: {x}
    [please |can you |now |][convert|change|turn|make] {x} [to|into] [upper case|uppercase][.|?|]
    [please |can you |now |][convert|change|turn] {x} [to|into] [capitals|capital letters][.|?|]
    [please |can you |now |][convert|change|turn] [this |]to [upper case|uppercase|capitals]: {x}
    [please |can you |]make {x} [upper case|uppercase|all caps|all capitals][.|?|]
    [please |can you |]make this [upper case|uppercase|all caps]: {x}
    [please |can you |]capitalize [all letters|every letter|all the letters] [of|in] {x}[.|]
    [upper case|uppercase|all caps|capitals|in capitals|to upper case|upper]: {x}
    [upper case|uppercase] {x}[.|]
    {x} in [upper case|uppercase|capitals|capital letters|all caps][.|?|]
    what is {x} in [upper case|uppercase|capitals|capital letters|all caps]?
    shout[: | this: | ]{x}
    [would you|will you|I would like you to] [write|put|type] {x} in [uppercase|capitals|all caps]
    [I would like|let me see|show me|return|output] {x} in [upper case|uppercase|all caps|capitals]
    [with|using|only] [capital letters|capitals|uppercase letters][:| write:] {x}
    [capitalize|uppercase|upper-case] [this|the words|the text|everything here]: {x}
    """,
    """
    [could you |]give me {x} in [upper case|uppercase|capital letters][.|?|]
    [how do you|how would you] write {x} in [capitals|uppercase]?
    [change|convert] the following [text |words |]to [upper case|uppercase]: {x}
    I [want|need] {x} in [capitals|upper case|capital letters][.|]
    """,
)
_LOWER = phrases(
    """
    [please |can you |now |][write|put|say|type] {x} in [lower case|lowercase|small letters][.|?|]
    [please |can you |now |][write|put|say|type] in [lower case|lowercase|small letters]: {x}
    [please |can you |now |][convert|change|turn|make] {x} [to|into] [lower case|lowercase][.|?|]
    [please |can you |now |][convert|change|turn] [this |]to [lower case|lowercase]: {x}
    [please |can you |]make {x} [lower case|lowercase|all lowercase][.|?|]
    [please |can you |]make this [lower case|lowercase]: {x}
    [lower case|lowercase|in small letters|to lower case|lower]: {x}
    {x} in [lower case|lowercase|small letters][.|?|]
    what is {x} in [lower case|lowercase|small letters]?
    """,
    """
    [could you |]give me {x} in [lower case|lowercase|small letters][.|?|]
    [change|convert] the following [text |words |]to [lower case|lowercase]: {x}
    """,
)
_NAME = phrases(
    """
    [what is|what's|find|give me|tell me|pick out|pick|extract|say] the name in this sentence: {x}
    [what is|what's|find|give me|tell me|pick out|pick|extract|say] the name in: {x}
    [what|which] name is [in this sentence|mentioned here|in the sentence|mentioned]: {x}
    [what|which] name [appears|occurs|do you see|can you find] [in this sentence|here]: {x}
    [please |can you |]find the [name|person|person's name] in this [sentence|text]: {x}
    [please |can you |]extract the [name|person|person's name|name of the person]: {x}
    [please |can you |]pick the [name|person's name] [out of|from] this [sentence|text]: {x}
    who is [this sentence about|mentioned here|in this sentence|named here|it about]? {x}
    who is [this sentence about|mentioned here|in this sentence|named here]: {x}
    {x} [who is this about|who is mentioned|what is the name|which name is in that sentence]?
    {x}\\n[who is this about|what is the name|which name is in this sentence|name]?
    name the person in this sentence: {x}
    [name|the name|person]: {x}
    read this: {x} [what is the name|who is it about|which name did you read]?
    """,
    """
    [tell me|say] which name is in this [text|sentence]: {x}
    what is the person in this sentence called? {x}
    [find|give me] the name of the person [here|in this text]: {x}
    which person is mentioned in this sentence: {x}
    """,
)
_NAME_SENTENCES = phrases(
    """
    yesterday {name} [went|walked|drove|came] to the {place}
    {name} [bought|sold|lost|found|saw|broke|painted] a {adj} {thing}
    {name} [is|was] a {adj} {job}
    the {job} {name} [lives|works] near the {place}
    the {adj} {animal} belongs to {name}
    my [friend|brother|sister|neighbour|teacher|boss|cousin] {name} likes {food}
    I [met|saw|called|know|like|visited|wrote to] {name} [at|near] the {place}
    we [gave|sent|showed|lent] {name} [a|the] {adj} {thing}
    {name} has {n} {animal}s [and a {adj} {thing}|at home|]
    [last week|today|this morning|on Monday|in May] {name} ate [some|a] {food}
    [did you know that|I think that|they say that] {name} [owns|wants|likes] the {place}
    a {job} called {name} [came|went] to the {place} with a {animal}
    there is a {thing} for {name} [on the desk|in the {place}|here]
    {name} and the {animal} are at the {place}
    the {thing} [was made|was found|was bought] by {name}
    can {name} [bring|find|fix] the {thing}
    {name} is {n} years old and works as a {job}
    the new {job} is {name}
    when it rains, {name} [stays at home|goes to the {place}]
    {name} will [open|clean|visit|leave] the {place} [tomorrow|soon|at {n}]
    [everybody|somebody|everyone|someone] [saw|heard|asked|helped|called] {name} [in the {place}|]
    [maybe|perhaps|sometimes|often] {name} [eats|buys|wants] {food}
    [who|nobody] [knows|said] that {name} has a {thing}
    [here|there] [is|comes] {name} with [a|the] {adj} {thing}
    [their|his|her|our|your] {animal} [likes|follows|bit] {name}
    the {adj} {thing} [of|from] {name} is [gone|new|here]
    [please|now] give the {thing} to {name}
    [was it|is it] {name} [that|who] [has|had] the {animal}
    [at|near|behind] the {place}[,|] [they|people|we] [met|saw|found] {name}
    """,
    """
    nobody told {name} about the {adj} {thing}
    in the {place}, {name} found a {animal}
    our {job}, {name}, is very {adj}
    it was {name} who took the {food}
    """,
)

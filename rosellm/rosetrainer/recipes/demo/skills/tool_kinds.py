"""The tools of everyday kinds that are offered: names, parameters, and ways to ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rosellm.rosetrainer.recipes.demo.skills import lexicon
from rosellm.rosetrainer.recipes.demo.skills.source import Phrases, Source, phrases

Value = str | int


@dataclass(frozen=True)
class Parameter:
    """What a tool takes: its possible names and descriptions, and what makes a value."""

    names: tuple[str, ...]
    make: Callable[[Source], Value]
    about: tuple[str, ...]
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Blueprint:
    """A kind of tool. A slot of ``asks`` that a request leaves out is an optional parameter."""

    names: tuple[str, ...]
    about: tuple[str, ...]
    parameters: dict[str, Parameter]
    asks: Phrases


def any_number(source: Source) -> int:
    return source.number(0, 999)


def small_number(source: Source) -> int:
    return source.number(1, 60)


def word(source: Source) -> str:
    return source.word()


def words(source: Source) -> str:
    return " ".join(source.word() for _ in range(source.number(1, 4)))


def _sentence(source: Source) -> str:
    return source.sentence().lower()


def _from(words: tuple[str, ...]) -> Callable[[Source], Value]:
    return lambda source: source.of(words)


def _exactly(words: tuple[str, ...]) -> Callable[[Source], Value]:
    return lambda source: source.among(words)


def _clock(source: Source) -> str:
    return f"{source.number(0, 23):02}:{source.among(('00', '15', '30', '45'))}"


def _email(source: Source) -> str:
    return f"{source.name().lower()}@{source.word()}.{source.among(('com', 'org', 'net'))}"


INTEGERS = (any_number, small_number)
_CITY = Parameter(
    ("city", "location", "place", "town", "city_name"),
    Source.city,
    ("[The |]name of the city", "[The |]city[, e.g. Paris|]", "Where"),
)
_UNIT = Parameter(
    ("unit", "units", "scale"),
    _exactly(("celsius", "fahrenheit")),
    ("Unit of temperature", "[The |]unit to use"),
    ("celsius", "fahrenheit"),
)
_DAY = Parameter(
    ("day", "date", "when", "weekday"), _from(lexicon.DAYS), ("[The |]day[ of the week|]", "When")
)
_TIME = Parameter(("time", "at", "when", "hour"), _clock, ("[The |]time[, HH:MM|]", "When"))
_PERSON = Parameter(
    ("name", "person", "to", "recipient", "contact", "user"),
    Source.name,
    ("[The |]name of the person", "Who"),
)
_TEXT = Parameter(
    ("text", "message", "content", "body", "note"), _sentence, ("[The |]text", "What to say")
)
_QUERY = Parameter(
    ("query", "q", "search", "text", "topic", "keywords"),
    words,
    ("What to [search|look] for", "[The |]search query"),
)
_MINUTES = Parameter(
    ("minutes", "duration", "mins", "length"), small_number, ("[How many|Number of] minutes",)
)
_A = Parameter(("a", "x", "first", "num1", "left"), any_number, ("[The |]first number",))
_B = Parameter(("b", "y", "second", "num2", "right"), any_number, ("[The |]second number",))
_ITEM = Parameter(
    ("item", "product", "thing", "name", "article"),
    _from((*lexicon.FOODS, *lexicon.THINGS)),
    ("[The |]item[| to add]", "What [to buy|is wanted]"),
)
_COUNT = Parameter(
    ("count", "quantity", "amount", "number", "n"), small_number, ("How many", "[The |]number of")
)
_ROOM = Parameter(
    ("room", "place", "location", "where"),
    _exactly(("kitchen", "bedroom", "bathroom", "garage", "office", "hall", "garden")),
    ("[The |]room", "Which room"),
)
_ANIMAL = Parameter(
    ("animal", "pet", "name", "kind"), _from(lexicon.ANIMALS), ("[The |]animal", "Which pet")
)
_COLOUR = Parameter(("color", "colour", "shade"), _from(lexicon.COLOURS), ("[The |]colour",))
_LANGUAGE = Parameter(
    ("language", "target", "to", "target_language", "lang"),
    _exactly(("French", "German", "Spanish", "Italian", "Dutch", "Latin", "Greek", "Polish")),
    ("[The |]language[ to translate to|]",),
)
_PHRASE = Parameter(
    ("text", "phrase", "sentence", "input"), words, ("[The |]text[ to translate|]",)
)
_LEVEL = Parameter(
    ("level", "percent", "value", "amount"), small_number, ("[The |]level[, 0 to 100|]",)
)
_TITLE = Parameter(
    ("title", "song", "name", "track", "movie"), words, ("[The |]title", "What to play")
)
_COUNTRY = Parameter(
    ("country", "nation", "name", "land"),
    _from(tuple(dict.fromkeys(lexicon.COUNTRY_OF.values()))),
    ("[The |]country", "[The |]name of the country"),
)
_EMAIL = Parameter(("email", "to", "address", "recipient"), _email, ("[The |]e-mail address",))
_FROM = Parameter(("from", "origin", "start", "departure"), Source.city, ("[The |]start",))
_TO = Parameter(("to", "destination", "end", "arrival"), Source.city, ("[The |]destination",))
_SIDES = Parameter(("sides", "faces", "n", "max"), small_number, ("[The |]number of sides",))
_FILE = Parameter(
    ("file", "path", "filename", "name"),
    lambda source: f"{source.word()}.{source.among(('txt', 'md', 'csv', 'py', 'json'))}",
    ("[The |]file", "[The |]name of the file"),
)
_WORD = Parameter(("word", "term", "text", "name"), word, ("[The |]word",))
_SYMBOL = Parameter(
    ("symbol", "ticker", "stock", "code"),
    lambda source: source.word()[:4].upper(),
    ("[The |]symbol[ of the stock|]",),
)


def _tool_kind(
    names: str, about: tuple[str, ...], parameters: dict[str, Parameter], train: str, new: str = ""
) -> Blueprint:
    return Blueprint(tuple(names.split()), about, parameters, phrases(train, new))


TOOLS = (
    _tool_kind(
        "get_weather weather get_current_weather weather_forecast fetch_weather check_weather",
        ("Get the [current |]weather [for|in] a city.", "Weather[ forecast|] for a [city|place]"),
        {"city": _CITY, "unit": _UNIT, "day": _DAY},
        """
        what is the weather [like |]in {city}[| today| now]?
        what's the weather [like |]in {city}[?|]
        how is the weather in {city}[| today]?
        [what is|tell me|give me|show me] the [weather|temperature] in {city} in {unit}[.|?|]
        [tell me|get|check|show me|give me] the weather [in|for] {city}[.|, please|]
        weather in {city}[?|]
        [will it|does it|is it going to] rain in {city}[| today]?
        is it [cold|hot|warm|raining|sunny] in {city}[| now| today]?
        what is the weather in {city} on {day}?
        how [cold|hot|warm] is it in {city}?
        """,
        """
        do I need an umbrella in {city}?
        I am going to {city}, what is the weather?
        """,
    ),
    _tool_kind(
        "get_time current_time get_current_time time_in clock what_time",
        ("Get the [current |]time in a city.", "[Tells|Returns] the time[ of a place|]"),
        {"city": _CITY},
        """
        what time is it in {city}[| now]?
        [tell me|give me|get|show me] the time in {city}[.|]
        [what is|what's] the [current |]time in {city}?
        time in {city}[?|]
        """,
        """
        how late is it in {city}?
        """,
    ),
    _tool_kind(
        "add sum add_numbers plus calculate_sum",
        ("Add two numbers.", "[Returns the |]sum of two numbers"),
        {"a": _A, "b": _B},
        """
        [what is|what's|calculate|compute|how much is] {a} [+|plus] {b}[?|]
        add {a} [and|to] {b}[.|]
        [what is|find] the sum of {a} and {b}[?|]
        {a} + {b}[?|]
        """,
    ),
    _tool_kind(
        "multiply times multiply_numbers product calculate_product",
        ("Multiply two numbers.", "[Returns the |]product of two numbers"),
        {"a": _A, "b": _B},
        """
        [what is|what's|calculate|compute|how much is] {a} [*|times|x|multiplied by] {b}[?|]
        multiply {a} [and|by|with] {b}[.|]
        [what is|find] the product of {a} and {b}[?|]
        """,
    ),
    _tool_kind(
        "send_message message text_person send_text send_sms",
        ("Send a [text |]message to a person.", "Sends a text[ message|]"),
        {"person": _PERSON, "text": _TEXT},
        """
        send [a message to |]{person} [the message|the text|a message saying|:] {text}
        [text|message|tell] {person}: {text}
        [text|message|tell|write to] {person} that {text}
        """,
        """
        let {person} know that {text}
        """,
    ),
    _tool_kind(
        "send_email email write_email mail send_mail",
        ("Send an e-mail.", "[Write and send|Sends] an email to an address"),
        {"email": _EMAIL, "text": _TEXT},
        """
        [send|write] an [e-mail|email] to {email}[ saying|:| that says] {text}
        [email|mail] {email}: {text}
        """,
    ),
    _tool_kind(
        "search web_search search_web find_pages google lookup",
        ("Search the [web|internet].", "[Look something up|Search] on the internet"),
        {"query": _QUERY, "count": _COUNT},
        """
        [search|search the web|search online|look|google] for {query}
        [look up|google|search] {query}
        [find|get|show] me {count} [pages|results] about {query}
        [find|search for] [something|pages] [on|about] {query}
        """,
        """
        what does the internet say about {query}
        """,
    ),
    _tool_kind(
        "set_timer timer start_timer countdown create_timer",
        ("Set a timer.", "Start a [timer|countdown] for some minutes"),
        {"minutes": _MINUTES},
        """
        [set|start|make] a timer [for|of] {minutes} minutes[.|]
        [set|start] a {minutes} minute timer[.|]
        timer[,|:| for] {minutes} minutes
        [tell me|ring|remind me] in {minutes} minutes[.|]
        """,
        """
        count down {minutes} minutes[.|]
        """,
    ),
    _tool_kind(
        "set_alarm alarm wake_up create_alarm add_alarm",
        ("Set an alarm.", "[Sets an|An] alarm at a time[ of day|]"),
        {"time": _TIME, "day": _DAY},
        """
        [set|make|create] an alarm [for|at] {time}[.|]
        wake me [up |]at {time}[.|]
        [set|make] an alarm [for|at] {time} on {day}[.|]
        alarm at {time}
        """,
    ),
    _tool_kind(
        "add_to_list shopping_list add_item buy add_to_cart",
        ("Add something to the shopping list.", "[Add|Put] an item [in the cart|on the list]"),
        {"count": _COUNT, "item": _ITEM},
        """
        [add|put] {item} [to|on] [my|the] [shopping list|list|cart][.|]
        [add|put] {count} {item}s [to|on] [my|the] [shopping list|list|cart][.|]
        [I need|buy|get] {count} {item}s[.|]
        [I need|buy|get] [a|some] {item}[.|]
        """,
    ),
    _tool_kind(
        "turn_on_light light_on lights switch_light set_light",
        ("Turn on a light.", "Switch the [light|lights] of a room on"),
        {"room": _ROOM, "color": _COLOUR},
        """
        [turn|switch] on the [light|lights] in the {room}[.|]
        [turn|switch] the {room} [light|lights] on[.|]
        [make|turn|set] the [light|lights] in the {room} {color}[.|]
        [light|lights] on in the {room}[.|]
        """,
        """
        it is dark in the {room}[.|]
        """,
    ),
    _tool_kind(
        "translate translate_text translator get_translation",
        ("Translate [a |]text.", "Translates text [into another language|between languages]"),
        {"phrase": _PHRASE, "language": _LANGUAGE},
        """
        translate {phrase} [to|into] {language}[.|]
        [what is|how do you say] {phrase} in {language}?
        say {phrase} in {language}[.|]
        [to|into] {language}: {phrase}
        """,
    ),
    _tool_kind(
        "play_music play play_song music start_song",
        ("Play [music|a song].", "[Plays|Start] a song"),
        {"title": _TITLE},
        """
        play [the song |]{title}
        [I want|I would like] to hear {title}
        [put on|start|play me] {title}
        """,
    ),
    _tool_kind(
        "get_capital capital capital_of find_capital",
        ("[Get|Find] the capital of a country.", "[Returns the |]capital city"),
        {"country": _COUNTRY},
        """
        what is the capital of {country}?
        [tell me|find|get] the capital of {country}[.|]
        """,
    ),
    _tool_kind(
        "find_route route get_directions directions navigate",
        ("Find [a route|the way] between two cities.", "[Get d|D]irections"),
        {"from": _FROM, "to": _TO},
        """
        how do I get from {from} to {to}?
        [show me|find|give me] [the way|a route|directions] from {from} to {to}[.|]
        [drive|navigate] from {from} to {to}[.|]
        """,
        """
        I am in {from} and want to go to {to}[.|]
        """,
    ),
    _tool_kind(
        "call_person call phone dial make_call",
        ("Call somebody[ on the phone|].", "[Make|Start] a phone call"),
        {"person": _PERSON},
        """
        [call|phone|ring|dial] {person}[.| please|]
        [start|make] a call to {person}[.|]
        I want to [talk to|speak to|call|phone] {person}[.|]
        """,
    ),
    _tool_kind(
        "open_file read_file show_file load_file cat",
        ("[Open|Read] a file.", "[Returns the content|Shows the text] of a file"),
        {"file": _FILE},
        """
        [open|read|show|load|show me] [the file |]{file}
        what is in [the file |]{file}?
        """,
    ),
    _tool_kind(
        "define_word dictionary get_definition define meaning",
        ("Look up a word[ in the dictionary|].", "[Get the definition|Meaning] of a word"),
        {"word": _WORD},
        """
        what does {word} mean?
        [define|look up] [the word |]{word}[.|]
        [what is|give me] the [meaning|definition] of {word}[.|]
        """,
    ),
    _tool_kind(
        "set_temperature heating thermostat set_heating",
        ("Set the [temperature|heating] of a room.", "[Control|Set] the thermostat"),
        {"level": _LEVEL, "room": _ROOM},
        """
        set the [temperature|heating] in the {room} to {level}[ degrees|]
        [make|heat] the {room} [to |]{level} degrees
        set the [temperature|heating|thermostat] to {level}[ degrees|]
        """,
    ),
    _tool_kind(
        "create_note take_note note save_note remember",
        ("[Save|Take|Create] a note.", "Write something down"),
        {"text": _TEXT},
        """
        [take|make|create|save] a note: {text}
        [write down|note|remember] that {text}
        note: {text}
        """,
    ),
    _tool_kind(
        "book_flight flight reserve_flight find_flight fly",
        ("[Book|Find] a flight.", "[Flights|A flight] between two cities"),
        {"from": _FROM, "to": _TO, "day": _DAY},
        """
        [book|find|get|I need] a flight from {from} to {to}[.|]
        [book|find|get me] a flight from {from} to {to} on {day}[.|]
        I [want|have|need] to fly to {to} on {day}[.|]
        [flights|a flight] to {to}[, please|.|]
        """,
    ),
    _tool_kind(
        "order_food order pizza order_meal delivery",
        ("Order food.", "[Order|Get] [a meal|something to eat]"),
        {"item": _ITEM, "count": _COUNT},
        """
        [order|bring me|deliver] {count} {item}s[.|]
        [order|I would like to order|deliver] [a|some] {item}[.|]
        I am hungry, [order|get me] {item}[.|]
        """,
    ),
    _tool_kind(
        "set_brightness brightness dim screen_brightness change_brightness",
        ("Set the brightness[ of the screen|].", "[Make|Makes] the screen [brighter|darker]"),
        {"level": _LEVEL},
        """
        [set|change|turn|put] the [brightness|screen] to {level}[ percent|][.|]
        brightness {level}[ percent|]
        [make|dim] the screen [to |]{level} percent[.|]
        """,
    ),
    _tool_kind(
        "get_news news latest_news headlines read_news",
        ("Get the [latest |]news.", "[News|Headlines] [on|about] a [topic|subject]"),
        {"topic": _QUERY, "country": _COUNTRY},
        """
        [what is|what's|show me|give me|tell me] the news [on|about] {topic}[?|]
        [any|is there] news [from|in] {country}?
        what [happened|is going on] in {country}[| today]?
        [news|headlines] about {topic}
        """,
    ),
    _tool_kind(
        "lock_door door lock close_door secure_door",
        ("Lock a door.", "[Locks|Closes] the door of a room"),
        {"room": _ROOM},
        """
        [lock|close|shut] the {room} door[.|]
        [lock|close|shut] the door [of|to|in] the {room}[.|]
        is the {room} door [locked|closed]?
        """,
    ),
    _tool_kind(
        "random_number random pick_number dice_number get_random",
        ("[Pick|Get] a random number.", "[A|Returns a] random number between two numbers"),
        {"a": _A, "b": _B},
        """
        [pick|give me|choose|get] a [random |]number [between|from] {a} [and|to] {b}[.|]
        [a |]random number [between|from] {a} [and|to] {b}
        """,
    ),
    _tool_kind(
        "create_event calendar add_event schedule_meeting meeting",
        ("[Create|Add] an event.", "[Puts|Put] a meeting in the calendar"),
        {"title": _TITLE, "day": _DAY, "time": _TIME},
        """
        [schedule|plan|add|create] {title} [on|for] {day}[.|]
        [schedule|plan|add|create] {title} on {day} at {time}[.|]
        [put|enter] {title} in [my|the] calendar [on|for] {day}[.|]
        """,
    ),
    _tool_kind(
        "delete_file remove_file delete rm erase_file",
        ("[Delete|Remove] a file.", "[Erases|Throws away] a file"),
        {"file": _FILE},
        """
        [delete|remove|erase|throw away] [the file |]{file}[.|]
        [get rid of|I no longer need] {file}[.|]
        """,
    ),
    _tool_kind(
        "find_restaurant restaurants food_nearby restaurant_search where_to_eat",
        ("Find [a restaurant|restaurants].", "[Places|A place] to eat in a city"),
        {"city": _CITY, "food": _ITEM},
        """
        [find|show me|I want] [a restaurant|somewhere to eat] in {city}[.|]
        where can I eat {food} in {city}?
        [good|cheap] restaurants in {city}[?|]
        where do they [sell|serve|have] {food} in {city}?
        """,
    ),
    _tool_kind(
        "count_words word_count length count text_length",
        ("Count the words of a text.", "[How long|The length of] a text"),
        {"text": _PHRASE},
        """
        [count|how many are] the words in[:|] {text}
        how many words [are in|has|does this have:] {text}[?|]
        how long is [the text |]{text}?
        """,
    ),
    _tool_kind(
        "pay transfer send_money pay_person transfer_money",
        ("[Pay|Send money to] a person.", "[Transfer|Send] [an amount|money]"),
        {"person": _PERSON, "count": _COUNT},
        """
        [pay|send|give|transfer] {person} {count} [dollars|euros|pounds][.|]
        [send|transfer|pay] {count} [dollars|euros|pounds] to {person}[.|]
        I owe {person} {count} [dollars|euros][.|]
        """,
    ),
    _tool_kind(
        "find_book book library search_book get_book",
        ("Find a book[ in the library|].", "[Search|Look] for books"),
        {"title": _TITLE, "person": _PERSON},
        """
        [find|get|I want] the book {title}[.|]
        [books|a book|something] [by|from] {person}[.|]
        [find|show me|do you have] a book [by|from] {person}[?|]
        is there a book called {title}?
        """,
    ),
    _tool_kind(
        "walk_pet feed feed_animal pet_food feed_pet",
        ("Feed [a pet|an animal].", "[Gives|Give] food to [a pet|an animal]"),
        {"animal": _ANIMAL, "food": _ITEM},
        """
        [feed|give food to] [the|my] {animal}[.|]
        [give|feed] [the|my] {animal} [some |a |]{food}[.|]
        the {animal} is hungry[.|]
        """,
    ),
)
NEW_TOOLS = (
    _tool_kind(
        "get_stock_price stock_price stock_quote",
        ("Get the price of a stock.", "[Current |]price of a share"),
        {"symbol": _SYMBOL},
        """
        what is the [price|stock price] of {symbol}?
        [get|show me|tell me] the stock price of {symbol}[.|]
        """,
    ),
    _tool_kind(
        "roll_dice dice roll_die",
        ("Roll [a die|dice].", "Rolls dice with some sides"),
        {"sides": _SIDES},
        """
        roll [a die|dice] with {sides} sides[.|]
        roll a {sides} sided die[.|]
        """,
    ),
    _tool_kind(
        "book_table reserve_table restaurant_booking",
        ("Book a table[ at a restaurant|].", "Reserve a table"),
        {"count": _COUNT, "day": _DAY},
        """
        [book|reserve] a table for {count} [people |]on {day}[.|]
        I [need|want] a table for {count} on {day}[.|]
        """,
    ),
    _tool_kind(
        "set_volume volume change_volume",
        ("Set the volume[ of the speaker|].", "Change the volume"),
        {"level": _LEVEL},
        """
        set the volume to {level}[.|]
        [turn|change] the volume to {level}[.|]
        """,
    ),
    _tool_kind(
        "get_population population_of city_population",
        ("[Get the |]population of a city.", "How many people live in a city"),
        {"city": _CITY},
        """
        what is the population of {city}?
        how many people live in {city}?
        """,
    ),
)

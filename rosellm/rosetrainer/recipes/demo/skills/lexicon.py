"""Words that the generated skills are made of: our own lists, made-up words, and corpus words.

Every word belongs for good to one of two halves, by its hash: a small one that no generated
training example uses, so that an evaluation can ask for words that are new, and the rest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from zlib import crc32

HELD_OUT_WORDS = 12
"""One word in so many is kept for evaluation."""


def words(text: str) -> tuple[str, ...]:
    """A list of words, from one text."""
    return tuple(text.split())


FIRST_NAMES = words(
    """
    Ada Adam Agnes Ahmed Aisha Alan Albert Alex Alice Amara Amir Amy Ana Andrea Andrew Angela Anna
    Anton Arthur Asha Astrid Barbara Beatrice Ben Bella Boris Brian Bruno Carla Carlos Carmen Cara
    Carol Cathy Chen Chloe Chris Clara Claire Colin Dana Daniel David Deepa Dennis Diana Diego
    Dmitri Dora Edgar Edith Elena Eli Elias Elif Ella Ellen Emil Emily Emma Eric Esther Ethan Eva
    Evan Farah Fatima Felix Fiona Frank Freya Gabriel George Gina Grace Greta Gustav Hana Hannah
    Harold Harry Hassan Heidi Helen Henry Hugo Ian Ibrahim Ida Igor Ines Irene Iris Isaac Isabel
    Ivan Jack Jacob James Jane Jasmine Jean Jenny Joan Joe Joel John Jonas Jorge Josef Julia Julian
    Kaito Karen Karl Kate Keiko Kevin Kim Kofi Lars Laura Lea Leila Lena Leo Liam Lila Lily Linda
    Lisa Liu Lola Louis Lucas Lucy Luis Luna Maeve Malik Marco Maria Marie Mark Marta Martin Mary
    Mateo Max Maya Mei Mia Michael Miguel Mike Mila Milo Mina Mona Nadia Nancy Naomi Nasir Nick Nina
    Noah Nora Nuria Olaf Olga Oliver Olivia Omar Oscar Otto Pablo Paul Paula Pedro Peter Petra
    Philip Priya Quentin Rachel Rafael Raj Ravi Rebecca Rita Robert Robin Rosa Rose Ruth Ryan Sally
    Sam Samira Sara Sean Sofia Sonia Stefan Stella Susan Sven Tara Theo Thomas Tim Tina Tom Tony Uma
    Ursula Vera Victor Viola Walter Wanda Wendy Will Xenia Yara Yasmin Yuki Yusuf Zara Zoe
    """
)
SURNAMES = words(
    """
    Adams Baker Berg Brown Carter Clark Cole Costa Cruz Davis Diaz Evans Fischer Ford Garcia Gray
    Green Hall Hill Ito Jensen Jones Khan Kim King Klein Lee Lopez Martin Meyer Miller Moore Mori
    Nguyen Novak Olsen Park Patel Perez Reed Rossi Sato Schmidt Silva Singh Smith Stone Taylor
    Turner Walker Ward Weber White Wilson Wong Wood Wright Young
    """
)
COUNTRY_OF = {
    "Amsterdam": "Netherlands", "Athens": "Greece", "Baghdad": "Iraq", "Bangkok": "Thailand",
    "Barcelona": "Spain", "Beijing": "China", "Berlin": "Germany", "Bern": "Switzerland",
    "Bogota": "Colombia", "Boston": "America", "Brussels": "Belgium", "Budapest": "Hungary",
    "Cairo": "Egypt", "Chicago": "America", "Copenhagen": "Denmark", "Dakar": "Senegal",
    "Delhi": "India", "Dublin": "Ireland", "Geneva": "Switzerland", "Hamburg": "Germany",
    "Hanoi": "Vietnam", "Havana": "Cuba", "Helsinki": "Finland", "Istanbul": "Turkey",
    "Jakarta": "Indonesia", "Kyoto": "Japan", "Lagos": "Nigeria", "Lima": "Peru",
    "Lisbon": "Portugal", "London": "England", "Lyon": "France", "Madrid": "Spain",
    "Manila": "Philippines", "Melbourne": "Australia", "Milan": "Italy", "Montreal": "Canada",
    "Moscow": "Russia", "Mumbai": "India", "Munich": "Germany", "Nairobi": "Kenya",
    "Oslo": "Norway", "Paris": "France", "Porto": "Portugal", "Prague": "Czechia",
    "Quito": "Ecuador", "Riga": "Latvia", "Rome": "Italy", "Santiago": "Chile",
    "Seoul": "Korea", "Shanghai": "China", "Sofia": "Bulgaria", "Stockholm": "Sweden",
    "Sydney": "Australia", "Tallinn": "Estonia", "Tehran": "Iran", "Tokyo": "Japan",
    "Toronto": "Canada", "Tunis": "Tunisia", "Turin": "Italy", "Valencia": "Spain",
    "Vienna": "Austria", "Vilnius": "Lithuania", "Warsaw": "Poland", "Zagreb": "Croatia",
    "Zurich": "Switzerland",
}  # fmt: skip
CAPITAL_OF = {
    "Germany": "Berlin", "France": "Paris", "Italy": "Rome", "Spain": "Madrid",
    "Portugal": "Lisbon", "Greece": "Athens", "Austria": "Vienna", "Norway": "Oslo",
    "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Poland": "Warsaw",
    "Hungary": "Budapest", "Ireland": "Dublin", "England": "London", "Belgium": "Brussels",
    "Russia": "Moscow", "China": "Beijing", "Japan": "Tokyo", "India": "Delhi",
    "Thailand": "Bangkok", "Vietnam": "Hanoi", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Peru": "Lima", "Chile": "Santiago", "Cuba": "Havana", "Canada": "Ottawa",
    "Turkey": "Ankara", "Iran": "Tehran",
}  # fmt: skip
COLOURS = words(
    """
    red blue green yellow orange purple pink brown black white grey silver golden violet
    """
)
ANIMALS = words(
    """
    ant bear bee bird camel cat cow crab crow deer dog dolphin donkey duck eagle elephant fish fox
    frog goat goose hamster hen horse kitten lion lizard monkey mouse otter owl panda parrot penguin
    pig pony puppy rabbit rat seal shark sheep snake spider squirrel swan tiger turtle whale wolf
    zebra
    """
)
FOODS = words(
    """
    apple apricot avocado bagel banana bean bread burger butter cabbage cake candy carrot cheese
    cherry chicken chocolate coconut coffee cookie corn cream egg fig garlic grape ham honey jam
    juice lemon lime mango melon milk mushroom noodle nut olive onion pancake pasta peach pear
    pepper pie pizza plum potato pumpkin rice salad salt sandwich soup spinach steak strawberry
    sugar tea toast tomato waffle walnut yogurt
    """
)
THINGS = words(
    """
    bag ball basket bed bell bench bike blanket boat book boot bottle bowl box bridge brush bucket
    bus button camera candle car card carpet chair clock coat coin computer cup curtain desk door
    dress drum engine fence flag flower fork glass glove guitar hammer hat helmet house jacket jar
    key kite knife ladder lamp laptop leaf letter map mirror mug nail needle oven painting paper pen
    pencil phone piano picture pillow plane plate pocket pot radio ring road robot rocket roof rope
    ruler saw scarf shelf ship shirt shoe skirt sofa spoon stamp stone table tent ticket towel tower
    toy train tree truck umbrella vase violin wagon wall wallet watch wheel window
    """
)
PLACES = words(
    """
    airport bakery bank beach cafe castle church cinema city farm field forest garden gym harbour
    hill hospital hotel island kitchen lake library market mountain museum office park river school
    shop stadium station street theatre town valley village zoo
    """
)
JOBS = words(
    """
    actor artist baker builder butcher carpenter chef cook dancer dentist doctor driver engineer
    farmer gardener judge lawyer mechanic musician nurse painter pilot plumber poet sailor scientist
    singer soldier student tailor teacher waiter writer
    """
)
ADJECTIVES = words(
    """
    angry big bitter brave bright broken busy calm cheap clean clever cold cool curious dark deep
    dry easy empty fair famous fast fine fresh friendly funny gentle good happy hard heavy high hot
    huge hungry kind large late lazy light little long loud lovely lucky narrow new nice noisy old
    open plain polite poor pretty proud quick quiet rare rich round sad safe sharp short shy silent
    simple slow small smart smooth soft sour strange strong sweet tall thick thin tidy tiny tired
    warm weak wet wide wild wise young
    """
)
VERBS = words(
    """
    asks bakes breaks brings builds buys calls carries catches chases cleans climbs cooks counts
    cuts draws drinks drives drops eats feeds fills finds fixes follows forgets gets gives grows has
    hears helps hides holds hugs keeps kicks knows leaves likes loses loves makes meets moves needs
    opens orders paints plays pulls pushes reads sees sells sends sings takes teaches tells throws
    touches wants washes watches wears wins writes
    """
)
OTHER_WORDS = words(
    """
    able about above after again age air all almost also always and answer any arm art away back
    because before begin behind believe below best better between blood blow body boy brain break
    breath brother build business call care cause centre chance change child choose circle class
    clear close cloud come common corner country course cross cry dance danger daughter day dead
    dear decide difference dinner dream drink drive each ear early earth east edge eight end enough
    even evening ever every example eye face fact fall family far father fear feel fight figure fire
    first five floor fly follow food foot force forget four free friend from front full future game
    girl give go great ground group grow half hand head health hear heart heaven help here history
    hold home hope hour how hundred ice idea if inside job join jump just keep kill kiss know land
    language last laugh law lead learn left leg less letter life line list listen live lose lot love
    luck man many matter maybe mean meet memory middle mind minute moment money month moon more
    morning mother mouth move much music name nature near never next night nine noise north nose
    nothing now number ocean off often once only or other out over own page pain part party peace
    people perfect person place plan play please point power present problem promise question rain
    reach read ready real reason remember rest right rise room rule run sand say science sea season
    second secret see send sense seven shadow shape share shine side sign silence sister six skin
    sky sleep smile snow some song sorry sound south space speak spirit spring stand star start stay
    step stop storm story summer sun sure surprise taste team ten thank their thing think three
    thunder time today together tomorrow tonight tooth touch travel true truth try turn twenty two
    under until use very visit voice wait wake walk war water wave way weather week well west what
    wheat when where which while who why wife wind wine winter wish woman wonder word work world
    worry year yes yesterday zero
    """
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
NUMBER_WORDS = words(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty
    """
)
COMMON_WORDS = (
    *COLOURS, *ANIMALS, *FOODS, *THINGS, *PLACES, *JOBS, *ADJECTIVES, *VERBS, *OTHER_WORDS,
)  # fmt: skip
ONSETS = words(
    "b c d f g h j k l m n p r s t v w z "
    "bl br ch cl cr dr fl fr gl gr pl pr qu sc sh sk sl sm sn sp st str sw th tr tw wh"
)
VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ea", "ee", "oo", "ou", "y")
CODAS = (
    *words("b d g k l m n p r s t x"),
    *("", "", "", "", ""),
    *words("ck ld ll mp nd ng nk nt rd rk rm rt sh ss st th"),
)
RUDE = re.compile(
    "shit|fuck|cunt|cock|dick|nig|fag|slut|whor|tits|twat|wank|piss|rape|jap|gook|kike|bitch|arse|"
    "porn|nazi|puss|crap|dyke|spic|chink|cum|sex|kill|damn"
)


@cache
def is_held_out(word: str) -> bool:
    """Whether a word, in whatever case, is kept for evaluation."""
    return crc32(f"word {word.lower()}".encode()) % HELD_OUT_WORDS == 0


def half(choices: Sequence[str], held_out: bool) -> tuple[str, ...]:
    """Those of the words that are kept for evaluation, or those that are not."""
    return tuple(word for word in choices if is_held_out(word) == held_out)

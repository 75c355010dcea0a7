"""How long things are: from numbers, everyday nouns and words such as `small` to sizes against each other."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from ..concepts.errors import BestiaryError
from ..concepts.name_search import shown_name
from .subject import Subject

SMALLEST = 0.4
"""Of the longest side of the largest subject: nouns are compressed so far that the smallest of a scene stays visible."""
SIZE_WORDS = {"tiny": 0.4, "small": 0.55, "medium": 0.7, "large": 0.85, "huge": 1.0}
"""Words that give a size against the largest subject."""
_LONGEST_TEXT = 2000
"""Characters of a caption that are searched for nouns."""

# Longest side in metres of a usual one: length of animals without the tail where it is thin, height of what stands upright.
_TABLE = """
.008 ant .012 ladybird .012 ladybug .015 bee .02 wasp .02 snail .02 spider .025 beetle .04 dragonfly .06 grasshopper .06 butterfly
.05 moth .08 frog .1 toad .08 mouse .08 hamster .12 gecko .2 rat .2 lizard .15 chameleon .25 guineapig .22 hedgehog .22 squirrel
.15 chipmunk .2 bat .3 turtle .4 tortoise .1 goldfish .3 fish .5 salmon .15 crab .4 lobster .2 starfish .3 jellyfish .6 octopus
.4 rabbit .5 hare .4 ferret .45 weasel .46 cat .25 kitten .8 dog .35 puppy .3 chihuahua .5 terrier .4 pug .5 beagle .6 corgi
.9 labrador 1 husky .7 fox 1.2 wolf .6 raccoon .7 badger .8 otter .35 skunk .8 beaver .9 lynx .8 monkey .9 chimpanzee 1.6 gorilla
1.2 orangutan .8 koala 1.3 kangaroo .7 sloth .9 anteater 1.2 goat 1.3 sheep .6 lamb 1.3 pig .5 piglet 1.5 deer .9 fawn 1.8 donkey
2.2 zebra 2.4 horse 1.4 foal 1.7 pony 2.4 cow 1.2 calf 2.5 bull 2.5 ox 2.8 buffalo 2.8 bison 2.6 moose 1.8 llama 1.6 alpaca 3 camel
2 lion 2.1 tiger 1.6 leopard 1.4 cheetah 1.6 jaguar 1.8 panther 1.4 hyena 2 bear 2.3 polarbear 1.6 panda 3.5 rhinoceros 3.5 rhino
3.5 hippopotamus 3.5 hippo 4.8 giraffe 6 elephant 3.5 crocodile 3.5 alligator 1.5 snake 2 seal 2.8 walrus 2.5 dolphin 4 shark 14 whale
12 dinosaur 8 dragon 2.4 unicorn .25 bird .1 hummingbird .14 sparrow .14 robin .2 cardinal .28 jay .25 blackbird .13 finch .16 wren
.33 pigeon .3 dove .5 crow .6 raven .45 magpie .3 parrot .18 budgie .18 canary .35 owl .5 hawk .45 falcon .85 eagle .5 gull .5 seagull
.5 duck .2 duckling .9 goose 1.4 swan .45 chicken .45 hen .5 rooster .1 chick 1 turkey 1.1 peacock 1.2 flamingo .9 heron 1 stork .7 penguin
1.5 pelican .5 toucan .25 woodpecker .17 kingfisher 2.2 ostrich 1.7 person 1.8 man 1.65 woman 1.2 child .7 baby 1.3 boy 1.3 girl
1.75 knight 1.75 robot .25 toy .3 teddybear .3 doll .07 apple .07 orange .18 banana .03 strawberry .06 lemon .3 pineapple .3 watermelon
.3 pumpkin .2 carrot .06 tomato .06 egg .3 bread .3 cake .3 pizza .15 sandwich .1 hamburger .1 cup .1 mug .12 glass .3 bottle .25 teapot
.3 bowl .27 plate .2 spoon .25 knife .2 fork .35 pan .3 vase .4 flowerpot .5 houseplant .25 cactus .3 flower .4 rose .7 sunflower
.2 mushroom .6 bush 1 shrub 8 tree 3 bonsai .25 book .2 pen .18 pencil .15 phone .35 laptop .3 camera .08 watch .3 clock .45 lamp
.9 guitar .6 violin 1.5 piano .25 shoe .3 hat .6 backpack .7 suitcase .9 umbrella .22 ball .24 football .24 basketball .07 key .15 candle
.9 chair 2 sofa 2 couch 1.5 table 1.4 desk 2 bed .45 stool 1.5 bench 2 wardrobe 1.2 television .6 box .7 basket .6 bucket .9 barrel
1.7 bicycle 1.7 bike 2.1 motorcycle 2.1 motorbike 1.1 scooter 4.5 car 5 van 8 truck 11 bus 12 tram 25 train 4 tractor 5 boat 10 ship
10 sailboat 30 aeroplane 30 airplane 10 helicopter 20 balloon 10 rocket 10 house 3 hut 3 tent 12 barn 30 castle 25 church 30 tower
25 lighthouse 15 windmill .8 skateboard 2 surfboard .6 kite 1.8 statue 1.5 fountain 1 snowman .7 wheel .5 rock
"""
_TWO_WORDS = {
    ("polar", "bear"): "polarbear",
    ("teddy", "bear"): "teddybear",
    ("guinea", "pig"): "guineapig",
    ("house", "plant"): "houseplant",
    ("potted", "plant"): "houseplant",
    ("flower", "pot"): "flowerpot",
}
_IRREGULAR = {
    "mice": "mouse",
    "geese": "goose",
    "people": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "oxen": "ox",
    "foxes": "fox",
    "wolves": "wolf",
    "calves": "calf",
    "knives": "knife",
    "fungi": "mushroom",
    "cacti": "cactus",
    "plant": "houseplant",
    "plants": "houseplant",
    "plushie": "toy",
    "figurine": "toy",
}
_TOYS = {"toy", "toys", "plush", "stuffed", "figurine", "plushie"}
"""Whatever these words stand before is as large as a toy."""


def _read_table() -> dict[str, float]:
    pieces = _TABLE.split()
    return {noun: float(metres) for metres, noun in zip(pieces[::2], pieces[1::2], strict=True)}


METRES = _read_table()
"""Everyday noun -> longest side of a usual one in metres."""


def _known_noun(word: str) -> str | None:
    """The noun of the table that a word is, in singular or plural."""
    stems = [word, _IRREGULAR.get(word, "")]
    stems += [word[: -len(end)] + new for end, new in (("ies", "y"), ("es", ""), ("s", "")) if word.endswith(end)]
    return next((stem for stem in stems if stem in METRES), None)


def find_noun(text: str) -> str | None:
    """The noun of the table that a caption is about: `a <head:cardinal> bird on a chair` -> `bird`; None if there is none.

    Of nouns side by side the last counts (`dog house` is a house), of others the first. What stands between `<` and `>` is read
    only if nothing else is known.
    """
    text = text[:_LONGEST_TEXT].lower()
    outside = re.sub(r"<[^<>]*>", " ", text)
    for part in (outside, text):
        words = re.findall(r"[^\W\d_]+", part)
        found: str | None = None
        place = 0
        while place < len(words):
            joined = _TWO_WORDS.get((words[place], _singular(words[place + 1]))) if place + 1 < len(words) else None
            noun = joined or _known_noun(words[place])
            if words[place] in _TOYS:
                return "toy"
            if noun is None and found is not None:
                return found
            found = noun or found
            place += 2 if joined else 1
        if found is not None:
            return found
    return None


def _singular(word: str) -> str:
    return _known_noun(word) or word.removesuffix("s")


class RelativeSizes(NamedTuple):
    """What subjects measure against each other."""

    sizes: tuple[float, ...]
    """Longest side of each subject, the largest being 1."""
    unknown: tuple[str, ...]
    """Words of the subjects whose size is unknown; they count as medium. To be reported once."""


def relative_sizes(subjects: Sequence[Subject]) -> RelativeSizes:
    """Longest sides against each other, from each subject's `size` or else its words, or else its name.

    Numbers keep their ratios exactly. Nouns, in metres, are compressed by their logarithm to 0.4 ... 1; they are never pulled
    further apart than they are, so a cat beside a dog is not 0.4. A number beside nouns is a share of the largest noun.

    Raises:
        BestiaryError: a size that is a number of 0, below, or not finite.
    """
    wanted = [_number_or_word(subject) for subject in subjects]
    metres = [METRES[value] for value in wanted if isinstance(value, str) and value in METRES]
    sizes = [_compressed(value, metres) for value in wanted]
    unknown = [_asked(subject) for subject, value in zip(subjects, wanted, strict=True) if value == ""]
    largest = max(sizes, default=1.0)
    return RelativeSizes(tuple(size / largest for size in sizes), tuple(dict.fromkeys(unknown)))


def _asked(subject: Subject) -> str:
    return str(subject.size or subject.called)


def _number_or_word(subject: Subject) -> float | str:
    """A number, a noun of the table, one of the size words, or "" where nothing is known."""
    size = subject.size
    if isinstance(size, str):
        try:
            size = float(size)
        except ValueError:
            word = size.strip().lower()
            return word if word in SIZE_WORDS else find_noun(word) or ""
        if not (size > 0 and math.isfinite(size)):
            raise BestiaryError(
                f"subject {shown_name(subject.name)}: size {subject.size!r} must be a number above 0, a noun such as"
                f" 'horse', or one of {', '.join(SIZE_WORDS)}"
            )
    if size is not None:
        return float(size)
    return find_noun(subject.words) or find_noun(subject.name) or ""


def _compressed(value: float | str, metres: Sequence[float]) -> float:
    if not isinstance(value, str):
        return value
    if value not in METRES:
        return SIZE_WORDS.get(value, SIZE_WORDS["medium"])
    span = max(math.log(max(metres) / min(metres)), math.log(1 / SMALLEST))
    return 1 - (1 - SMALLEST) * math.log(max(metres) / METRES[value]) / span

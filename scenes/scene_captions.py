"""Captions of scenes: `a photo of a cat and two dogs in a garden`, with trigger words for trainers and part tokens for our own.

Lists, counts, articles and plurals are English. Only `{subjects}` and `{place}` of a template are replaced; other braces are text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..concepts.errors import BestiaryError
from .scene_layout import SceneLayout
from .scene_relations import relation_clause
from .subject import Subject

TEMPLATE = "a photo of {subjects} {place}"
LONGEST_ANSWER = 1000
"""Characters of a language model's caption."""

_TOKEN = re.compile(r"<[^<>\s][^<>]*>")
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_IRREGULAR = {
    "child": "children", "foot": "feet", "goose": "geese", "man": "men", "mouse": "mice", "ox": "oxen", "person": "people",
    "tooth": "teeth", "woman": "women", "calf": "calves", "half": "halves", "knife": "knives", "leaf": "leaves",
    "loaf": "loaves", "scarf": "scarves", "shelf": "shelves", "thief": "thieves", "wolf": "wolves", "hero": "heroes",
    "potato": "potatoes", "tomato": "tomatoes", "cactus": "cacti",
}  # fmt: skip
_UNCHANGED = frozenset(
    [
        "deer",
        "fish",
        "moose",
        "sheep",
        "bison",
        "salmon",
        "shrimp",
        "aircraft",
        "scissors",
        "trousers",
        "glasses",
        "jeans",
    ]
)
_A_BEFORE_VOWEL = re.compile(r"eu|ewe|one\b|one-|once|uni(?:[cflqstv]|on)|us[aeu]|ut[eio]|uku|ufo|unanim|uran", re.I)
_AN_BEFORE_CONSONANT = re.compile(r"(hour|honest|heir|honou?r|x-|f-|mri\b)", re.I)


@dataclass(frozen=True)
class CaptionOptions:
    """How a scene is put into words."""

    template: str = TEMPLATE
    """With `{subjects}` and, where the place is to be named, `{place}`."""
    triggers: Mapping[str, str] = field(default_factory=dict)
    """Trigger word by name of the subject: it stands before the subject's words, `sks cat`."""
    prefix: str = ""
    """Word or token before the whole caption, which stands for the composition."""
    repeat: int = 1
    """How often the list of subjects is said, 1 to 3."""
    relations: bool = False
    """Whether a clause says who stands left of, in front of or on whom."""

    def __post_init__(self) -> None:
        """Checks the template and the number."""
        if "{subjects}" not in self.template:
            raise BestiaryError(
                f"template {self.template!r} does not say where the subjects stand: put {{subjects}} there"
            )
        if self.repeat not in (1, 2, 3):
            raise BestiaryError(f"repeat {self.repeat} is out of range: give 1, 2 or 3")


def scene_caption(
    subjects: Sequence[Subject],
    place: str = "",
    options: CaptionOptions | None = None,
    layout: SceneLayout | None = None,
) -> str:
    """One line for other trainers: plain words and trigger words, no `<...>` tokens.

    Args:
        place: phrase such as `in a garden`.
        layout: needed for relations.

    Raises:
        BestiaryError: no subject.
    """
    options = options or CaptionOptions()
    concepts = [(options.triggers.get(subject.name, ""), plain_words(subject)) for subject in subjects]
    return _filled(concepts, place, options, layout, subjects)


def token_caption(
    subjects: Sequence[Subject],
    place: str = "",
    options: CaptionOptions | None = None,
    layout: SceneLayout | None = None,
) -> str:
    """One line of our own column: the `<part:kind>` tokens of each subject stand before its noun, in its order.

    Equal to `scene_caption` without triggers where no subject has tokens.
    """
    options = options or CaptionOptions()
    concepts = [("", _one_line(subject.called)) for subject in subjects]
    return _filled(concepts, place, options, layout, subjects)


def plain_words(subject: Subject) -> str:
    """What a subject is called without its tokens; its name where nothing else is left."""
    return _one_line(_TOKEN.sub(" ", subject.called)) or subject.name


def subject_list(concepts: Sequence[tuple[str, str]], counted: bool = False) -> str:
    """`a cat, two dogs and sks bird` of pairs (trigger word or nothing, words); equal words without trigger or token are counted.

    Args:
        counted: say `one cat` in place of `a cat`.
    """
    counts = Counter(words for trigger, words in concepts if not trigger)
    said, phrases = set(), []
    for trigger, words in concepts:
        if trigger:
            phrases.append(f"{trigger} {words}")
        elif _TOKEN.search(words):
            phrases.append(with_article(words))
        elif words not in said:
            said.add(words)
            phrases.append(_counted(words, counts[words], counted))
    return joined(phrases)


def joined(phrases: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(phrases) < 2:
        return "".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def with_article(words: str) -> str:
    """`a cat`, `an owl`, `an hour`, `a unicorn`; tokens count as nothing, and plural nouns and articles stay as they are."""
    spoken = _one_line(_TOKEN.sub(" ", words)) or words
    if spoken.split(" ")[0].lower() in ("a", "an", "the", "some", "my", "his", "her", "their", "its"):
        return words
    if spoken.split(" ")[-1] in ("scissors", "trousers", "glasses", "jeans"):
        return f"a pair of {words}"
    # a token is read as itself, and stands first
    if words.startswith("<"):
        return f"a {words}"
    vowel = spoken[:1].lower() in ("a", "e", "i", "o", "u") and not _A_BEFORE_VOWEL.match(spoken)
    return f"{'an' if vowel or _AN_BEFORE_CONSONANT.match(spoken) else 'a'} {words}"


def plural(words: str) -> str:
    """`cats`, `bowls of fruit`, `wolves`, `sheep`."""
    if following := re.search(r" (?:of|in|on|with) ", words):
        return plural(words[: following.start()]) + words[following.start() :]
    start, noun = words[: len(words) - len(words.split(" ")[-1])], words.split(" ")[-1]
    low = noun.lower()
    if low in _UNCHANGED:
        return words
    if low in _IRREGULAR:
        return start + noun[0] + _IRREGULAR[low][1:]
    if low.endswith(("woman", "man")) and low not in ("human", "german", "roman"):
        return start + noun[:-2] + "en"
    if re.search(r"(s|x|z|ch|sh)$", low):
        return words + "es"
    if re.search(r"[^aeiou]y$", low):
        return words[:-1] + "ies"
    return words + "s"


def checked_caption(
    answer: str, subjects: Sequence[Subject], template: str, triggers: Mapping[str, str] | None = None
) -> str:
    """A language model's caption as one line, each subject's words with its trigger word; `template` where a subject is missing.

    Args:
        answer: whatever came back; quotes around it, line breaks and a leading `Caption:` are taken off.
        template: the caption to fall back on, as `scene_caption` gives it.
        triggers: trigger word by name of the subject, as in `CaptionOptions`.
    """
    triggers = triggers or {}
    text = _one_line(re.sub(r"^\s*(caption|answer)\s*:", "", answer, flags=re.I)).strip(" \"'`")
    if not text or len(text) > LONGEST_ANSWER:
        return template
    by_words: dict[str, list[str]] = {}
    for subject in subjects:
        by_words.setdefault(plain_words(subject).lower(), []).append(triggers.get(subject.name, ""))
    marked = {}
    # long words first: `teddy bear` before `bear`; what was found is hidden from the others until the end
    for words, wanted in sorted(by_words.items(), key=lambda entry: -len(entry[0])):
        text, found = _marked(text, words, wanted, marked)
        if not found:
            return template
    return re.sub(r"\0(\d+)\0", lambda match: marked[int(match[1])], text)


def _marked(text: str, words: str, triggers: Sequence[str], marked: dict[int, str]) -> tuple[str, bool]:
    """The text with the mentions of `words` replaced by marks, and whether there are enough of them."""
    single, several = re.escape(words), re.escape(plural(words))
    mentions = list(re.finditer(rf"(?<!\w)(?:{single}|{several})(?!\w)", text, re.I))
    named = [trigger for trigger in triggers if trigger]
    # with trigger words each subject is named by itself; without, `two cats` names two
    singles = [mention for mention in mentions if mention[0].lower() == words]
    plurals = any(mention[0].lower() != words for mention in mentions)
    enough = len(singles) >= len(triggers) if named else bool(mentions) and (plurals or len(mentions) >= len(triggers))
    if not enough:
        return text, False
    waiting, pieces, end = list(triggers) if named else [], [], 0
    for mention in mentions:
        trigger = waiting.pop(0) if waiting and mention[0].lower() == words else ""
        marked[len(marked)] = f"{trigger} {mention[0]}".strip()
        pieces += [text[end : mention.start()], f"\0{len(marked) - 1}\0"]
        end = mention.end()
    return "".join([*pieces, text[end:]]), True


def _filled(
    concepts: Sequence[tuple[str, str]],
    place: str,
    options: CaptionOptions,
    layout: SceneLayout | None,
    subjects: Sequence[Subject],
) -> str:
    if not concepts:
        raise BestiaryError("a caption needs a subject at least")
    said = ", ".join([subject_list(concepts)] * options.repeat)
    values = {"subjects": said, "place": _one_line(place)}
    # one pass: braces in the words of a subject are nobody's placeholder
    text = re.sub(r"\{(subjects|place)\}", lambda match: values[match[1]], options.template)
    if options.relations and layout is not None:
        names = {
            subject.name: " ".join(filter(None, concept)) for subject, concept in zip(subjects, concepts, strict=True)
        }
        clause = relation_clause(layout, names, {subject.name: subject.support for subject in subjects})
        text = f"{text}, {clause}" if clause else text
    return re.sub(r" +([,.])", r"\1", _one_line(f"{options.prefix} {text}"))


def _counted(words: str, count: int, counted: bool) -> str:
    if count == 1:
        return f"one {words}" if counted else with_article(words)
    number = _NUMBERS[count] if count < len(_NUMBERS) else str(count)
    return f"{number} {plural(words)}"


def _one_line(text: str) -> str:
    return " ".join(text.replace("\0", " ").split())

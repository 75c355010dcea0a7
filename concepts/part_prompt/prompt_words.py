"""Where the words of a prompt stand in the context that a network attends to.

Every text encoder cuts a prompt into pieces of its own ("card" + "inal", "▁cardinal", " cardinal"). A word is searched in the pieces
joined together, and its places are those of all pieces that it touches, so that no encoder's way of cutting matters.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..errors import BestiaryError
from ..name_search import choices_text, shown_name

BREAK = "\0"
"""Text of a token that belongs to no word: start, end and padding, learned vectors, pictures, the words of a chat template."""
_WORD_PARTS = re.compile(r"\d|[^\W\d_]+|[^\w\s\0]|_")
"""What CLIP puts spaces between: digits one by one, runs of letters, signs one by one."""
_NAMED_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class TokenRun:
    """Tokens of one text encoder that stand behind each other in the context."""

    text: str = field(repr=False)
    """The prompt as its tokens spell it, `BREAK` for a token without words."""
    spans: tuple[tuple[int, int], ...] = field(repr=False)
    """For every token its slice of the text, spaces around it left out; a letter of several tokens is in all of their slices."""
    start: int
    """Place of the first token in the context; negative where the encoder cut the first ones off."""
    spaced: bool = False
    """True if the encoder puts spaces between letters, digits and signs (CLIP), so that the text does not say where there were some."""

    def places(self, word: str) -> Iterator[int]:
        """Places in the context of all tokens that a mention of a word touches."""
        found = [match.span() for match in word_pattern(word, spaced=self.spaced).finditer(self.text)]
        for place, (first, last) in enumerate(self.spans, start=self.start):
            if place >= 0 and any(first < end and begin < last for begin, end in found):
                yield place


def token_run(pieces: Sequence[bytes], start: int, *, spaced: bool = False) -> TokenRun:
    """A run of tokens of these texts in UTF-8, a letter of several bytes cut anywhere; for the others see `TokenRun`."""
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    letters = [number for number, letter in enumerate(text) for _ in letter.encode("utf-8", "surrogateescape")]
    spans, begin = [], 0
    for piece in pieces:
        end = begin + len(piece)
        first, last = (letters[begin], letters[end - 1] + 1) if piece else (0, 0)
        own = text[first:last]
        spans.append((first + len(own) - len(own.lstrip()), last - len(own) + len(own.rstrip())))
        begin = end
    return TokenRun(text, tuple(spans), start, spaced)


@dataclass(frozen=True)
class PromptWords:
    """All words of an encoded prompt: a run per text encoder that is attended to."""

    runs: tuple[TokenRun, ...]

    def places(self, word: str) -> tuple[int, ...]:
        """Places of all tokens of all mentions of a word, or of a phrase such as "red hat"; empty if it is not in the prompt.

        Whole words only, in upper or lower case.
        """
        return tuple(sorted({place for run in self.runs for place in run.places(word)}))

    def names(self) -> list[str]:
        """The words of the prompt, each once, for messages."""
        return list(dict.fromkeys(name.lower() for run in self.runs for name in _NAMED_WORD.findall(run.text)))


def word_pattern(word: str, *, spaced: bool = False) -> re.Pattern[str]:
    """What a word or phrase looks like in the text of tokens, see `TokenRun.spaced`.

    Raises:
        BestiaryError: it holds no letter, digit or sign.
    """
    within = r"\s*" if spaced else ""
    spelt = [within.join(map(re.escape, _WORD_PARTS.findall(one))) for one in word.split()]
    if not any(spelt):
        raise BestiaryError(f"{word!r} is no word: type words of the prompt, separated by commas")
    joined = r"\s+".join(part for part in spelt if part)
    return re.compile(rf"(?<!\w){joined}(?!\w)", re.IGNORECASE)


def words_of_list(text: str) -> tuple[str, ...]:
    """Words and phrases of a list separated by commas, semicolons or line ends, each once."""
    spelt = (" ".join(one.split()) for one in re.split(r"[,;\n]", text))
    kept: dict[str, str] = {}
    for one in filter(None, spelt):
        kept.setdefault(one.lower(), one)
    return tuple(kept.values())


def missing_word(word: str, prompts: Sequence[PromptWords]) -> str:
    """What to do about a word that none of these prompts holds."""
    names = list(dict.fromkeys(name for prompt in prompts for name in prompt.names()))
    if names:
        return (
            f"no prompt of this sampler contains the word {shown_name(word)}; choose one of {choices_text(word, names)}"
        )
    return (
        f"no prompt of this sampler says where its words stand, so {shown_name(word)} cannot be found; "
        "encode the prompt with Part Prompt and the CLIP of this model"
    )

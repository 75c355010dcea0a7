"""Part vectors in a CLIP: `embedding:creatures/head.cardinal` in any prompt, without a file in the embeddings folder.

`PartEmbeddings` resolves the names of its dictionaries and leaves all others to ComfyUI. Every vector carries a mark, from
which the conditioning records the positions of parts. `taught_clip.py` puts both into a clone of a CLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.name_search import NameIndex, choices_text, shown_name
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ...concepts.part_prompt.part_mention import LONGEST_NAME
from ..host.comfy_objects import Clip, Tokenizer, Tokens
from ..host.comfy_version import embedding_answer
from ..host.socket_types import PartSpan
from .context_words import context_starts

MARK = "bestiary_mark"
"""Attribute of a token (vector or filler) that belongs to a part."""
PUNCTUATION = ",.;!?"
"""Characters that may follow a name without being part of it."""
FILLER_WORD = "a"
"""Word whose token is used in text encoders for which a dictionary has no vectors."""


@dataclass(frozen=True)
class PartMark:
    """The mention of a part that a token belongs to; all tokens of one mention share the same object."""

    label: str
    """Part and kind, such as "head:cardinal"."""
    part: str


class FillerToken(int):
    """A token id that can carry a mark; ComfyUI's tokenizer treats it as an embedding of one vector, its encoder as an id."""

    shape = (1,)


@dataclass
class PartEmbeddings:
    """Replacement for a tokenizer's embedding search (`embedding:`) that also resolves parts."""

    encoder: str
    """Name of the text encoder: clip_l, clip_g, clip_h."""
    tokenizer: Tokenizer = field(repr=False)
    """The tokenizer, whose class determines the form of the result."""
    search_folder: Callable[[str], tuple] = field(repr=False)
    """The tokenizer's own search: name -> `embedding_answer` of (tensor or None, name, remaining text)."""
    filler: int
    dictionaries: dict[str, PartDictionary]
    """By name in prompts, in the order of loading."""

    def __call__(self, embedding_name: str) -> tuple:
        """The vector `(D,)` of a part with its mark, and the remaining text, in the form of the tokenizer.

        Raises:
            BestiaryError: a known dictionary has no such part or kind.
        """
        # ComfyUI passes everything up to the next comma or weight: the name ends at the first space
        bare, *rest = embedding_name.split(None, 1) or [""]
        owner = self._owner(bare)
        if owner is None:
            return self.search_folder(embedding_name)
        name, asked = owner
        # a known dictionary: errors name its parts instead of falling back to the folder
        (part, kind), tail = _find_row(self.dictionaries[name], name, asked)
        vector = marked_vector(self.dictionaries[name], part, kind, self.encoder, self.filler)
        left_over = " ".join(text for text in (tail, *rest) if text)
        return embedding_answer(self.tokenizer, vector, bare.removesuffix(tail), left_over)

    def _owner(self, bare: str) -> tuple[str, str] | None:
        """Name of the dictionary that a name starts with, and the rest after its slash."""
        known = NameIndex((name, name) for name in self.dictionaries)
        # Windows users write subfolders with backslashes
        slashes = [place for place, letter in enumerate(bare[:LONGEST_NAME]) if letter in "/\\"]
        # the longest dictionary name wins: names may contain slashes themselves
        for place in reversed(slashes):
            if named := known.find(bare[:place]):
                return named[0], bare[place + 1 :]
        return None


def dictionaries_of(clip: Clip) -> dict[str, PartDictionary]:
    """The dictionaries of a CLIP by name, in the order of loading."""
    for tokenizer in tokenizers_of(clip).values():
        search = tokenizer._try_get_embedding
        if isinstance(search, PartEmbeddings):
            return dict(search.dictionaries)
    return {}


def filler_tokens(clip: Clip) -> dict[str, int]:
    """Text encoder name -> token id of the filler word, used where a dictionary has no vector."""
    return {tokenizer.embedding_key: filler_of(tokenizer) for tokenizer in tokenizers_of(clip).values()}


def marked_vector(dictionary: PartDictionary, part: int, kind: int, encoder: str, filler: int) -> Tensor | FillerToken:
    """The marked vector `(width,)` of one text encoder for a part; the filler if the dictionary has none."""
    label = f"{dictionary.part_names[part]}:{dictionary.kind_label(part, kind)}"
    if encoder in dictionary.embeddings:
        # indexing creates a new tensor object, so the mark is not shared between mentions
        token = dictionary.embeddings[encoder][dictionary.row_of[part, kind]]  # (width,)
    else:
        token = FillerToken(filler)
    return marked(token, PartMark(label, dictionary.part_names[part]))


def marked(token: Tensor | FillerToken, mark: PartMark) -> Tensor | FillerToken:
    """The same token `(width,)` with a mark, from which the position of the part is recorded later."""
    setattr(token, MARK, mark)
    return token


def tokenize_plainly(clip: Clip, text: str, *args: object, **options: object) -> Tokens:
    """Tokens of a text by ComfyUI's tokenizer alone: mentions in it stay plain text, whatever dictionaries are loaded."""
    return getattr(clip, "tokenize_plainly", clip.tokenize)(text, *args, **options)


def part_spans(tokens: object, clip: Clip | None = None) -> tuple[PartSpan, ...]:
    """Positions in the context of marked tokens in the result of `clip.tokenize`, in the order of the prompt.

    Equal spans of several text encoders are reported once; a part that occurs in only one of them is included. Encoders behind each other
    (T5 in SD3) give a span each, those that are pooled only (CLIP in Flux) none. `clip` tells which encoders it was loaded without.
    """
    if not isinstance(tokens, Mapping):
        return ()
    # a dict as an ordered set: equal spans of two encoders collapse into one
    spans: dict[PartSpan, None] = {}
    starts = context_starts(tokens, clip)
    for key, chunks in tokens.items():
        if starts is not None and key not in starts:
            continue
        places: dict[int, list[int]] = {}
        marks: dict[int, PartMark] = {}
        # chunks are concatenated in the conditioning, so positions continue across chunks
        entries = [entry for chunk in chunks for entry in chunk]
        for place, entry in enumerate(entries, start=0 if starts is None else starts[key]):
            mark = getattr(entry[0], MARK, None)
            if mark is not None:
                marks[id(mark)] = mark
                places.setdefault(id(mark), []).append(place)
        for owner, mark in marks.items():
            spans[PartSpan(mark.label, mark.part, tuple(places[owner]))] = None
    return tuple(sorted(spans, key=lambda span: span.positions))


def tokenizers_of(clip: Clip) -> dict[str, Tokenizer]:
    """The inner tokenizers of a CLIP's tokenizer that support `embedding:`, by attribute."""
    return {name: value for name, value in vars(clip.tokenizer).items() if hasattr(value, "_try_get_embedding")}


def filler_of(tokenizer: Tokenizer) -> int:
    """Id of `FILLER_WORD`."""
    return tokenizer.tokenizer(FILLER_WORD)["input_ids"][tokenizer.tokens_start]


def _find_row(dictionary: PartDictionary, name: str, asked: str) -> tuple[tuple[int, int], str]:
    """(part, kind) of "part.kind", and the punctuation after it that is not part of the name."""
    stripped = asked.rstrip(PUNCTUATION)
    try:
        try:
            return _row(dictionary, asked), ""
        # trailing punctuation belongs to the sentence, unless a kind is really named like that
        except BestiaryError:
            if stripped == asked:
                raise
            return _row(dictionary, stripped), asked[len(stripped) :]
    except BestiaryError as fault:
        raise BestiaryError(f"embedding:{name}/{shown_name(asked)[1:-1]}: {fault}") from fault


def _row(dictionary: PartDictionary, asked: str) -> tuple[int, int]:
    dots = [place for place, letter in enumerate(asked[:LONGEST_NAME]) if letter == "."]
    if not dots:
        trained = [label for part, label in enumerate(dictionary.part_names) if dictionary.kinds_of(part)]
        raise BestiaryError(f"write part.kind after the slash; the parts are {choices_text(asked, trained)}")
    # names may contain dots themselves: prefer the dot after a known part
    named = (dot for dot in dots if dictionary.part_called(asked[:dot], by_number=False) is not None)
    cut = next(named, dots[0])
    part = dictionary.find_part(asked[:cut])
    return part, dictionary.find_kind(part, asked[cut + 1 :])

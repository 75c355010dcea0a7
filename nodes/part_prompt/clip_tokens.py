"""Part vectors in a CLIP: `embedding:creatures/head.cardinal` in any prompt, without a file in the embeddings folder.

A CLIP that learned a dictionary is a clone whose tokenizers answer for names of that dictionary and leave all others to
ComfyUI. Every vector carries a mark, so wherever tokens are encoded the conditioning records where its parts stand. The
tokenizer travels with every further clone (LoRA loaders, CLIP skip), and so do dictionaries and marks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.name_search import choices_text, plain_name, shown_name
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ...concepts.part_prompt.part_mention import LONGEST_NAME
from ..denoiser.model_backbone import check_widths
from ..host.comfy_version import embedding_answer
from ..host.socket_types import SPANS_KEY, NamedDictionary, PartSpan

MARK = "bestiary_mark"
"""Attribute of a token (vector or filler) that stands for a part."""
PUNCTUATION = ",.;!?"
"""What may follow a name in a sentence without belonging to it."""
FILLER_WORD = "a"
"""Its token stands in a text encoder for which a dictionary has no vectors."""


@dataclass(frozen=True)
class PartMark:
    """Which mention of a part a token belongs to; all tokens of one mention carry the same object."""

    label: str
    """Such as "head:cardinal"."""
    part: str


class FillerToken(int):
    """A plain token that can carry a mark; ComfyUI takes it for an embedding of one vector, and for a token id after."""

    shape = (1,)


@dataclass
class PartEmbeddings:
    """What one tokenizer asks for the name behind `embedding:`, instead of its own search in the embeddings folder."""

    encoder: str
    """Name of the text encoder: clip_l, clip_g, clip_h."""
    tokenizer: object = field(repr=False)
    """The one that asks, and that says in which form it is answered."""
    search_folder: object = field(repr=False)
    """The tokenizer's own search: name -> what `embedding_answer` makes of (tensor or None, name, text left over)."""
    filler: int
    dictionaries: dict[str, PartDictionary]
    """By the name prompts use, in the order of loading."""

    def __call__(self, embedding_name: str) -> tuple:
        """The vector `(D,)` of a part with its mark, and the text that follows the name, in the form of the tokenizer.

        Raises:
            BestiaryError: a known dictionary has no such part or kind.
        """
        # the name ends at the first space; what follows is text again
        bare, *rest = embedding_name.split(None, 1) or [""]
        owner = self._owner(bare)
        if owner is None:
            return self.search_folder(embedding_name)
        name, asked = owner
        # a part behind a known dictionary's name: nothing of the folder is asked
        (part, kind), tail = _find_row(self.dictionaries[name], name, asked)
        vector = marked_vector(self.dictionaries[name], part, kind, self.encoder, self.filler)
        left_over = " ".join(text for text in (tail, *rest) if text)
        return embedding_answer(self.tokenizer, vector, bare.removesuffix(tail), left_over)

    def _owner(self, bare: str) -> tuple[str, str] | None:
        """Name of the dictionary a name begins with, and what follows its slash."""
        known = {plain_name(name): name for name in self.dictionaries}
        # Windows writes sub-folders with backslashes
        slashes = [place for place, letter in enumerate(bare[:LONGEST_NAME]) if letter in "/\\"]
        # the longest dictionary name wins: names may hold slashes themselves
        for place in reversed(slashes):
            if plain_name(bare[:place]) in known:
                return known[plain_name(bare[:place])], bare[place + 1 :]
        return None


def with_dictionary(clip: object, named: NamedDictionary) -> object:
    """A clone of a CLIP that understands a dictionary's names besides those it understood before; the original stays.

    Raises:
        BestiaryError: the vectors do not fit its text encoders, or the name is taken by another dictionary.
    """
    check_widths(named.dictionary, named.name, clip)
    known = dictionaries_of(clip)
    if plain_name(named.name) in map(plain_name, known):
        raise BestiaryError(
            f"a dictionary called {shown_name(named.name)} is loaded already ({', '.join(known)}): give this one another name"
        )
    # weights are shared, only what reads the prompt is copied
    taught = clip.clone()
    tokenizers = _tokenizers(clip)
    if not tokenizers:
        raise BestiaryError(
            f"{type(clip.tokenizer).__name__} of this CLIP knows no embeddings: connect a Stable Diffusion CLIP"
        )
    taught.tokenizer = copy.copy(clip.tokenizer)
    # every tokenizer of the clone answers for the dictionaries before it, and for this one
    dictionaries = {**known, named.name: named.dictionary}
    for attribute, tokenizer in tokenizers.items():
        setattr(taught.tokenizer, attribute, _taught_tokenizer(tokenizer, dictionaries))
    taught.__class__ = _recording_class(type(taught))
    return taught


def dictionaries_of(clip: object) -> dict[str, PartDictionary]:
    """The dictionaries a CLIP understands, by name, in the order of loading."""
    for tokenizer in _tokenizers(clip).values():
        if isinstance(tokenizer._try_get_embedding, PartEmbeddings):
            return dict(tokenizer._try_get_embedding.dictionaries)
    return {}


def filler_tokens(clip: object) -> dict[str, int]:
    """Text encoder name -> id of the plain word that stands where a dictionary has no vector."""
    return {tokenizer.embedding_key: _filler(tokenizer) for tokenizer in _tokenizers(clip).values()}


def marked_vector(dictionary: PartDictionary, part: int, kind: int, encoder: str, filler: int) -> Tensor | FillerToken:
    """The vector `(width,)` of one text encoder for a part, marked; the filler where the dictionary has none."""
    label = f"{dictionary.part_names[part]}:{dictionary.kind_label(part, kind)}"
    if encoder in dictionary.embeddings:
        # indexing gives an object of its own, so the mark is not shared
        token = dictionary.embeddings[encoder][dictionary.row_of[part, kind]]  # (width,)
    else:
        token = FillerToken(filler)
    return marked(token, PartMark(label, dictionary.part_names[part]))


def marked(token: Tensor | FillerToken, mark: PartMark) -> Tensor | FillerToken:
    """The same token `(width,)` with a mark, from which the conditioning will tell where the part stands."""
    setattr(token, MARK, mark)
    return token


def tokenize_plainly(clip: object, text: str, *args: object, **options: object) -> object:
    """Tokens of a text as ComfyUI makes them, whatever dictionaries the CLIP knows: mentions in it are plain text."""
    return getattr(clip, "tokenize_plainly", clip.tokenize)(text, *args, **options)


def part_spans(tokens: object) -> tuple[PartSpan, ...]:
    """Where marked tokens stand: from what `clip.tokenize` returned, in the order of the prompt.

    Several text encoders that agree are told once; a part that only one of them holds is told as well.
    """
    if not isinstance(tokens, Mapping):
        return ()
    # a dict keeps the order and drops what two encoders say alike
    spans: dict[PartSpan, None] = {}
    for chunks in tokens.values():
        places: dict[int, list[int]] = {}
        marks: dict[int, PartMark] = {}
        # chunks follow each other in the conditioning, so places count on
        entries = [entry for chunk in chunks for entry in chunk]
        for place, entry in enumerate(entries):
            mark = getattr(entry[0], MARK, None)
            if mark is not None:
                marks[id(mark)] = mark
                places.setdefault(id(mark), []).append(place)
        for key, mark in marks.items():
            spans[PartSpan(mark.label, mark.part, tuple(places[key]))] = None
    return tuple(sorted(spans, key=lambda span: span.positions))


def _tokenizers(clip: object) -> dict[str, object]:
    """The tokenizers inside a CLIP's tokenizer that understand `embedding:`, by attribute."""
    return {name: value for name, value in vars(clip.tokenizer).items() if hasattr(value, "_try_get_embedding")}


def _taught_tokenizer(tokenizer: object, dictionaries: dict[str, PartDictionary]) -> object:
    taught = copy.copy(tokenizer)
    if taught.embedding_directory is None:
        # ComfyUI takes None for "no embeddings at all" and would not even ask
        taught.embedding_directory = []
    search = tokenizer._try_get_embedding
    if isinstance(search, PartEmbeddings):
        search = search.search_folder
    elif getattr(search, "__self__", None) is tokenizer:
        # bound to the copy, which has a folder list
        search = search.__func__.__get__(taught)
    filler = _filler(tokenizer)
    taught._try_get_embedding = PartEmbeddings(tokenizer.embedding_key, taught, search, filler, dictionaries)
    return taught


def _filler(tokenizer: object) -> int:
    return tokenizer.tokenizer(FILLER_WORD)["input_ids"][tokenizer.tokens_start]


@cache
def _recording_class(base: type) -> type:
    """A CLIP class that writes the places of marked tokens beside each conditioning it makes."""

    class RecordingClip(base):
        """A CLIP whose clones record too."""

        def clone(self, *args: object, **options: object) -> object:
            """A clone of the same class; arguments are ComfyUI's own."""
            clone = super().clone(*args, **options)
            clone.__class__ = type(self)
            return clone

        def tokenize(self, text: str, *args: object, **options: object) -> object:
            """As ComfyUI does it, but for mentions of its parts, such as <head:cardinal>, in any node's text."""
            from .part_encoding import tokenize_known_mentions

            return tokenize_known_mentions(self, text, *args, **options)

        def tokenize_plainly(self, text: str, *args: object, **options: object) -> object:
            """As ComfyUI does it."""
            return super().tokenize(text, *args, **options)

        def encode_from_tokens(self, tokens: object, *args: object, **options: object) -> object:
            """As ComfyUI does it; a returned dict gets the spans."""
            encoded = super().encode_from_tokens(tokens, *args, **options)
            if isinstance(encoded, dict) and (spans := part_spans(tokens)):
                encoded.setdefault(SPANS_KEY, spans)
            return encoded

        def encode_from_tokens_scheduled(self, tokens: object, *args: object, **options: object) -> object:
            """As ComfyUI does it; every entry gets the spans."""
            encoded = super().encode_from_tokens_scheduled(tokens, *args, **options)
            if spans := part_spans(tokens):
                for _, facts in encoded:
                    facts.setdefault(SPANS_KEY, spans)
            return encoded

    # a second dictionary needs no second layer
    return base if base.__name__ == RecordingClip.__name__ else RecordingClip


def _find_row(dictionary: PartDictionary, name: str, asked: str) -> tuple[tuple[int, int], str]:
    """(part, kind) of "part.kind", and punctuation behind it that belongs to no name."""
    stripped = asked.rstrip(PUNCTUATION)
    try:
        try:
            return _row(dictionary, asked), ""
        # a comma behind the name is the sentence's, unless a kind is called so
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
        raise BestiaryError(f"write part.kind behind the slash; the parts are {choices_text(asked, trained)}")
    # names may hold dots themselves: the cut behind a known part wins
    named = (dot for dot in dots if dictionary.part_called(asked[:dot], by_number=False) is not None)
    cut = next(named, dots[0])
    part = dictionary.find_part(asked[:cut])
    return part, dictionary.find_kind(part, asked[cut + 1 :])

"""A clone of a CLIP that understands a part dictionary, in `embedding:creatures/head.cardinal` and in `<head:cardinal>`.

Its tokenizers answer for the names of the dictionary, and the conditionings it makes record where parts stand. The tokenizer
travels with every further clone (LoRA loaders, CLIP skip), and so do dictionaries and marks.
"""

from __future__ import annotations

import copy
from functools import cache
from types import MethodType

from ...concepts.errors import BestiaryError
from ...concepts.name_search import same_name, shown_name
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ..denoiser.model_backbone import check_widths
from ..host.comfy_objects import Clip, Tokenizer
from ..host.socket_types import SPANS_KEY, NamedDictionary
from .clip_tokens import PartEmbeddings, dictionaries_of, filler_of, part_spans, tokenizers_of
from .part_encoding import tokenize_known_mentions


def with_dictionary(clip: Clip, named: NamedDictionary) -> Clip:
    """A clone of a CLIP that understands a dictionary's names besides those it understood before; the original stays.

    Raises:
        BestiaryError: the vectors do not fit its text encoders, or the name is taken by another dictionary.
    """
    check_widths(named.dictionary, named.name, clip)
    known = dictionaries_of(clip)
    if same_name(named.name, known):
        raise BestiaryError(
            f"a dictionary called {shown_name(named.name)} is already loaded ({', '.join(known)}): give this one another name"
        )
    # weights are shared, only what reads the prompt is copied
    taught = clip.clone()
    tokenizers = tokenizers_of(clip)
    if not tokenizers:
        raise BestiaryError(
            f"{type(clip.tokenizer).__name__} of this CLIP does not support embeddings: connect a Stable Diffusion CLIP"
        )
    taught.tokenizer = copy.copy(clip.tokenizer)
    # every tokenizer of the clone answers for the dictionaries before it, and for this one
    dictionaries = {**known, named.name: named.dictionary}
    for attribute, tokenizer in tokenizers.items():
        setattr(taught.tokenizer, attribute, _taught_tokenizer(tokenizer, dictionaries))
    taught.__class__ = _recording_class(type(taught))
    return taught


def _taught_tokenizer(tokenizer: Tokenizer, dictionaries: dict[str, PartDictionary]) -> Tokenizer:
    taught = copy.copy(tokenizer)
    if taught.embedding_directory is None:
        # ComfyUI takes None for "no embeddings at all" and would not even ask
        taught.embedding_directory = []
    search = tokenizer._try_get_embedding
    if isinstance(search, PartEmbeddings):
        search = search.search_folder
    elif isinstance(search, MethodType) and search.__self__ is tokenizer:
        # bound to the copy, which has a folder list
        search = MethodType(search.__func__, taught)
    filler = filler_of(tokenizer)
    taught._try_get_embedding = PartEmbeddings(tokenizer.embedding_key, taught, search, filler, dictionaries)
    return taught


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

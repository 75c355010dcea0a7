"""A clone of a CLIP that resolves a part dictionary, in `embedding:creatures/head.cardinal` and in `<head:cardinal>`.

Its tokenizers resolve the names of the dictionary, and its conditionings record the positions of parts. Further clones
(LoRA loaders, CLIP skip) keep the tokenizer, and with it dictionaries and marks.
"""

from __future__ import annotations

import copy
from functools import cache
from types import MethodType

from ...concepts.errors import BestiaryError
from ...concepts.name_search import same_name, shown_name
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ..denoiser.model_backbone import check_backbone
from ..host.comfy_objects import Clip, Tokenizer
from ..host.socket_types import SPANS_KEY, NamedDictionary
from .clip_tokens import PartEmbeddings, dictionaries_of, filler_of, part_spans, tokenizers_of
from .context_words import add_words
from .part_encoding import tokenize_known_mentions


def with_dictionary(clip: Clip, named: NamedDictionary) -> Clip:
    """A clone of a CLIP that also resolves the names of a dictionary; the original is not modified.

    Raises:
        BestiaryError: the vectors do not match its text encoders, or the name is taken by another dictionary.
    """
    check_backbone(named.dictionary, named.name, None, clip)
    known = dictionaries_of(clip)
    if same_name(named.name, known):
        raise BestiaryError(
            f"a dictionary named {shown_name(named.name)} is already loaded ({', '.join(known)}): give this one another name"
        )
    # weights are shared; only the tokenizer is copied
    taught = clip.clone()
    tokenizers = tokenizers_of(clip)
    if not tokenizers:
        raise BestiaryError(
            f"{type(clip.tokenizer).__name__} of this CLIP does not support embeddings: connect a Stable Diffusion CLIP"
        )
    taught.tokenizer = copy.copy(clip.tokenizer)
    # the tokenizers of the clone resolve the earlier dictionaries and this one
    dictionaries = {**known, named.name: named.dictionary}
    for attribute, tokenizer in tokenizers.items():
        setattr(taught.tokenizer, attribute, _taught_tokenizer(tokenizer, dictionaries))
    taught.__class__ = _recording_class(type(taught))
    return taught


def _taught_tokenizer(tokenizer: Tokenizer, dictionaries: dict[str, PartDictionary]) -> Tokenizer:
    taught = copy.copy(tokenizer)
    if taught.embedding_directory is None:
        # with None ComfyUI skips the embedding search entirely
        taught.embedding_directory = []
    search = tokenizer._try_get_embedding
    if isinstance(search, PartEmbeddings):
        search = search.search_folder
    elif isinstance(search, MethodType) and search.__self__ is tokenizer:
        # rebind to the copy, whose embedding_directory is never None
        search = MethodType(search.__func__, taught)
    filler = filler_of(tokenizer)
    taught._try_get_embedding = PartEmbeddings(tokenizer.embedding_key, taught, search, filler, dictionaries)
    return taught


@cache
def _recording_class(base: type) -> type:
    """A subclass of a CLIP class that stores the positions of marked tokens in the options of its conditionings."""

    class RecordingClip(base):
        """A CLIP whose clones have the same class."""

        def clone(self, *args: object, **options: object) -> object:
            """A clone of the same class; arguments are ComfyUI's own."""
            clone = super().clone(*args, **options)
            clone.__class__ = type(self)
            return clone

        def tokenize(self, text: str, *args: object, **options: object) -> object:
            """Like the base class, but resolves mentions of its parts, such as <head:cardinal>, in the text of any node."""
            return tokenize_known_mentions(self, text, *args, **options)

        def tokenize_plainly(self, text: str, *args: object, **options: object) -> object:
            """The tokens of the base class."""
            return super().tokenize(text, *args, **options)

        def encode_from_tokens(self, tokens: object, *args: object, **options: object) -> object:
            """Like the base class; adds the spans to a returned dict."""
            encoded = super().encode_from_tokens(tokens, *args, **options)
            if isinstance(encoded, dict) and (spans := part_spans(tokens, self)):
                encoded.setdefault(SPANS_KEY, spans)
            return encoded

        def encode_from_tokens_scheduled(self, tokens: object, *args: object, **options: object) -> object:
            """Like the base class; adds the spans and the places of plain words to every entry."""
            encoded = super().encode_from_tokens_scheduled(tokens, *args, **options)
            if spans := part_spans(tokens, self):
                for _, facts in encoded:
                    facts.setdefault(SPANS_KEY, spans)
            return add_words(self, tokens, encoded)

    # a second dictionary must not add another subclass layer
    return base if base.__name__ == RecordingClip.__name__ else RecordingClip

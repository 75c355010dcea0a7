"""A clone of a CLIP that knows one learned identifier, as `embedding:NAME`, without a file in the embeddings folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MethodType

from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.name_search import same_name
from ..host.comfy_objects import Clip, Tokenizer
from ..host.comfy_version import embedding_answer
from ..part_prompt.clip_tokens import PUNCTUATION, PartEmbeddings, tokenizers_of


@dataclass
class IdentifierSearch:
    """What one tokenizer asks for the name behind `embedding:`."""

    tokenizer: Tokenizer = field(repr=False)
    search: Callable[[str], tuple] = field(repr=False)
    """Who is asked for every other name."""
    name: str
    vectors: Tensor = field(repr=False)
    """`(V, W)` of this tokenizer's text encoder."""

    def __call__(self, embedding_name: str) -> tuple:
        """The vectors `(V, W)`, and the text that follows the name, in the form of the tokenizer."""
        bare, *rest = embedding_name.split(None, 1) or [""]
        asked = bare.rstrip(PUNCTUATION)
        if not same_name(asked, [self.name]):
            return self.search(embedding_name)
        left_over = " ".join(text for text in (bare[len(asked) :], *rest) if text)
        return embedding_answer(self.tokenizer, self.vectors, asked, left_over)


def with_identifier(clip: Clip, name: str, vectors: Mapping[str, Tensor]) -> Clip:
    """A clone of a CLIP in whose prompts `embedding:NAME` is a learned identifier; the original stays.

    Args:
        vectors: text encoder -> `(V, W)`.

    Raises:
        BestiaryError: the CLIP has no tokenizer that looks for embeddings.
    """
    tokenizers = {key: one for key, one in tokenizers_of(clip).items() if one.embedding_key in vectors}
    if not tokenizers:
        raise BestiaryError(
            f"{type(clip.tokenizer).__name__} of this CLIP does not support embeddings: connect a Stable Diffusion CLIP"
        )
    taught = clip.clone()
    taught.tokenizer = copy.copy(clip.tokenizer)
    for attribute, tokenizer in tokenizers.items():
        setattr(taught.tokenizer, attribute, _taught(tokenizer, name, vectors[tokenizer.embedding_key]))
    return taught


def _taught(tokenizer: Tokenizer, name: str, vectors: Tensor) -> Tokenizer:
    taught = copy.copy(tokenizer)
    if taught.embedding_directory is None:
        # ComfyUI takes None for "no embeddings at all" and would not even ask
        taught.embedding_directory = []
    search = tokenizer._try_get_embedding
    if isinstance(search, PartEmbeddings):
        # part dictionaries stay in front, where the nodes that list them look
        own = IdentifierSearch(taught, search.search_folder, name, vectors)
        taught._try_get_embedding = replace(search, tokenizer=taught, search_folder=own)
        return taught
    if isinstance(search, MethodType) and search.__self__ is tokenizer:
        # bound to the copy, which has a folder list
        search = MethodType(search.__func__, taught)
    taught._try_get_embedding = IdentifierSearch(taught, search, name, vectors)
    return taught

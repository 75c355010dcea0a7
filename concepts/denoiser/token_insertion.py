"""Learned vectors in a prompt: token ids laid out in chunks, and the one scatter that puts vectors in their places.

A learned vector replaces the token embedding before positions are added, so it behaves as one more word (textual
inversion, arXiv 2208.01618; PartCraft, arXiv 2407.04604). Chunks follow ComfyUI: every chunk has its own start and end
token, and a short run of tokens that would be cut by the end of a chunk moves whole to the next one; the vectors of one
learned word are such a run.
Letters: B batch, C chunks, L positions of a chunk, P learned vectors, D width of a token embedding.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BestiaryError
from .denoiser import EncoderLayout, PromptPiece

Insertion = Literal["input", "output"]
"""Where learned vectors enter: as token embeddings before the encoders, or in the place of what the encoders say of a filler word."""
LONGEST_MOVED_WORD = 8
"""A run of fewer tokens than this is moved to the next chunk rather than split (ComfyUI: max_word_length)."""


class _Slot(NamedTuple):
    token: int
    weight: float
    vector: int
    """Number of the learned vector that goes here, -1 for plain text."""


def lay_out_tokens(
    pieces: Sequence[PromptPiece],
    tokenize: Callable[[str], list[int]],
    *,
    start: int,
    end: int,
    pad: int,
    filler: int,
    max_tokens: int,
    chunks: int | None = None,
) -> EncoderLayout:
    """Token ids, places of the learned vectors and weights of one prompt.

    Args:
        pieces: text and learned vectors in their order.
        tokenize: text -> token ids without start and end token.
        start, end, pad: special ids of the tokenizer (CLIP-G pads with 0, the others with the end token).
        filler: id that stands where a vector goes; it must not be the end token, at which some encoders read.
        max_tokens: positions of a chunk L, start and end included.
        chunks: exactly this many chunks, cutting or filling; None takes as many as the prompt needs, at least one.

    Raises:
        BestiaryError: `max_tokens` leaves no room, or `filler` is a special id.
    """
    if max_tokens < 3:
        raise BestiaryError(f"max_tokens is {max_tokens}: a chunk needs room for start, end and at least one token")
    if filler in (start, end):
        raise BestiaryError(f"filler id {filler} is the start or end token ({start}, {end}); choose a plain word's id")
    # lists first: how many chunks there are is known only when all tokens have found a place
    filled = _fill_chunks(_groups(pieces, tokenize, filler), max_tokens - 2)
    wanted = len(filled) if chunks is None else chunks
    # cut what does not fit, fill what is missing with empty chunks
    filled = (filled + [[] for _ in range(wanted)])[:wanted]
    ids = torch.full((wanted, max_tokens), pad, dtype=torch.long)  # (C, L)
    weights = torch.ones(wanted, max_tokens)  # (C, L)
    count = sum(piece.text is None for piece in pieces)
    places = torch.full((count,), -1, dtype=torch.long)  # (P,)
    # start | tokens | end | padding, the same in every chunk
    for row, slots in enumerate(filled):
        ids[row, 0] = start
        ids[row, len(slots) + 1] = end
        for place, slot in enumerate(slots, start=1):
            ids[row, place] = slot.token
            weights[row, place] = slot.weight
            if slot.vector >= 0:
                places[slot.vector] = row * max_tokens + place
    return EncoderLayout(ids, places, weights)


def lay_out_run(
    pieces: Sequence[PromptPiece],
    tokenize: Callable[[str], list[int]],
    *,
    end: int,
    pad: int,
    filler: int,
    min_tokens: int,
    max_tokens: int,
) -> EncoderLayout:
    """Like `lay_out_tokens` for encoders that take one run without a start token (T5): tokens, end, padding.

    Returns:
        A layout of one chunk, `(1, L)` with L from `min_tokens` to `max_tokens`; what does not fit is cut off.

    Raises:
        BestiaryError: `max_tokens` leaves no room, or `filler` is the end token.
    """
    if max_tokens < 2:
        raise BestiaryError(f"max_tokens is {max_tokens}: a run needs room for the end and at least one token")
    if filler == end:
        raise BestiaryError(f"filler id {filler} is the end token; choose a plain word's id")
    slots = [slot for group in _groups(pieces, tokenize, filler) for slot in group][: max_tokens - 1]
    length = max(min_tokens, len(slots) + 1)
    ids = torch.full((1, length), pad, dtype=torch.long)  # (1, L)
    weights = torch.ones(1, length)  # (1, L)
    places = torch.full((sum(piece.text is None for piece in pieces),), -1, dtype=torch.long)  # (P,)
    for place, slot in enumerate(slots):
        ids[0, place], weights[0, place] = slot.token, slot.weight
        if slot.vector >= 0:
            places[slot.vector] = place
    ids[0, len(slots)] = end
    return EncoderLayout(ids, places, weights, tokens=len(slots) + 1)


def _groups(pieces: Sequence[PromptPiece], tokenize: Callable[[str], list[int]], filler: int) -> list[list[_Slot]]:
    """One group of slots per text and per learned word, vectors numbered in order."""
    groups: list[list[_Slot]] = []
    vector = 0
    for piece in pieces:
        # a learned vector is one slot, wherever it stands
        if piece.text is None:
            if not (piece.joined and groups and groups[-1] and groups[-1][-1].vector >= 0):
                groups.append([])
            groups[-1].append(_Slot(filler, piece.weight, vector))
            vector += 1
        else:
            groups.append([_Slot(token, piece.weight, -1) for token in tokenize(piece.text)])
    return groups


def _fill_chunks(groups: list[list[_Slot]], room: int) -> list[list[_Slot]]:
    """Distribute groups over chunks of at most `room` slots; long groups are split, short ones moved whole."""
    filled: list[list[_Slot]] = [[]]
    for group in groups:
        rest = group
        # what is left of a long run stays one; in chunks with less room than a short run such a run is cut too
        is_long = len(group) >= min(LONGEST_MOVED_WORD, room + 1)
        while len(filled[-1]) + len(rest) > room:
            free = room - len(filled[-1])
            # a long run fills the chunk to its end; a short one, a word or a few, goes on whole
            if is_long:
                filled[-1].extend(rest[:free])
                rest = rest[free:]
            filled.append([])
        filled[-1].extend(rest)
    return filled


def insert_vectors(embeddings: Tensor, positions: Tensor, vectors: Tensor) -> Tensor:
    """Token embeddings with the learned vectors in their places: one scatter, no host synchronisation.

    Args:
        embeddings: `(B, L, D)`, L being all positions of a prompt (chunks concatenated).
        positions: `(B, P)` long in 0..L-1; -1 inserts nothing.
        vectors: `(B, P, D)`; cast to the dtype of the embeddings.

    Returns:
        `(B, L, D)`, differentiable in both tensors.

    Raises:
        BestiaryError: the shapes do not fit together.
    """
    batch, length, width = embeddings.shape  # (B, L, D)
    if vectors.shape != (*positions.shape, width) or positions.shape[0] != batch:
        raise BestiaryError(
            f"vectors {tuple(vectors.shape)} and positions {tuple(positions.shape)} do not fit embeddings "
            f"{tuple(embeddings.shape)}: expected ({batch}, P, {width}) and ({batch}, P)"
        )
    # -1 points to one row too many, which the slice at the end takes off: no branch, nothing read back to the host
    index = torch.where(positions < 0, length, positions)  # (B, P)
    index = index.unsqueeze(-1).expand(-1, -1, width)  # (B, P, D)
    padded = functional.pad(embeddings, (0, 0, 0, 1))  # (B, L + 1, D)
    return padded.scatter(1, index, vectors.to(embeddings.dtype))[:, :length]  # (B, L, D)

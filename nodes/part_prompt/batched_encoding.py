"""Encodes many prompts with one call of ComfyUI's text encoding, with a separate result for each.

ComfyUI encodes the chunks of one long prompt as one batch. Several prompts are passed as one such prompt and split
afterwards; text encoders that do not work chunk by chunk encode every prompt separately. Letters: C chunks of a prompt,
L positions of a chunk, E width of the conditioning, D width of a text encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..host.comfy_objects import Tokens
from ..host.socket_types import SPANS_KEY

if TYPE_CHECKING:
    from comfy.sd import CLIP

MOST_CHUNKS = 256
"""Maximum number of chunks per call."""
_KNOWN_RESULTS = {"cond", "pooled_output", "hooks", SPANS_KEY}
"""Known entries of an encoding; with any other entry the prompts cannot be separated safely."""


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """Encoding of one prompt by ComfyUI."""

    cond: Tensor
    """`(1, C * L, E)`."""
    facts: dict[str, object]
    """Further options, such as `pooled_output`."""
    states: dict[str, Tensor] = field(default_factory=dict, repr=False)
    """Text encoder -> `(C, L, D)`: input of its final layer norm, if requested."""


@dataclass
class _Watch:
    """Recorded outputs of the text encoders by name, one entry per call."""

    pooled: dict[str, list[Tensor | None]] = field(default_factory=dict)
    """`(rows, E_pooled)` each."""
    states: dict[str, list[Tensor]] = field(default_factory=dict)
    """`(rows, L, D)` each."""


def encode_together(clip: CLIP, prompts: Sequence[Tokens], *, with_states: bool = False) -> list[EncodedPrompt]:
    """Encode prompts in as few calls of the text encoders as possible, usually one.

    Args:
        clip: any CLIP of ComfyUI; not modified.
        prompts: tokens of each prompt.
        with_states: also keep the input of the final layer norm of every CLIP text encoder.

    Returns:
        One result per prompt, equal to that of `clip.encode_from_tokens` for this prompt alone.
    """
    encoded: list[EncodedPrompt] = []
    for group in _groups(prompts):
        together = _encode_group(clip, group, with_states)
        if together is None:
            together = [one for tokens in group for one in _alone(clip, tokens, with_states)]
        encoded += together
    return encoded


def _groups(prompts: Sequence[Tokens]) -> Iterator[list[Tokens]]:
    """Consecutive prompts with at most `MOST_CHUNKS` chunks in total; a longer prompt forms its own group."""
    group: list[Tokens] = []
    chunks = 0
    for tokens in prompts:
        # tokens that are not a dict (other encoders) cannot be joined: such a prompt forms its own group
        count = max((len(own) for own in tokens.values()), default=0) if isinstance(tokens, dict) else MOST_CHUNKS
        if group and chunks + count > MOST_CHUNKS:
            yield group
            group, chunks = [], 0
        group.append(tokens)
        chunks += count
    if group:
        yield group


def _alone(clip: CLIP, tokens: Tokens, with_states: bool) -> list[EncodedPrompt]:
    with _watched(clip, with_states) as watch:
        encoded = clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True)
    cond = encoded.pop("cond")
    encoded.pop(SPANS_KEY, None)
    count = max((len(own) for own in tokens.values()), default=0) if isinstance(tokens, dict) else 0
    # with prompt weights ComfyUI appends a row for the empty prompt: cut it off
    states = {name: calls[-1][:count] for name, calls in watch.states.items()}
    return [EncodedPrompt(cond, encoded, states)]


def _encode_group(clip: CLIP, prompts: list[Tokens], with_states: bool) -> list[EncodedPrompt] | None:
    """Encodes all prompts as one; None if the results cannot be separated."""
    counts = _chunk_counts(prompts)
    if counts is None or len(prompts) == 1:
        return None
    # concatenate the chunks per encoder: ComfyUI sees one long prompt
    joined = {key: [chunk for tokens in prompts for chunk in tokens[key]] for key in prompts[0]}
    with _watched(clip, with_states) as watch:
        encoded = clip.encode_from_tokens(joined, return_pooled=True, return_dict=True)
    cond, pooled = encoded.pop("cond"), encoded.pop("pooled_output")
    # index of each prompt's first chunk
    rows = [sum(counts[:number]) for number in range(len(counts))]
    own_pooled = _pooled_of(watch, pooled, rows)
    # an unknown entry of the result could belong to a single prompt
    if not encoded.keys() <= _KNOWN_RESULTS or own_pooled is None or cond.shape[1] % sum(counts):
        return None
    encoded.pop(SPANS_KEY, None)
    length = cond.shape[1] // sum(counts)
    # an encoder that changes the length of chunks cannot be split by chunk
    if length != len(next(iter(joined.values()))[0]):
        return None
    found = []
    for row, count, own in zip(rows, counts, own_pooled, strict=True):
        states = {name: calls[-1][row : row + count] for name, calls in watch.states.items()}  # (C, L, D)
        piece = cond[:, row * length : (row + count) * length].contiguous()  # (1, C * L, E)
        found.append(EncodedPrompt(piece, {**encoded, "pooled_output": own}, states))
    return found


def _chunk_counts(prompts: list[Tokens]) -> list[int] | None:
    """Number of chunks of every prompt, if all text encoders agree and all chunks have the same length."""
    if not all(isinstance(tokens, dict) and tokens.keys() == prompts[0].keys() for tokens in prompts):
        return None
    counts = [{len(chunks) for chunks in tokens.values()} for tokens in prompts]
    lengths = {len(chunk) for tokens in prompts for chunks in tokens.values() for chunk in chunks}
    if len(lengths) != 1 or any(len(own) != 1 for own in counts):
        return None
    return [own.pop() for own in counts]


def _pooled_of(watch: _Watch, joined: Tensor | None, rows: list[int]) -> list[Tensor | None] | None:
    """The pooled vector `(1, E_pooled)` of every prompt; None if its text encoder cannot be identified."""
    if joined is None:
        return [None for _ in rows]
    # ComfyUI returns the pooled vector of the first chunk: the encoder that produced it has one per chunk
    for calls in watch.pooled.values():
        pooled = calls[-1]
        if pooled is not None and torch.equal(pooled[:1].to(joined), joined):
            return [pooled[row : row + 1].to(joined) for row in rows]
    return None


@contextmanager
def _watched(clip: CLIP, with_states: bool) -> Iterator[_Watch]:
    """Records the outputs of the text encoders with hooks, which are always removed."""
    watch, handles = _Watch(), []
    try:
        for name, encoder in _text_encoders(clip).items():
            handles.append(encoder.register_forward_hook(_pooled_hook(watch.pooled.setdefault(name, []))))
            # states are large: hook the norm only if they are requested
            if with_states and (norm := last_norm(encoder)) is not None:
                handles.append(norm.register_forward_pre_hook(_input_hook(watch.states.setdefault(name, []))))
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def last_norm(encoder: nn.Module) -> nn.Module | None:
    """The final layer norm of a CLIP text encoder, with input `(rows, L, D)`; None for other encoders."""
    return getattr(getattr(encoder.transformer, "text_model", None), "final_layer_norm", None)


def _text_encoders(clip: CLIP) -> dict[str, nn.Module]:
    """The text encoders of a CLIP by name; each returns states `(rows, L, D)`."""
    children = clip.cond_stage_model.named_children()
    return {name: module for name, module in children if hasattr(module, "transformer")}


def _pooled_hook(calls: list[Tensor | None]) -> Callable[[nn.Module, tuple, tuple], None]:
    """A hook that records the pooled vectors `(rows, E_pooled)` of every call."""

    def keep(module: nn.Module, inputs: tuple, output: tuple) -> None:
        calls.append(output[1] if isinstance(output, tuple) and len(output) > 1 else None)

    return keep


def _input_hook(calls: list[Tensor]) -> Callable[[nn.Module, tuple], None]:
    """A hook that records the input `(rows, L, D)` of a module at every call."""

    def keep(module: nn.Module, inputs: tuple) -> None:
        calls.append(inputs[0])

    return keep

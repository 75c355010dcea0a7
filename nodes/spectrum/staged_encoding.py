"""Staged prompts as ComfyUI's CONDITIONING: the text of every stage is encoded once, as entries that act in sequence.

Prompts of both sides are encoded together: every distinct content once, all in one batch. Letters: S stages, L
cross-attention layers, P learned vectors of a prompt, C chunks, T tokens of a conditioning, D width of a vector, E of a context.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...concepts.denoiser.denoiser import PromptPiece
from ...concepts.errors import BestiaryError
from ...concepts.spectrum.staged_prompt import StagedPrompt, StagePrompt
from ..host.comfy_objects import Conditioning, Tokens
from ..host.socket_types import SPANS_KEY, WORDS_KEY
from ..part_prompt.batched_encoding import EncodedPrompt, encode_together, last_norm
from ..part_prompt.clip_tokens import MARK, part_spans, tokenize_plainly
from ..part_prompt.context_words import add_words, context_words
from ..part_prompt.part_encoding import LearnedMention, tokenize_mentions
from .layer_prompts import CONTROLNET_KEY, PACKING_KEY, LayerPacking, pack_layers, packing_hooks
from .stage_ranges import END, FILLER, START, FillerOptions, staged_entries

if TYPE_CHECKING:
    from comfy.hooks import HookGroup
    from comfy.sd import CLIP

BYPASS_FACTOR = 0.2
"""Norm of NeTI's added bypass vector relative to that of the state (arXiv 2305.15391; NeuralTextualInversion/NeTI)."""
_SPECIAL = re.compile(r"([()<>])")
_OWN_ESCAPES = re.compile(r"\\([<>\[\]])")

VectorNames = Mapping[bytes, tuple[str, str]]
"""Bytes of a learned vector `(D,)` -> label and part of its mention, for attention maps."""


@dataclass(frozen=True, eq=False)
class StagedSide:
    """One side of the guidance, positive or negative."""

    prompt: StagedPrompt
    percents: tuple[float, ...]
    """S + 1 boundaries as shares of the sampling in ComfyUI."""
    names: VectorNames = field(default_factory=dict)
    plain_text: str | None = None
    """The text as typed, if it has no stages: it is then encoded as by ComfyUI's own node."""


@dataclass(frozen=True, eq=False)
class _Content:
    """Content of one layer at one stage: the unit of encoding, which is deduplicated."""

    pieces: tuple[PromptPiece, ...]
    vectors: Tensor
    """`(P, D)`."""
    bypass: Tensor | None
    """`(P, D)`."""
    plain_text: str | None

    @property
    def key(self) -> tuple[object, ...]:
        bypass = None if self.bypass is None else self.bypass.numpy().tobytes()
        return self.pieces, self.vectors.numpy().tobytes(), bypass, self.plain_text


@dataclass(frozen=True, eq=False)
class _Encoded:
    """Encoding of one content."""

    keys: Tensor
    """`(1, T, E)`."""
    values: Tensor
    """`(1, T, E)`; the same tensor as `keys` without a bypass of the text encoder."""
    options: dict[str, object]


def encode_sides(
    clip: CLIP, sides: Sequence[StagedSide], *, filler: bool = True, with_hooks: bool = True
) -> list[Conditioning]:
    """Encode positive and negative, or any number of sides that are sampled together.

    Args:
        clip: any CLIP of ComfyUI; not modified.
        sides: a side that is the same at all stages yields the same result as CLIPTextEncode.
        filler: see `staged_entries`.
        with_hooks: add hooks that unpack prompts per layer in any MODEL; False requires a MODEL from
            `layer_prompts.with_layer_prompts`.

    Raises:
        BestiaryError: no CLIP, a vector that does not match it, or layers with a CLIP whose LoRA changes during sampling.
    """
    if clip is None:
        raise BestiaryError("the CLIP input is empty: this checkpoint contains no text encoder; load one separately")
    layers = max((side.prompt.layers or 0 for side in sides), default=0)
    if clip.use_clip_schedule and clip.patcher.forced_hooks is not None:
        if layers:
            raise BestiaryError(
                "this CLIP has a LoRA that changes during sampling, which a prompt with vectors per cross-attention layer cannot "
                "follow: connect the CLIP from before it"
            )
        return [_scheduled(clip, side, filler=filler) for side in sides]
    names = {key: name for side in sides for key, name in side.names.items()}
    together: dict[tuple[object, ...], _Content] = {}
    encoded: dict[tuple[object, ...], _Encoded] = {}
    wanted: list[list[list[tuple[object, ...]]]] = []
    for side in sides:
        rows = [_layer_contents(stage, layers, side.plain_text) for stage in side.prompt.stages]
        contents = {content.key: content for row in rows for content in row}
        wanted.append([[content.key for content in row] for row in rows])
        if len(contents) == 1:
            # encoded separately, so that it is bit-identical to the result of ComfyUI's node
            encoded |= {key: _encode_contents(clip, [one], names)[0] for key, one in contents.items()}
        else:
            together |= contents
    together = {key: content for key, content in together.items() if key not in encoded}
    encoded |= zip(together, _encode_contents(clip, list(together.values()), names), strict=True)
    stages = [[[encoded[key] for key in row] for row in rows] for rows in wanted]
    if layers:
        return _packed_sides(sides, stages, filler=filler, with_hooks=with_hooks)
    return [
        staged_entries([(row[0].keys, row[0].options) for row in rows], side.percents, filler=filler)
        for side, rows in zip(sides, stages, strict=True)
    ]


def _layer_contents(stage: StagePrompt, layers: int, plain_text: str | None) -> list[_Content]:
    """Contents of all layers; a single one if no prompt differs between layers."""
    vectors, bypass = stage.vectors, stage.bypass
    if vectors.ndim == 2:
        # repeat it for all layers if other stages or prompts differ between layers
        return [_Content(stage.pieces, vectors, bypass, plain_text)] * max(1, layers)
    return [
        _Content(stage.pieces, vectors[layer], None if bypass is None else bypass[layer], plain_text)
        for layer in range(vectors.shape[0])
    ]


def _encode_contents(clip: CLIP, contents: list[_Content], names: VectorNames) -> list[_Encoded]:
    tokens = [_tokens(clip, content, names) for content in contents]
    has_bypass = any(content.bypass is not None for content in contents)
    results = encode_together(clip, tokens, with_states=has_bypass)
    encoded = []
    for content, own, result in zip(contents, tokens, results, strict=True):
        options = dict(result.facts)
        if spans := part_spans(own, clip):
            options[SPANS_KEY] = spans
        words = context_words(clip, own, result.cond.shape[1])
        if words is not None:
            options[WORDS_KEY] = words
        values = result.cond if content.bypass is None else _bypassed(clip, content.bypass, own, result)
        encoded.append(_Encoded(result.cond, values, options))
    return encoded


def _tokens(clip: CLIP, content: _Content, names: VectorNames) -> Tokens:
    if content.plain_text is not None:
        return tokenize_plainly(clip, content.plain_text)
    text, mentions = written_pieces(content.pieces, content.vectors, names)
    return tokenize_mentions(clip, text, mentions) if mentions else tokenize_plainly(clip, plain_form(text))


def written_pieces(
    pieces: Sequence[PromptPiece], vectors: Tensor, names: VectorNames
) -> tuple[str, list[LearnedMention]]:
    """Pieces as a text in ComfyUI's syntax, and the positions of the vectors `(P, D)` in it, per learned word."""
    texts: list[str] = []
    words: list[tuple[int, int]] = []  # place of a learned word in the text, and its first vector
    length = used = 0
    for piece in pieces:
        # further vectors of a learned word share its placeholder
        if piece.text is None and piece.joined:
            used += 1
            continue
        opening, closing = ("", "") if piece.weight == 1 else ("(", f":{piece.weight!r})")
        if piece.text is not None:
            # brackets at this point are literal characters: escape them for ComfyUI
            content = _SPECIAL.sub(r"\\\1", piece.text)
        else:
            words.append((length + len(opening), used))
            content = f"<{_name_of(vectors[used], names)[0]}>"
            used += 1
        texts.append(opening + content + closing)
        length += len(texts[-1])
    mentions = []
    for (begin, first), (_, end) in pairwise([*words, (length, used)]):
        label, part = _name_of(vectors[first], names)
        mentions.append(LearnedMention(begin, begin + len(label) + 2, label, part, vectors[first:end]))  # (n, D)
    return "".join(texts), mentions


def _name_of(vector: Tensor, names: VectorNames) -> tuple[str, str]:
    """Label and part of a vector `(D,)`."""
    return names.get(vector.numpy().tobytes(), ("learned vector", "learned vector"))


def plain_form(text: str) -> str:
    """A text without mentions for the tokenizer, with our own escapes removed; ComfyUI unescapes round brackets itself."""
    return _OWN_ESCAPES.sub(r"\1", text)


def _bypassed(clip: CLIP, vectors: Tensor, tokens: Tokens, result: EncodedPrompt) -> Tensor:
    """The conditioning `(1, C * L, E)` for values: bypass vectors `(P, D)` added to the states before the last norm."""
    (name, states), *others = result.states.items() or [("", None)]
    norm = None if states is None else last_norm(getattr(clip.cond_stage_model, name))
    if states is None or norm is None or others or states.shape[-1] != vectors.shape[-1]:
        raise BestiaryError(
            f"bypass vectors of {vectors.shape[-1]} numbers (NeTI) need a CLIP with one text encoder that wide; this "
            f"one has {', '.join(result.states) or 'none'}: connect the CLIP of the model they were trained for"
        )
    flat = states.reshape(1, -1, states.shape[-1])  # (1, C * L, D)
    values = result.cond.clone()
    entries = [entry for chunk in next(iter(tokens.values())) for entry in chunk]
    places = [place for place, entry in enumerate(entries) if getattr(entry[0], MARK, None) is not None]
    for place, bypass in zip(places, vectors, strict=True):
        if not bypass.any():
            continue
        # NeTI scales the bypass vector to a share of the state's norm; ComfyUI's prompt weight is applied to the difference
        state = flat[:, place]  # (1, D)
        added = bypass.to(state) * (BYPASS_FACTOR * state.norm() / bypass.norm())
        moved = norm(state + added).to(values)  # (1, D)
        plain, weight = norm(state).to(values), entries[place][1]
        values[:, place] = moved if weight == 1 else values[:, place] + weight * (moved - plain)
    return values


def _packed_sides(
    sides: Sequence[StagedSide], stages: list[list[list[_Encoded]]], *, filler: bool, with_hooks: bool
) -> list[Conditioning]:
    """Sides with different contexts per layer; all share one hook, if any, so that they can share a batch."""
    has_values = any(one.values is not one.keys for rows in stages for row in rows for one in row)
    hooks: dict[LayerPacking, HookGroup] = {}
    packed_sides = []
    for side, rows in zip(sides, stages, strict=True):
        contents = []
        for row in rows:
            keys = [one.keys for one in row]  # L of (1, T, E)
            packed, packing = pack_layers(keys, [one.values for one in row] if has_values else None)
            options = row[0].options
            if with_hooks:
                if packing not in hooks:
                    hooks[packing] = packing_hooks(packing)
                options = _with_hooks(options, hooks[packing])
            # ControlNets cannot unpack layers: give them the mean context
            mean = torch.stack(keys).mean(0)  # (1, T, E)
            contents.append((packed, {**options, PACKING_KEY: packing, CONTROLNET_KEY: mean}))
        packed_sides.append(staged_entries(contents, side.percents, filler=filler))
    return packed_sides


def _with_hooks(options: dict[str, Any], group: HookGroup) -> dict[str, Any]:
    own = options.get("hooks")
    return {**options, "hooks": group if own is None else own.clone_and_combine(group)}


def _scheduled(clip: CLIP, side: StagedSide, *, filler: bool) -> Conditioning:
    """A side with a CLIP whose LoRA changes during sampling: ComfyUI returns several entries per prompt."""
    entries: Conditioning = []
    ranges = list(zip(side.percents, side.percents[1:], strict=False))
    longest = max(range(len(ranges)), key=lambda stage: ranges[stage][1] - ranges[stage][0])
    for number, (stage, (start, end)) in enumerate(zip(side.prompt.stages, ranges, strict=True)):
        content = _Content(stage.pieces, stage.vectors, None, side.plain_text)
        tokens = _tokens(clip, content, side.names)
        options = {SPANS_KEY: spans} if (spans := part_spans(tokens, clip)) else {}
        is_staged = len(ranges) > 1
        if start < end:
            own = {START: start, END: end} if is_staged else {}
            entries += add_words(clip, tokens, clip.encode_from_tokens_scheduled(tokens, add_dict={**options, **own}))
        if filler and is_staged and number == longest:
            fillers = add_words(
                clip, tokens, clip.encode_from_tokens_scheduled(tokens, add_dict={**options, FILLER: True})
            )
            entries += [[cond, FillerOptions(facts)] for cond, facts in fillers]
    return entries

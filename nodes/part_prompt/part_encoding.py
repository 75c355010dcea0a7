"""A prompt that names learned parts, in ComfyUI's own encoding: CLIP and text in, CONDITIONING out.

The CLIP's tokenizer does all it does for any prompt (brackets and weights, `embedding:name`, chunks, padding). Mentions
go through it as stand-ins that it takes for embeddings of one vector each, and these then make room for the vectors. So
a prompt without mentions is encoded exactly as by ComfyUI's own node, and one mention counts as one token everywhere.
Letters: C chunks, L positions of a chunk, D width of a vector, P mentions.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...concepts.denoiser.backbone import BACKBONES
from ...concepts.errors import BestiaryError
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ...concepts.part_prompt.mention_writing import written_kinds
from ...concepts.part_prompt.part_mention import (
    PartMention,
    PromptError,
    find_mentions,
    foreign_hint,
    next_plain,
    read_mention,
    unescaped,
)
from ...concepts.part_prompt.part_prompt import PartPrompt, check_brackets, names_part, resolve_prompt
from ..denoiser.model_backbone import text_widths
from ..host.comfy_objects import Clip, Conditioning, Tokenizer, Tokens
from ..host.comfy_version import embedding_answer
from ..host.socket_types import SPANS_KEY, ChosenPart
from .chosen_parts import MentionKey, key_of
from .clip_tokens import FillerToken, PartMark, dictionaries_of, filler_tokens, marked, part_spans, tokenize_plainly

log = logging.getLogger(__name__)

_STAND_IN = "\ue000"
"""Begins the name of every stand-in; a character that no keyboard types."""
_ESCAPED_BRACKET = re.compile(r"\\([<>])")


@dataclass(frozen=True)
class LearnedMention:
    """A mention in a text with its vector."""

    start: int
    end: int
    """Slice of the text, angle brackets included."""
    label: str
    """Part and kind without the dictionary, such as "head:cardinal"."""
    part: str
    """Name of the part."""
    vector: Tensor
    """`(D,)`, all text encoders side by side; `(n, D)` for a learned word of several vectors."""


def encode_part_prompt(
    clip: Clip,
    text: str,
    dictionaries: Mapping[str, PartDictionary],
    carried: Mapping[MentionKey, ChosenPart] | None = None,
) -> Conditioning:
    """Encode a prompt with mentions of learned parts.

    Args:
        clip: any CLIP of ComfyUI; it is left as it is.
        text: the grammar of concepts/part_prompt/part_prompt.py.
        dictionaries: name -> dictionary, for mentions that are looked up.
        carried: mentions that bring their own vector; they go before the dictionaries.

    Returns:
        As CLIPTextEncode does; `SPANS_KEY` in the options holds one `PartSpan` per mention, if there are any.

    Raises:
        PromptError: a mention is malformed or unknown.
        BestiaryError: a vector does not fit this CLIP.
    """
    if clip is None:
        raise BestiaryError("the CLIP input is empty: this checkpoint contains no text encoder; load one separately")
    mentions = find_learned_mentions(text, dictionaries, carried or {})
    if not mentions:
        return clip.encode_from_tokens_scheduled(tokenize_plainly(clip, _plain(text)))
    tokens = tokenize_mentions(clip, text, mentions)
    return clip.encode_from_tokens_scheduled(tokens, add_dict={SPANS_KEY: part_spans(tokens)})


def find_learned_mentions(
    text: str, dictionaries: Mapping[str, PartDictionary], carried: Mapping[MentionKey, ChosenPart]
) -> list[LearnedMention]:
    """Every mention of a text with its vector `(D,)`; for arguments and errors see `encode_part_prompt`."""
    found = find_mentions(text)
    check_brackets(text, found)
    # carried vectors go before the dictionaries: only the other mentions are looked up
    unknown = [mention for _, mention in found.values() if key_of(mention) not in carried]
    if unknown and not dictionaries:
        raise PromptError(
            unknown[0].column,
            foreign_hint(unknown[0].target)
            or f"<{unescaped(unknown[0].target)}:...> refers to a part, but no part dictionary is loaded: send the CLIP through "
            "Load Part Dictionary, connect a dictionary or parts here, or write \\< for a literal <",
        )
    return _looked_up(found, dictionaries, carried)


def _looked_up(
    found: Mapping[int, tuple[int, PartMention]],
    dictionaries: Mapping[str, PartDictionary],
    carried: Mapping[MentionKey, ChosenPart],
) -> list[LearnedMention]:
    """Mentions of a text with their vectors `(D,)`."""
    unknown = [mention for _, mention in found.values() if key_of(mention) not in carried]
    resolved = resolve_prompt(PartPrompt(tuple(unknown)), dictionaries)
    looked_up = iter(zip(resolved.mentions, resolved.vectors, strict=True))
    mentions = []
    for start, (end, mention) in found.items():
        own = carried.get(key_of(mention))
        if own is not None and own.vector is not None:
            mentions.append(LearnedMention(start, end, _label(own.part, own.kind), own.part, own.vector))
        else:
            numbers, vector = next(looked_up)
            owner = dictionaries[numbers.dictionary]
            name = owner.part_names[numbers.part]
            label = _label(name, written_kinds(owner, numbers.part, numbers.kinds))
            mentions.append(LearnedMention(start, end, label, name, vector))
    return mentions


def tokenize_known_mentions(clip: Clip, text: str, *args: object, **options: object) -> Tokens:
    """Tokens of a text typed into a node of ComfyUI or another pack: mentions of parts that the CLIP knows are understood.

    Whatever else stands in angle brackets is plain text there, as without the dictionaries; `args` and `options` are those
    of the CLIP's `tokenize`.

    Raises:
        PromptError: a mention of a known part is malformed, or names an unknown kind.
    """
    known = dictionaries_of(clip)
    mentions = known_mentions(text, known) if isinstance(text, str) and "<" in text else {}
    if not mentions:
        return tokenize_plainly(clip, text, *args, **options)
    return tokenize_mentions(clip, text, _looked_up(mentions, known, {}), *args, **options)


def known_mentions(text: str, dictionaries: Mapping[str, PartDictionary]) -> dict[int, tuple[int, PartMention]]:
    """Start of every mention of a part of these dictionaries -> its end and content; what names none of them is logged."""
    found: dict[int, tuple[int, PartMention]] = {}
    place = next_plain(text, "<", 0)
    while place < len(text):
        end = place + 1
        colon = next_plain(text, ":<>", end)
        target = text[end:colon] if text[colon : colon + 1] == ":" else ""
        closing = next_plain(text, "<>", end)
        # "I <3: ..." is text: nothing closes it
        if not target[:1].strip() or text[closing : closing + 1] != ">":
            pass
        elif names_part(target, dictionaries) and (mention := read_mention(text, place)) is not None:
            found[place] = mention
            end = mention[0]
        else:
            hint = foreign_hint(target) or "this CLIP knows no part of that name"
            log.warning("Bestiary: <%s:...> is plain text here: %s", unescaped(target[:40]), hint)
        place = next_plain(text, "<", end)
    return found


def tokenize_mentions(
    clip: Clip, text: str, mentions: list[LearnedMention], *args: object, **options: object
) -> Tokens:
    """Tokens of a text with a vector `(D of the encoder,)`, marked with its mention, in place of every mention.

    Raises:
        BestiaryError: a vector does not fit the CLIP, or its tokenizer loses or doubles a mention.
    """
    # every vector in slices by encoder, and one stand-in per mention for the tokenizer to place
    widths = encoder_widths(clip)
    slices, marks, stand_ins = [], [], {}
    for mention in mentions:
        rows = mention.vector.reshape(-1, mention.vector.shape[-1])  # (n, D)
        # as many rows as the mention has vectors, so that the tokenizer keeps or cuts them as it does an embedding's
        numbers = torch.arange(len(slices), len(slices) + len(rows), dtype=torch.float32)  # (n,)
        stand_ins[f"{_STAND_IN}{len(stand_ins)}"] = (
            numbers if len(rows) == 1 else numbers.unsqueeze(1)
        )  # (1,) or (n, 1)
        slices += [split_for_encoders(row, widths, text[mention.start : mention.end]) for row in rows]
        marks += [PartMark(mention.label, mention.part)] * len(rows)
    written = _with_stand_ins(text, mentions, list(stand_ins))
    tokens = tokenize_plainly(_stand_in_clip(clip, stand_ins), written, *args, **options)
    fillers = filler_tokens(clip)
    filled, places = {}, {}
    for key, chunks in tokens.items():
        # the tokenizer of tokens["l"] is called clip_l, that of tokens["t5xxl"] t5xxl
        encoder = f"clip_{key}" if f"clip_{key}" in fillers else key
        contents = [own.get(encoder, fillers.get(encoder, 0)) for own in slices]
        # an encoder without vectors keeps the places with a plain word; other kinds of encoder have places of their own
        if encoder in widths:
            contents = [_marked(content, mark) for content, mark in zip(contents, marks, strict=True)]
        filled[key], places[encoder] = _filled_chunks(chunks, contents)
    _check_places({name: place for name, place in places.items() if name in widths}, len(slices))
    return filled


def encoder_widths(clip: Clip) -> dict[str, int]:
    """Text encoders of a CLIP that learned vectors can go into, and the width of their token embeddings.

    Raises:
        BestiaryError: it has none.
    """
    # encoders that some dictionary could have vectors for
    names = dict.fromkeys(spec.name for backbone in BACKBONES.values() for spec in backbone.text_encoders)
    held = text_widths(clip)
    if not names.keys() & held.keys():
        raise BestiaryError(
            f"this CLIP has the text encoders {', '.join(held) or 'none'}, but part tokens are trained for "
            f"{', '.join(names)}: use the CLIP of the model that the dictionary was trained for"
        )
    return {name: held[name] for name in names if name in held}


def split_for_encoders(vector: Tensor, widths: Mapping[str, int], mention: str) -> dict[str, Tensor]:
    """Slices of a vector `(D,)` by encoder; one that is as wide as the first encoder alone goes there only.

    Raises:
        BestiaryError: it fits neither way.
    """
    # as wide as all encoders together, or as the first one alone
    names = list(widths)
    if len(vector) == sum(widths.values()):
        return dict(zip(names, vector.split(list(widths.values())), strict=True))
    if len(vector) == widths[names[0]]:
        return {names[0]: vector}
    takes = " + ".join(f"{width} ({name})" for name, width in widths.items())
    raise BestiaryError(
        f"{mention} is a vector of {len(vector)} numbers, but this CLIP takes {takes}: the part was trained for another "
        "base model; load that model, or a dictionary for this one"
    )


def _label(part: str, kinds: str) -> str:
    return f"{part}:{unescaped(kinds)}"


def _plain(text: str) -> str:
    """Text outside mentions as the tokenizer shall see it; brackets and their backslashes are its own business."""
    return _ESCAPED_BRACKET.sub(r"\1", text)


def _marked(content: Tensor | int, mark: PartMark) -> Tensor | FillerToken:
    """A vector `(D of the encoder,)` or a filler as a token that tells where its mention stands."""
    # a view of its own: the same vector may stand in a prompt twice
    return marked(content.view(-1) if isinstance(content, Tensor) else FillerToken(content), mark)


def _with_stand_ins(text: str, mentions: list[LearnedMention], names: list[str]) -> str:
    """The text with an `embedding:` in place of every mention."""
    pieces, place = [], 0
    for mention, name in zip(mentions, names, strict=True):
        pieces += [_plain(text[place : mention.start]), f" embedding:{name} "]
        place = mention.end
    return "".join([*pieces, _plain(text[place:])])


def _stand_in_clip(clip: Clip, stand_ins: Mapping[str, Tensor]) -> Clip:
    """A view of a CLIP whose tokenizer also knows the stand-ins; the CLIP and its tokenizer stay as they are."""
    # only the tokenizer is a copy; weights are shared
    view = copy.copy(clip)
    view.tokenizer = copy.copy(clip.tokenizer)
    for name, inner in vars(clip.tokenizer).items():
        if hasattr(inner, "_try_get_embedding"):
            own = copy.copy(inner)
            search = None if inner.embedding_directory is None else inner._try_get_embedding
            own._try_get_embedding = partial(_find_stand_in, stand_ins, own, search)
            # ComfyUI takes None for "no embeddings at all" and would not even ask
            own.embedding_directory = inner.embedding_directory or []
            setattr(view.tokenizer, name, own)
    return view


def _find_stand_in(
    stand_ins: Mapping[str, Tensor], tokenizer: Tokenizer, search: Callable[[str], tuple] | None, name: str
) -> tuple:
    """A stand-in's tensor `(1,)` and the text behind it, or what the CLIP itself makes of an `embedding:`."""
    first, _, rest = name.partition(" ")
    if first in stand_ins:
        return embedding_answer(tokenizer, stand_ins[first], first, rest.strip())
    # a CLIP without embedding folders reads it as text
    return search(name) if search else embedding_answer(tokenizer, None, name, f"embedding:{name}")


def _filled_chunks(
    chunks: list[list[tuple]], contents: Sequence[Tensor | int]
) -> tuple[list[list[tuple]], list[tuple[int, int]]]:
    """Chunks with every stand-in replaced, and (vector, place in the concatenated chunks) of each in its order."""
    filled, places, begin = [], [], 0
    for chunk in chunks:
        row = []
        # a stand-in counts as one token, so places are those of the vectors
        for place, (token, *rest) in enumerate(chunk, start=begin):
            # a vector of one number is a stand-in and says which it stands for
            number = int(token) if isinstance(token, Tensor) and token.shape == (1,) else None
            if number is not None:
                places.append((number, place))
            row.append((token if number is None else contents[number], *rest))
        filled.append(row)
        begin += len(chunk)
    return filled, places


def _check_places(places: Mapping[str, list[tuple[int, int]]], count: int) -> None:
    """All encoders must hold every mention once, and in the same place."""
    first = next(iter(places.values()), [])
    if any(found != first for found in places.values()) or [number for number, _ in first] != list(range(count)):
        raise BestiaryError(
            f"this CLIP's tokenizer did not keep {count} learned vectors in one place each ({dict(places)}): another pack may "
            "have replaced it; encode with the CLIP of a plain loader"
        )

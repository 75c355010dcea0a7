"""Encodes prompts with learned parts using ComfyUI's own encoding: CLIP and text to CONDITIONING.

The CLIP's tokenizer processes the prompt as usual (brackets and weights, `embedding:name`, chunks, padding). Mentions
are passed as placeholders that it treats as embeddings of one vector each, and which are then replaced by the vectors. So
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
from ..denoiser.model_backbone import (
    TRANSFORMERS,
    check_family,
    check_insertion,
    clip_family,
    missing_notice,
    text_widths,
)
from ..host.comfy_objects import Clip, Conditioning, Tokenizer, Tokens
from ..host.comfy_version import embedding_answer
from ..host.socket_types import SPANS_KEY, ChosenPart
from .chosen_parts import MentionKey, key_of
from .clip_tokens import FillerToken, PartMark, dictionaries_of, filler_tokens, marked, part_spans, tokenize_plainly
from .context_words import add_words

log = logging.getLogger(__name__)

_STAND_IN = "\ue000"
"""Prefix of placeholder names; a private-use character that cannot be typed."""
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
    """`(D,)`, concatenated over the text encoders; `(n, D)` for a learned word of several vectors."""


def encode_part_prompt(
    clip: Clip,
    text: str,
    dictionaries: Mapping[str, PartDictionary],
    carried: Mapping[MentionKey, ChosenPart] | None = None,
) -> Conditioning:
    """Encode a prompt with mentions of learned parts.

    Args:
        clip: any CLIP of ComfyUI; not modified.
        text: a prompt in the grammar of concepts/part_prompt/part_prompt.py.
        dictionaries: name -> dictionary, to look up mentions.
        carried: mentions with their own vector; they take precedence over the dictionaries.

    Returns:
        Like CLIPTextEncode; `SPANS_KEY` in the options contains one `PartSpan` per mention, if there are any, and `WORDS_KEY` the places
        of its plain words.

    Raises:
        PromptError: a mention is malformed or unknown.
        BestiaryError: a vector does not match this CLIP, or a dictionary is of another family.
    """
    if clip is None:
        raise BestiaryError("the CLIP input is empty: this checkpoint contains no text encoder; load one separately")
    mentions = find_learned_mentions(text, dictionaries, carried or {})
    for name, dictionary in dictionaries.items() if mentions else ():
        check_family("dictionary", name, dictionary.backbone, clip)
        check_insertion("dictionary", name, dictionary.insertion)
    if mentions and (notice := missing_notice(clip)):
        log.warning("Bestiary: %s", notice)
    if not mentions:
        tokens = tokenize_plainly(clip, _plain(text))
        return add_words(clip, tokens, clip.encode_from_tokens_scheduled(tokens))
    tokens = tokenize_mentions(clip, text, mentions)
    encoded = clip.encode_from_tokens_scheduled(tokens, add_dict={SPANS_KEY: part_spans(tokens, clip)})
    return add_words(clip, tokens, encoded)


def find_learned_mentions(
    text: str, dictionaries: Mapping[str, PartDictionary], carried: Mapping[MentionKey, ChosenPart]
) -> list[LearnedMention]:
    """All mentions of a text with their vectors `(D,)`; for arguments and errors see `encode_part_prompt`."""
    found = find_mentions(text)
    check_brackets(text, found)
    # carried vectors take precedence: only the other mentions need a dictionary
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
    """Tokens of a text from any node of ComfyUI or another pack; mentions of parts loaded in the CLIP are resolved.

    Other angle brackets stay plain text, as without dictionaries; `args` and `options` are those of the CLIP's `tokenize`.

    Raises:
        PromptError: a mention of a known part is malformed, or its kind is unknown.
    """
    known = dictionaries_of(clip)
    mentions = known_mentions(text, known) if isinstance(text, str) and "<" in text else {}
    if not mentions:
        return tokenize_plainly(clip, text, *args, **options)
    return tokenize_mentions(clip, text, _looked_up(mentions, known, {}), *args, **options)


def known_mentions(text: str, dictionaries: Mapping[str, PartDictionary]) -> dict[int, tuple[int, PartMention]]:
    """Start of every mention of a part of these dictionaries -> its end and content; other brackets are logged."""
    found: dict[int, tuple[int, PartMention]] = {}
    place = next_plain(text, "<", 0)
    while place < len(text):
        end = place + 1
        colon = next_plain(text, ":<>", end)
        target = text[end:colon] if text[colon : colon + 1] == ":" else ""
        closing = next_plain(text, "<>", end)
        # "I <3: ..." is plain text: it has no closing bracket
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
    """Tokens of a text with every mention replaced by its marked vector `(D of the encoder,)`.

    Raises:
        BestiaryError: a vector does not match the CLIP, or its tokenizer loses or duplicates a mention.
    """
    # split every vector by encoder, and create one placeholder per mention for the tokenizer
    widths, whole = encoder_widths(clip), vector_widths(clip)
    slices, marks, stand_ins = [], [], {}
    for mention in mentions:
        rows = mention.vector.reshape(-1, mention.vector.shape[-1])  # (n, D)
        # the placeholder has one row per vector, so that the tokenizer wraps or cuts it like an embedding
        numbers = torch.arange(len(slices), len(slices) + len(rows), dtype=torch.float32)  # (n,)
        stand_ins[f"{_STAND_IN}{len(stand_ins)}"] = (
            numbers if len(rows) == 1 else numbers.unsqueeze(1)
        )  # (1,) or (n, 1)
        slices += [split_for_encoders(row, whole, text[mention.start : mention.end]) for row in rows]
        marks += [PartMark(mention.label, mention.part)] * len(rows)
    written = _with_stand_ins(text, mentions, list(stand_ins))
    tokens = tokenize_plainly(_stand_in_clip(clip, stand_ins), written, *args, **options)
    fillers = filler_tokens(clip)
    filled, places = {}, {}
    for key, chunks in tokens.items():
        # naming differs: tokens["l"] belongs to the tokenizer clip_l, tokens["t5xxl"] to t5xxl
        encoder = f"clip_{key}" if f"clip_{key}" in fillers else key
        contents = [own.get(encoder, fillers.get(encoder, 0)) for own in slices]
        # encoders without vectors get a filler word
        if encoder in widths:
            contents = [_marked(content, mark) for content, mark in zip(contents, marks, strict=True)]
        filled[key], places[encoder] = _filled_chunks(chunks, contents)
    _check_places({name: place for name, place in places.items() if name in widths}, len(slices))
    return filled


def encoder_widths(clip: Clip) -> dict[str, int]:
    """Text encoders of a CLIP that support learned vectors, with the width of their token embeddings.

    Raises:
        BestiaryError: it has none.
    """
    # all encoders of the known backbones, each once and in their order
    names = dict.fromkeys(spec.name for backbone in BACKBONES.values() for spec in backbone.text_encoders)
    held = text_widths(clip)
    if not names.keys() & held.keys():
        raise BestiaryError(
            f"this CLIP has the text encoders {', '.join(held) or 'none'}, but part tokens are trained for "
            f"{', '.join(names)}: use the CLIP of the model that the dictionary was trained for"
        )
    return {name: held[name] for name in names if name in held}


def vector_widths(clip: Clip) -> dict[str, int]:
    """Widths of the pieces of which a learned vector for this CLIP consists; where SD3 was loaded without an encoder, with the published one's."""
    held, family = encoder_widths(clip), clip_family(clip)
    if family not in TRANSFORMERS or family is None:
        return held
    return {spec.name: held.get(spec.name, spec.width) for spec in BACKBONES[family].text_encoders}


def split_for_encoders(vector: Tensor, widths: Mapping[str, int], mention: str) -> dict[str, Tensor]:
    """Slices of a vector `(D,)` by encoder; a vector with the width of the first encoder is used only there.

    Raises:
        BestiaryError: its width matches neither.
    """
    # the second case: a vector of SD1.5 also works in the first encoder of SDXL
    names = list(widths)
    if len(vector) == sum(widths.values()):
        return dict(zip(names, vector.split(list(widths.values())), strict=True))
    if len(vector) == widths[names[0]] and "t5xxl" not in widths:
        return {names[0]: vector}
    takes = " + ".join(f"{width} ({name})" for name, width in widths.items())
    raise BestiaryError(
        f"{mention} is a vector of {len(vector)} numbers, but this CLIP takes {takes}: the part was trained for another "
        "base model; load that model, or a dictionary for this one"
    )


def _label(part: str, kinds: str) -> str:
    return f"{part}:{unescaped(kinds)}"


def _plain(text: str) -> str:
    """Text outside mentions for the tokenizer, with angle brackets unescaped; round brackets stay as they are."""
    return _ESCAPED_BRACKET.sub(r"\1", text)


def _marked(content: Tensor | int, mark: PartMark) -> Tensor | FillerToken:
    """A vector `(D of the encoder,)` or a filler as a token with the mark of its mention."""
    # a separate view: the same vector may occur twice in a prompt, with different marks
    return marked(content.view(-1) if isinstance(content, Tensor) else FillerToken(content), mark)


def _with_stand_ins(text: str, mentions: list[LearnedMention], names: list[str]) -> str:
    """The text with every mention replaced by an `embedding:` placeholder."""
    pieces, place = [], 0
    for mention, name in zip(mentions, names, strict=True):
        pieces += [_plain(text[place : mention.start]), f" embedding:{name} "]
        place = mention.end
    return "".join([*pieces, _plain(text[place:])])


def _stand_in_clip(clip: Clip, stand_ins: Mapping[str, Tensor]) -> Clip:
    """A copy of a CLIP whose tokenizer also resolves the placeholders; the CLIP and its tokenizer are not modified."""
    # shallow copies: only the tokenizer is replaced, weights are shared
    view = copy.copy(clip)
    view.tokenizer = copy.copy(clip.tokenizer)
    for name, inner in vars(clip.tokenizer).items():
        if hasattr(inner, "_try_get_embedding"):
            own = copy.copy(inner)
            search = None if inner.embedding_directory is None else inner._try_get_embedding
            own._try_get_embedding = partial(_find_stand_in, stand_ins, own, search)
            # with None ComfyUI skips the embedding search entirely
            own.embedding_directory = inner.embedding_directory or []
            setattr(view.tokenizer, name, own)
    return view


def _find_stand_in(
    stand_ins: Mapping[str, Tensor], tokenizer: Tokenizer, search: Callable[[str], tuple] | None, name: str
) -> tuple:
    """A placeholder's tensor `(1,)` and the remaining text, or the CLIP's own result for `embedding:`."""
    first, _, rest = name.partition(" ")
    if first in stand_ins:
        return embedding_answer(tokenizer, stand_ins[first], first, rest.strip())
    # a CLIP without embedding folders treats it as text
    return search(name) if search else embedding_answer(tokenizer, None, name, f"embedding:{name}")


def _filled_chunks(
    chunks: list[list[tuple]], contents: Sequence[Tensor | int]
) -> tuple[list[list[tuple]], list[tuple[int, int]]]:
    """Chunks with all placeholders replaced, and (vector number, position in the concatenated chunks) of each in order."""
    filled, places, begin = [], [], 0
    for chunk in chunks:
        row = []
        # a placeholder counts as one token, so positions are already those of the vectors
        for place, (token, *rest) in enumerate(chunk, start=begin):
            # placeholders are the only vectors of one number, which is the index of their vector
            number = int(token) if isinstance(token, Tensor) and token.shape == (1,) else None
            if number is not None:
                places.append((number, place))
            row.append((token if number is None else contents[number], *rest))
        filled.append(row)
        begin += len(chunk)
    return filled, places


def _check_places(places: Mapping[str, list[tuple[int, int]]], count: int) -> None:
    """Check that all encoders contain every mention once, in the order of the prompt; each lays a prompt out on its own."""
    wanted = list(range(count))
    if not places or any([number for number, _ in found] != wanted for found in places.values()):
        raise BestiaryError(
            f"this CLIP's tokenizer did not place each of {count} learned vectors once ({dict(places)}): another pack may "
            "have replaced it; use the CLIP of a plain loader"
        )

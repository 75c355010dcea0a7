"""The words of an encoded prompt with their places in the context, read from the tokens of any CLIP whose layout is known.

Letters: C chunks, K positions of the context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from ...concepts.part_prompt.prompt_words import BREAK, PromptWords, TokenRun, token_run
from ..host.comfy_objects import Clip, Conditioning, Tokenizer
from ..host.socket_types import WORDS_KEY

CONTEXTS: dict[frozenset[str], tuple[tuple[str, ...], ...]] = {
    frozenset({"l"}): (("l",),),
    frozenset({"h"}): (("h",),),
    frozenset({"g"}): (("g",),),
    frozenset({"g", "l"}): (("l", "g"),),
    frozenset({"g", "l", "t5xxl"}): (("l", "g"), ("t5xxl",)),
    frozenset({"l", "t5xxl"}): (("t5xxl",),),
    frozenset({"qwen25_7b"}): (("qwen25_7b",),),
    frozenset({"qwen3_4b"}): (("qwen3_4b",),),
    frozenset({"qwen3_06b", "t5xxl"}): (("t5xxl",),),
}
"""Text encoders that a CLIP has tokens of -> those that make up the context: side by side in a group, groups behind each other.

In order: Stable Diffusion 1.5 and 2, the refiner of XL, XL, SD3, Flux.1 (CLIP is pooled only), Qwen-Image, Z-Image, Anima (whose adapter turns
the states of Qwen3 into one for every T5 token).
"""
CUT_TEMPLATES = frozenset({"qwen25_7b"})
"""Encoders whose chat template is cut off in front of the states, so that places count from the end of the context."""
USER_TURN = ("<|im_start|>", "user")
TURN_END = "<|im_end|>"
_WORD_END = "</w>"
_SPACE = "▁"


def context_words(clip: Clip, tokens: object, length: int) -> PromptWords | None:
    """The words of a prompt that was just encoded; None for a CLIP whose layout is unknown.

    Args:
        clip: the CLIP that made the tokens.
        tokens: result of its `tokenize`.
        length: K of the states that it made of them.
    """
    if not isinstance(tokens, Mapping):
        return None
    starts = context_starts(tokens, clip)
    if starts is None:
        return None
    runs = []
    for key, first in starts.items():
        start = length - _count(tokens[key]) if key in CUT_TEMPLATES else first
        runs.append(_token_run(_tokenizer(clip, key), tokens[key], start))
    return PromptWords(tuple(runs))


def context_starts(tokens: Mapping[str, Sequence[Sequence[tuple]]], clip: Clip | None = None) -> dict[str, int] | None:
    """Where the first token of every text encoder stands in the context, a template that is cut off included; None for an unknown layout.

    Encoders that are pooled only, or that the CLIP was loaded without, are left out.
    """
    groups = CONTEXTS.get(frozenset(tokens))
    if groups is None:
        return None
    starts, first = {}, 0
    for group in groups:
        held = [key for key in group if clip is None or _has_encoder(clip, key)]
        starts |= dict.fromkeys(held, first)
        # encoders side by side are cut to the shorter one
        first += min((_count(tokens[key]) for key in held), default=0)
    return starts


def add_words(clip: Clip, tokens: object, encoded: Conditioning) -> Conditioning:
    """The same conditioning, whose entries now say where the words of its prompt stand."""
    for states, facts in encoded:
        words = context_words(clip, tokens, states.shape[1])
        if words is not None:
            facts.setdefault(WORDS_KEY, words)
    return encoded


def _has_encoder(clip: Clip, key: str) -> bool:
    """False for an encoder that a CLIP was loaded without, as SD3 allows."""
    return getattr(clip.cond_stage_model, _attribute(key), True) is not None


def _tokenizer(clip: Clip, key: str) -> Tokenizer:
    return getattr(clip.tokenizer, _attribute(key))


def _attribute(key: str) -> str:
    # tokens["l"] belong to clip_l, all others to the encoder of the same name
    return f"clip_{key}" if len(key) == 1 else key


def _count(chunks: Sequence[Sequence[tuple]]) -> int:
    return sum(map(len, chunks))


def _token_run(tokenizer: Tokenizer, chunks: Sequence[Sequence[tuple]], start: int) -> TokenRun:
    """The tokens of all chunks of an encoder, whose first one stands at `start`."""
    contents = [entry[0] for chunk in chunks for entry in chunk]
    # a picture takes more than one place, so that only what stands behind the last one is certain
    pictures = [i for i, content in enumerate(contents) if isinstance(content, Mapping)]
    first = pictures[-1] + 1 if pictures else 0
    special = set(getattr(tokenizer.tokenizer, "all_special_ids", ()))
    ids = [content if type(content) is int and i >= first else None for i, content in enumerate(contents)]
    names = ["" if number is None else str(tokenizer.inv_vocab.get(number, "")) for number in ids]
    in_pieces = any(_SPACE in name for name in names)
    in_words = getattr(tokenizer.tokenizer, "whole_words", False)
    if in_words:
        names = [f"{name}{_WORD_END}" for name in names]
    turn = _user_turn(names)
    pieces = []
    for i, (number, name) in enumerate(zip(ids, names, strict=True)):
        plain = name.removesuffix(_WORD_END)
        is_word = (
            i in turn and plain and number not in special and not (plain.startswith("<|") and plain.endswith("|>"))
        )
        pieces.append(
            BREAK.encode() if not is_word else name.replace(_SPACE, " ").encode() if in_pieces else _bytes(name)
        )
    return token_run(pieces, start, spaced=any(name.endswith(_WORD_END) for name in names))


def _user_turn(names: Sequence[str]) -> range:
    """Tokens of the last turn of the user in a chat template, without its line end; all tokens where there is none."""
    begins = [i for i in range(len(names) - 1) if (names[i], names[i + 1]) == USER_TURN]
    if not begins:
        return range(len(names))
    # behind <|im_start|>, user and the line end
    first = begins[-1] + 3
    ends = (i for i in range(first, len(names)) if names[i] == TURN_END)
    return range(first, next(ends, len(names)))


def _bytes(name: str) -> bytes:
    """Text of a token of CLIP or Qwen, whose vocabularies write every byte as a letter."""
    letters = byte_letters()
    spelt = name.removesuffix(_WORD_END)
    return b"".join(bytes([letters[one]]) if one in letters else one.encode() for one in spelt) + b" " * (spelt != name)


@cache
def byte_letters() -> dict[str, int]:
    """Letter -> byte in the vocabularies of byte-level tokenizers (as GPT-2 defined it: openai/gpt-2, src/encoder.py).

    Bytes that are visible letters stand for themselves, the others for the letters from 256 on, in their order.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}

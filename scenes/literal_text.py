"""Data inside chatty text: JSON and Python's literals, found by their brackets and read as data only; nothing is ever run."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import NamedTuple, NoReturn

from ..concepts.errors import BestiaryError

MOST_TEXT = 100_000
"""Bytes of a text."""
DEEPEST = 64
"""Brackets within one another."""
_MOST_VALUES = 2000
_MOST_FAILURES = 1000
"""Brackets from which nothing could be read."""
_MOST_STEPS = 300_000
"""Brackets, quotes and line ends that are looked at, in all attempts to read Python's literals together."""

_CODE = re.compile(r"__[A-Za-z]+__|\b(?:eval|exec|compile|getattr|globals|open|system|popen)\(|\blambda\b.{0,40}:")
_STEP = re.compile(r"[\[\](){}\"'\\\n]")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_SCALAR = re.compile(r"''|True|False|None|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_PUNCTUATION = re.compile(r"[\s,:0\[\](){}]*")
_JSON_WORDS = {"true": "True", "false": "False", "null": "None"}


class _Bracketed(NamedTuple):
    """A text from a bracket to its partner."""

    pieces: list[tuple[bool, str]]
    """Whether a piece is a quoted string, and the piece."""
    end: int


def find_values(text: str) -> list[object]:
    """Every value in brackets that a text holds, outermost first: of a list that cannot be read, what can be read inside it.

    JSON, with or without a fence around it, and Python's tuples, lists and dictionaries of plain numbers, strings, True, False, None.

    Raises:
        BestiaryError: more than 100 kB, brackets nested deeper than 64, or what looks like program code.
    """
    if len(text) > MOST_TEXT or len(text.encode("utf-8", "replace")) > MOST_TEXT:
        raise BestiaryError(
            f"a text of {len(text)} characters is too long for a layout: at most {MOST_TEXT // 1000} kB are read"
        )
    if code := _CODE.search(text):
        raise BestiaryError(
            f"the text holds what looks like program code, {code.group()[:40]!r}, which is never run: ask for JSON alone"
        )
    _check_depth(text)
    values: list[object] = []
    at, steps, failures = 0, _MOST_STEPS, 0
    decoder = json.JSONDecoder(parse_constant=_refuse)
    for opening in re.finditer(r"[\[({]", text):
        start = opening.start()
        if start < at:
            continue
        if len(values) >= _MOST_VALUES or failures >= _MOST_FAILURES:
            break
        try:
            value, at = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            bracketed, used = _bracketed(text, start, steps)
            steps -= used
            value = None if bracketed is None else _literal(bracketed.pieces)
            if bracketed is None or value is None:
                failures += 1
                continue
            at = bracketed.end
        values.append(value)
    return values


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number")


def _check_depth(text: str) -> None:
    depth = 0
    for bracket in re.finditer(r"[\[\](){}]", text):
        depth = depth + 1 if bracket.group() in _CLOSING else max(0, depth - 1)
        if depth > DEEPEST:
            raise BestiaryError(f"the text has brackets nested deeper than {DEEPEST}: this is not a layout")


def _bracketed(text: str, start: int, steps: int) -> tuple[_Bracketed | None, int]:
    """From a bracket to its partner, None where there is none within the steps; and the steps used."""
    pieces: list[tuple[bool, str]] = []
    expected: list[str] = []
    quote, quoted_from, bare_from, used, skip = "", start, start, 0, -1
    for step in _STEP.finditer(text, start):
        used += 1
        sign, place = step.group(), step.start()
        if used > steps or (quote and sign == "\n"):
            break
        if place < skip:
            continue
        if quote:
            if sign == "\\":
                skip = place + 2
            elif sign == quote:
                pieces.append((True, text[quoted_from : place + 1]))
                quote, bare_from = "", place + 1
        elif sign in "\"'":
            pieces.append((False, text[bare_from:place]))
            quote, quoted_from = sign, place
        elif sign in _CLOSING:
            expected.append(_CLOSING[sign])
        elif sign in ")]}":
            if sign != expected.pop():
                break
            if not expected:
                pieces.append((False, text[bare_from : place + 1]))
                return _Bracketed(pieces, place + 1), used
    return None, used


def _literal(pieces: list[tuple[bool, str]]) -> object:
    """The value of a Python literal, None if it is anything but plain data."""
    pieces = [
        (quoted, piece if quoted else re.sub(r"\b(?:true|false|null)\b", lambda word: _JSON_WORDS[word.group()], piece))
        for quoted, piece in pieces
    ]
    bare = "".join("''" if quoted else piece for quoted, piece in pieces)
    # every scalar becomes a lone 0: two side by side are a sum, a call or a prefix, and none of them is data
    plain = _SCALAR.sub(" 0 ", bare)
    if not _PUNCTUATION.fullmatch(plain) or re.search(r"0\s+0|00", plain):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.literal_eval("".join(piece for _, piece in pieces))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None

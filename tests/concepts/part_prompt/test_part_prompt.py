"""The prompt grammar: text, weights, mentions, and what they resolve to."""

import random
import time
from contextlib import suppress

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import PromptPiece
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_prompt.part_prompt import (
    PartMention,
    PartPrompt,
    PromptError,
    ResolvedMention,
    TextSegment,
    parse_part_prompt,
    resolve_prompt,
)


def dictionary(parts: dict[str, dict[int, str]], first: float = 0.0, **changes: object) -> PartDictionary:
    rows = [(part, kind) for part, kinds in enumerate(parts.values()) for kind in kinds]
    vectors = first + torch.arange(len(rows) * 3.0).view(len(rows), 3)
    fields = {
        "backbone": "sd15",
        "part_names": tuple(parts),
        "kind_names": tuple({kind: name for kind, name in kinds.items() if name} for kinds in parts.values()),
        "background": None,
        "rows": torch.tensor(rows),
        "embeddings": {"clip_l": vectors},
    }
    return PartDictionary(**{**fields, **changes})


BIRDS = dictionary({"head": {16: "cardinal", 17: "blue jay", 18: ""}, "wing": {0: "owl", 100: "pelican"}, "gone": {}})
DOGS = dictionary({"nose": {0: "", 119: "Cardigan"}, "head": {5: "pug"}}, 500.0, id_base=1)
BOTH = {"birds": BIRDS, "my.dogs": DOGS}


def layout(text: str) -> list[tuple[str, float]]:
    """Segments as (text or <target>, weight)."""
    segments = parse_part_prompt(text).segments
    return [(s.text if isinstance(s, TextSegment) else f"<{s.target}>", round(s.weight, 6)) for s in segments]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a bird", [("a bird", 1)]),
        ("a <head:17> bird", [("a ", 1), ("<head>", 1), (" bird", 1)]),
        ("<head:1><wing:2>", [("<head>", 1), ("<wing>", 1)]),
        ("(a)", [("a", 1.1)]),
        ("((a))", [("a", 1.21)]),
        ("(a:1.3) b", [("a", 1.3), (" b", 1)]),
        ("(a (b:0.5) c:2)", [("a ", 2), ("b", 0.5), (" c", 2)]),
        ("(a (b))", [("a ", 1.1), ("b", 1.21)]),
        ("((a:1.2))", [("a", 1.2)]),
        ("(<head:17>:1.2)", [("<head>", 1.2)]),
        ("(<head:17>)", [("<head>", 1.1)]),
        ("(a <head:17>, b:0.8)", [("a ", 0.8), ("<head>", 0.8), (", b", 0.8)]),
        ("((<head:17>:1.5) b)", [("<head>", 1.5), (" b", 1.1)]),
        ("(<head:jay (male)>:1.2)", [("<head>", 1.2)]),
        (r"\(a\) \<b\>", [("(a) <b>", 1)]),
        (r"(a \(b\):1.2)", [("a (b)", 1.2)]),
        (r"C:\dir", [(r"C:\dir", 1)]),
        ("at 10:30 pm, a:b", [("at 10:30 pm, a:b", 1)]),
        ("(at 10:30 pm)", [("at 10:30 pm", 1.1)]),
        ("a (b", [("a (b", 1)]),
        ("a) b :)", [("a) b :)", 1)]),
        ("a (b (c)", [("a (b ", 1), ("c", 1.1)]),
        ("()", []),
        ("(:1.2)", [(":1.2", 1.1)]),
        ("(a:-1)", [("a", -1)]),
        ("(a:nan)", [("a:nan", 1.1)]),
        ("a < b > c", [("a < b > c", 1)]),
        ("oil.", [("oil.", 1)]),
    ],
)
def test_text_weights_and_mentions(text: str, expected: list) -> None:
    assert layout(text) == [(piece, pytest.approx(weight)) for piece, weight in expected]


def test_repeats_keep_their_order() -> None:
    prompt = parse_part_prompt("a photo of a <2:16><2:17> bird, oil.")
    assert prompt.mentions == (
        PartMention("2", (("16", 1.0),), 14),
        PartMention("2", (("17", 1.0),), 20),
    )


def weights_of_comfyui(text: str, current: float = 1.0) -> list[tuple[str, float]]:
    """Bracket weights as ComfyUI's users know them: an inner number replaces, bare brackets multiply by 1.1."""
    result, item, depth = [], "", 0
    items = []
    for character in text:
        if character == "(" and depth == 0 and item:
            items.append(item)
            item = ""
        item += character
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == ")" and depth == 0:
            items.append(item)
            item = ""
    for piece in [*items, item] if item else items:
        if not (piece.startswith("(") and piece.endswith(")")):
            result.append((piece, current))
            continue
        inner, weight = piece[1:-1], current * 1.1
        head, _, tail = inner.rpartition(":")
        with suppress(ValueError):
            inner, weight = (head, float(tail)) if head else (inner, weight)
        result += weights_of_comfyui(inner, weight)
    return result


def test_weights_equal_comfyui_on_random_balanced_prompts() -> None:
    rng = random.Random(0)

    def draw(depth: int) -> str:
        parts = [rng.choice("abc") for _ in range(rng.randint(1, 3))]
        if depth:
            weight = rng.choice(["", ":1.3", ":0.5", ":2"])
            parts.insert(rng.randint(0, len(parts)), f"({draw(depth - 1)}{weight})")
        return " ".join(parts)

    for _ in range(300):
        text = draw(rng.randint(0, 4))
        ours = [(s.text, pytest.approx(s.weight)) for s in parse_part_prompt(text).segments]
        assert ours == [piece for piece in weights_of_comfyui(text) if piece[0]]


def test_deep_brackets_are_an_error_and_many_are_fast() -> None:
    with pytest.raises(PromptError, match="column 202: brackets nest deeper than 64"):
        parse_part_prompt("(" * 200 + "a" + ")" * 200)
    started = time.process_time()
    parse_part_prompt("(" * 20_000)
    parse_part_prompt("(a) " * 5_000)
    parse_part_prompt("a < " * 5_000)
    assert time.process_time() - started < 5


def test_pieces_and_vectors_of_a_prompt() -> None:
    prompt = parse_part_prompt("a <head:cardinal> (<wing:100>:1.3) bird, <head:17>")
    ours = resolve_prompt(prompt, {"birds": BIRDS})
    assert ours.pieces == (
        PromptPiece("a "),
        PromptPiece(None),
        PromptPiece(" "),
        PromptPiece(None, 1.3),
        PromptPiece(" bird, "),
        PromptPiece(None),
    )
    assert torch.equal(ours.vectors, torch.stack([BIRDS.vector(0, 16), BIRDS.vector(1, 100), BIRDS.vector(0, 17)]))
    assert ours.mentions[1] == ResolvedMention(1, ((100, 1.0),), "birds", 1.3)


def test_blends_are_linear_with_exact_ends() -> None:
    def vector(text: str) -> torch.Tensor:
        return resolve_prompt(parse_part_prompt(text), {"birds": BIRDS}).vectors[0]

    first, second = BIRDS.vector(0, 16), BIRDS.vector(0, 17)
    assert torch.equal(vector("<head:16*0.5+blue jay*0.5>"), 0.5 * first + 0.5 * second)
    assert torch.equal(vector("<head:16*1+17*0>"), first)
    assert torch.equal(vector("<head:16*0+17*1>"), second)
    assert torch.allclose(vector("<head:16*0.6+17*0.3+18*0.1>"), 0.6 * first + 0.3 * second + 0.1 * BIRDS.vector(0, 18))


def test_a_plain_prompt_needs_no_dictionary() -> None:
    ours = resolve_prompt(parse_part_prompt("a bird at 10:30"), {})
    assert ours.pieces == (PromptPiece("a bird at 10:30"),)
    assert ours.vectors.shape == (0, 0)
    assert resolve_prompt(parse_part_prompt(""), BOTH).vectors.shape == (0, 3)


@pytest.mark.parametrize(
    ("text", "dictionary_name", "part", "kind"),
    [
        ("<wing:owl>", "birds", 1, 0),
        ("<birds.head:17>", "birds", 0, 17),
        ("<Birds.0:17>", "birds", 0, 17),
        ("<nose:Cardigan>", "my.dogs", 0, 119),
        ("<nose:120>", "my.dogs", 0, 119),
        ("<my.dogs.head:pug>", "my.dogs", 1, 5),
    ],
)
def test_mentions_find_their_dictionary(text: str, dictionary_name: str, part: int, kind: int) -> None:
    (ours,) = resolve_prompt(parse_part_prompt(text), BOTH).mentions
    assert (ours.dictionary, ours.part, ours.kinds) == (dictionary_name, part, ((kind, 1.0),))


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        (
            "a <head:999>",
            3,
            r"part 'head' exists in several dictionaries: write one of <birds.head:...>, <my.dogs.head:",
        ),
        (
            "a <birds.head:999>",
            3,
            r"unknown kind 999 of part 'head': choose one of 16..18; nearest: 18 \(18\), 17 \(blue jay\)",
        ),
        ("<birds.head:cardnal>", 1, "unknown kind 'cardnal' of part 'head': choose 'cardinal', 'blue jay'"),
        ("<birds.head:0>", 1, "unknown kind 0 of part 'head'"),
        ("<nose:121>", 1, r"unknown kind 121 of part 'nose': choose one of 1, 120; nearest: 120 \(Cardigan\)"),
        ("<nose:0>", 1, "unknown kind 0 of part 'nose'"),
        ("<birds.head:-1>", 1, "unknown kind -1"),
        ("<birds.9:999>", 1, "unknown part '9': choose 'head', 'wing', or a number of 0..1"),
        ("<wnig:1>", 1, "unknown part 'wnig': choose 'birds.head', 'birds.wing', 'my.dogs.nose'"),
        ("<birds.gone:1>", 1, "unknown part 'gone'"),
        ("<cats.head:1>", 1, "unknown dictionary 'cats': choose 'birds', 'my.dogs'"),
        ("<../../secret.head:1>", 1, "unknown dictionary '../../secret'"),
        ("a, b, <wing:owl*0.5+eagle*0.5>", 7, "unknown kind 'eagle' of part 'wing'"),
    ],
)
def test_unknown_names_say_column_and_choices(text: str, column: int, message: str) -> None:
    with pytest.raises(PromptError, match=f"^prompt, column {column}: ({message})"):
        resolve_prompt(parse_part_prompt(text), BOTH)


def test_one_dictionary_needs_no_prefix_and_none_is_an_error() -> None:
    (ours,) = resolve_prompt(parse_part_prompt("<0:18>"), {"birds": BIRDS}).mentions
    assert ours.kinds == ((18, 1.0),)
    with pytest.raises(PromptError, match="column 1: <head:...> refers to a part, but no part dictionary is loaded"):
        resolve_prompt(parse_part_prompt("<head:1>"), {})
    with pytest.raises(PromptError, match="column 1: unknown part 'beak': choose 'head'"):
        resolve_prompt(parse_part_prompt("<beak:1>"), {"birds": BIRDS})


def test_names_with_signs_are_reached_by_backslashes() -> None:
    odd = dictionary({"no.1 <x>": {0: "a*b+c:d@e", 1: "<script>"}})
    prompt = parse_part_prompt(r"<no.1 \<x\>:a\*b\+c:d\@e> <0:\<script\>>")
    assert [mention.kinds[0][0] for mention in resolve_prompt(prompt, {"odd": odd}).mentions] == [0, 1]


def test_dictionaries_of_different_models_cannot_share_a_prompt() -> None:
    other = dictionary({"head": {0: ""}}, embeddings={"clip_l": torch.zeros(1, 4)})
    with pytest.raises(
        BestiaryError, match=r"different base models cannot be used in one prompt: .*'a': \('sd15', 3\)"
    ):
        resolve_prompt(PartPrompt(()), {"a": BIRDS, "b": other})

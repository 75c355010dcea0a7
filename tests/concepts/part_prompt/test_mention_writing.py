"""Mentions put together from names are read back as what they were."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_prompt.mention_writing import (
    blend_kinds,
    blended_vector,
    find_kinds,
    written_kinds,
    written_mention,
    written_number,
)
from bestiary.concepts.part_prompt.part_prompt import parse_part_prompt, resolve_prompt

HARD_NAMES = [
    "cardinal",
    "blue jay",
    "a+b",
    "a*0.5",
    "jay (male)",
    "<b>robin</b>",
    "x:y",
    "back\\slash",
    "mail@home",
    "17",
    "",
    "twin",
    "Twin",
]


def dictionary(part_names: tuple[str, ...] = ("head", "v.1: <tail>"), id_base: int = 0) -> PartDictionary:
    count = len(HARD_NAMES)
    rows = torch.tensor([(part, kind) for part in range(2) for kind in range(count)])
    return PartDictionary(
        "sd15",
        part_names,
        (dict(enumerate(HARD_NAMES)), dict(enumerate(HARD_NAMES))),
        None,
        rows,
        {"clip_l": torch.randn(2 * count, 6, generator=torch.Generator().manual_seed(0))},
        id_base=id_base,
    )


@pytest.mark.parametrize("id_base", [0, 1])
@pytest.mark.parametrize("kind", range(len(HARD_NAMES)))
@pytest.mark.parametrize("name", ["birds", "my.birds/v1: <2>"])
def test_every_name_is_read_back(kind: int, name: str, id_base: int) -> None:
    ours = dictionary(id_base=id_base)
    for part in (0, 1):
        text = written_mention(name, ours.part_names[part], written_kinds(ours, part, ((kind, 1.0),)), 1.25)
        resolved = resolve_prompt(parse_part_prompt(f"a {text} bird"), {name: ours})
        assert resolved.mentions[0].part == part
        assert resolved.mentions[0].kinds == ((kind, 1.0),)
        assert resolved.mentions[0].weight == 1.25
        assert torch.equal(resolved.vectors[0], ours.vector(part, kind))


def test_a_blend_as_text_equals_the_blend_as_numbers() -> None:
    ours = dictionary()
    for amount in (0.1, 1 / 3, 0.9):
        kinds = blend_kinds(((2, 1.0),), ((3, 0.7), (0, 0.3)), amount)
        text = written_mention("birds", "head", written_kinds(ours, 0, kinds))
        theirs = resolve_prompt(parse_part_prompt(text), {"birds": ours})
        assert theirs.mentions[0].kinds == kinds
        assert torch.equal(theirs.vectors[0], blended_vector(ours, 0, kinds))


def test_the_ends_of_a_blend_are_its_kinds() -> None:
    ours = dictionary()
    first, second = ((0, 1.0),), ((1, 1.0),)
    assert blend_kinds(first, second, 0) == first
    assert blend_kinds(first, second, 1) == second
    assert blend_kinds(first, first, 0.3) == first
    assert torch.equal(blended_vector(ours, 0, blend_kinds(first, second, 1)), ours.vector(0, 1))
    assert written_kinds(ours, 0, blend_kinds(first, second, 0.4)) == "cardinal*0.6+blue jay*0.4"


@pytest.mark.parametrize(
    ("value", "text"), [(1, "1"), (0.6, "0.6"), (1 - 0.9, "0.1"), (1e-9, "0"), (-1e-9, "0"), (-0.5, "-0.5"), (20, "20")]
)
def test_numbers_have_no_exponent(value: float, text: str) -> None:
    assert written_number(value) == text


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("cardinal", ((0, 1.0),)),
        ("a+b", ((2, 1.0),)),
        ("a*0.5", ((3, 1.0),)),
        ("cardinal*0.5+1*0.5", ((0, 0.5), (1, 0.5))),
        ("3", ((3, 1.0),)),
        ("cardinal*0.5", ((0, 0.5),)),
    ],
)
def test_kinds_in_a_field_of_their_own(text: str, kinds: tuple) -> None:
    assert find_kinds(dictionary(), 0, text) == kinds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no kind of part 'head' is given: enter one, for example cardinal"),
        ("cardnal", "unknown kind 'cardnal' of part 'head': choose 'cardinal'"),
        ("cardinal*0.5+99*0.5", "unknown kind 99 of part 'head'"),
        ("cardinal*x", "'x' is not a factor"),
        ("99", "unknown kind 99 of part 'head'"),
    ],
)
def test_faults_in_kinds_are_told(text: str, message: str) -> None:
    with pytest.raises(BestiaryError, match=message):
        find_kinds(dictionary(), 0, text)


def test_faults_in_blends_are_told() -> None:
    kind = ((0, 1.0),)
    for amount in (-0.1, 1.5, float("nan")):
        with pytest.raises(BestiaryError, match=f"amount is {amount}: enter a number"):
            blend_kinds(kind, kind, amount)
    with pytest.raises(BestiaryError, match="cancel out at amount 0.5"):
        blend_kinds(kind, ((0, -1.0),), 0.5)

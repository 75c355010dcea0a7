"""PartCraft's own prompts in our grammar: what its parsers took wrongly is either read as meant or refused."""

import pytest
import torch
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_prompt.part_prompt import PromptError, ResolvedPrompt, parse_part_prompt, resolve_prompt


def published(
    parts: dict[str, int], count: int, classes: int, background: str, names: dict[int, str]
) -> PartDictionary:
    """A dictionary with the parts and rows of a published checkpoint; vectors hold (part, kind)."""
    part_names = [f"unused {part}" for part in range(count)]
    for name, part in parts.items():
        part_names[part] = name
    rows = [(part, kind) for name, part in parts.items() for kind in range(256 if name == background else classes)]
    table = torch.tensor(rows)
    kind_names = tuple({} if name == background else names for name in part_names)
    return PartDictionary(
        "sd15", tuple(part_names), kind_names, parts[background], table, {"clip_l": table.float()}, id_base=1
    )


CUB = published(
    {"body": 0, "tail": 1, "head": 2, "wing": 4, "leg": 6, "background": 7}, 8, 200, "background",
    {16: "cardinal", 17: "spotted catbird", 100: "white pelican", 190: "red headed woodpecker"},
)  # fmt: skip
DOGS = published(
    {"eye": 0, "background": 1, "neck": 2, "ear": 3, "body": 4, "leg": 5, "nose": 6, "forehead": 7}, 8, 120, "background",
    {2: "Maltese dog", 111: "Pembroke", 112: "Cardigan"},
)  # fmt: skip


def read(text: str, dictionary: PartDictionary = CUB) -> ResolvedPrompt:
    return resolve_prompt(parse_part_prompt(text), {"published": dictionary})


def mentioned(text: str, dictionary: PartDictionary = CUB) -> list[tuple[int, int, float]]:
    """(part, kind, weight) of every part mentioned, by vectors and by records alike."""
    prompt = read(text, dictionary)
    found = [(m.part, m.kinds[0][0], round(m.weight, 6)) for m in prompt.mentions]
    assert [tuple(vector) for vector in prompt.vectors.long().tolist()] == [entry[:2] for entry in found]
    return found


@pytest.mark.parametrize(
    ("text", "expected", "words"),
    [
        ("a photo of a <head:17> bird", [(2, 16, 1)], "a photo of a * bird"),
        ("a photo of a <2:17><2:18> bird, oil.", [(2, 16, 1), (2, 17, 1)], "a photo of a ** bird, oil."),
        ("(<2:17>:1.3)", [(2, 16, 1.3)], "*"),
        ("< 2:17 >", [(2, 16, 1)], "*"),
        ("<head:cardinal> <wing:White Pelican>", [(2, 16, 1), (4, 100, 1)], "* *"),
        ("<wing:17> cat", [(4, 16, 1)], "* cat"),
        ("<head:17>, <body:18>, <head:1>", [(2, 16, 1), (0, 17, 1), (2, 0, 1)], "*, *, *"),
        ("<background:256>", [(7, 255, 1)], "*"),
        ("0:16", [], "0:16"),
        ("at 10:30 pm", [], "at 10:30 pm"),
        ("a:b", [], "a:b"),
        ("0:16, 1:17,", [], "0:16, 1:17,"),
        ("oil painting. in the style of x.", [], "oil painting. in the style of x."),
    ],
)
def test_prompts_are_read_as_meant(text: str, expected: list[tuple[int, int, float]], words: str) -> None:
    assert mentioned(text) == expected
    assert "".join("*" if piece.text is None else piece.text for piece in read(text).pieces) == words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <head:0>", "column 3: unknown kind 0 of part 'head': choose one of 1..200"),
        ("<head:999>", r"unknown kind 999 of part 'head': choose one of 1..200; nearest: 200 \(200\)"),
        ("<head:201>", "unknown kind 201 of part 'head'"),
        ("<2:-1>", "unknown kind -1 of part 'head'"),
        ("<0:-16>", "unknown kind -16 of part 'body'"),
        ("<9:999>", "unknown part '9'"),
        ("<beak:17>", "unknown part 'beak': choose "),
        ("<3:1>", "unknown part '3'"),
        ("<unused 5:1>", "unknown part 'unused 5'"),
        ("<background:257>", "unknown kind 257 of part 'background': choose one of 1..256"),
        ("<head:>", "has no kind after the colon"),
        ("<head 17>", "'<head 17>' has no colon"),
    ],
)
def test_prompts_that_were_clamped_or_crashed_are_refused(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read(text)


def test_dogs_have_120_classes_and_their_own_names() -> None:
    assert mentioned("<nose:120>", DOGS) == [(6, 119, 1)]
    assert mentioned("<ear:Pembroke> <forehead:113>", DOGS) == [(3, 111, 1), (7, 112, 1)]
    with pytest.raises(PromptError, match="unknown kind 121 of part 'nose': choose one of 1..120"):
        read("<nose:121>", DOGS)
    with pytest.raises(PromptError, match="unknown part 'wing'"):
        read("<wing:1>", DOGS)


def test_blends_number_their_kinds_alike() -> None:
    ours = read("<head:17*0.5+18*0.5>").vectors[0]
    assert ours.tolist() == [2, 16.5]

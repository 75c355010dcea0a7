"""Asked parts in a codebook's numbers: names before numbers, and no dictionary that does not fit."""

from dataclasses import replace

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.nodes.evaluation.requested_parts import AskedPart, asked_text, match_dictionary, read_asked_parts
from bestiary.nodes.host.socket_types import ChosenPart, ChosenParts, NamedDictionary


def birds(**changes: object) -> NamedDictionary:
    """Fits the small codebook: head (blue jay under another number), body, background."""
    rows = changes.pop("rows", [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)])
    fields = {
        "backbone": "sd15",
        "part_names": ("head", "body", "background"),
        "kind_names": ({0: "Blue-Jay"}, {}, {}),
        "background": 2,
        "rows": torch.tensor(rows),
        "embeddings": {"clip_l": torch.zeros(len(rows), 4)},
        **changes,
    }
    return NamedDictionary("birds", PartDictionary(**fields))


def chosen(*parts: tuple[str, str], dictionary: str = "birds") -> ChosenParts:
    return ChosenParts(tuple(ChosenPart(dictionary, part, kind) for part, kind in parts))


def test_a_prompt_asks_for_its_mentions(small_codebook):
    asked = read_asked_parts("a photo of a <body:1> bird, (<birds.head:blue jay>:1.3)", None, birds(), small_codebook)
    assert asked == [AskedPart(1, 1), AskedPart(0, 1)]


def test_picked_parts_are_asked_for_after_the_prompt(small_codebook):
    asked = read_asked_parts("<body:1>", chosen(("head", "1"), ("background", "0")), birds(), small_codebook)
    assert asked == [AskedPart(1, 1), AskedPart(0, 1), AskedPart(2, 0)]
    assert read_asked_parts("", chosen(("body", "0")), birds(), small_codebook) == [AskedPart(1, 0)]


def test_names_are_matched_before_numbers(small_codebook):
    match = match_dictionary(birds(), small_codebook)
    assert match[0, 0] == (0, 1)  # blue jay is 0 here, 1 there
    assert match[1, 1] == (1, 1) and match[2, 0] == (2, 0)


def test_parts_are_matched_by_name_in_another_order(small_codebook):
    turned = birds(part_names=("background", "HEAD", "body"), background=0, kind_names=({}, {1: "cardinal"}, {}))
    match = match_dictionary(turned, small_codebook)
    assert match[0, 0] == (2, 0) and match[1, 1] == (0, 0) and match[2, 0] == (1, 0)


def test_parts_without_a_common_name_are_matched_by_number(small_codebook):
    match = match_dictionary(birds(part_names=("top", "bottom", "rest")), small_codebook)
    assert match[1, 1] == (1, 1)


def test_a_number_never_takes_a_part_that_is_named(small_codebook):
    with pytest.raises(BestiaryError) as fault:
        match_dictionary(birds(part_names=("body", "beak", "background")), small_codebook)
    assert str(fault.value) == (
        "dictionary 'birds' has the part 'beak', but the codebook has none of this name or number: its parts are 'head', 'body', "
        "'background'; use the codebook that the dictionary was trained with"
    )


def test_the_largest_share_of_a_blend_is_asked_for(small_codebook):
    (asked,) = read_asked_parts("<body:0*0.3+1*0.7>", None, birds(), small_codebook)
    assert asked == AskedPart(1, 1, blended=True)
    assert asked_text(small_codebook, asked) == "1 (most of a blend)"
    assert asked_text(small_codebook, AskedPart(0, 1)) == "blue jay"


def test_kinds_that_the_codebook_lacks_are_told(small_codebook):
    rows = [(0, 0), (1, 2), (1, 3), *[(2, kind) for kind in range(2, 9)]]
    with pytest.raises(BestiaryError) as fault:
        match_dictionary(birds(rows=rows), small_codebook)
    assert str(fault.value) == (
        "dictionary 'birds' has kinds that the codebook lacks: body:2, body:3, background:2, background:3, background:4, "
        "background:5 and 3 more. The kinds of part 'body' in the codebook are 0..1: use the codebook that the dictionary was trained "
        "with, and the dictionary without drawn kinds"
    )


@pytest.mark.parametrize(("ids", "words"), [("class", "classes"), ("whole", "whole pictures")])
def test_dictionaries_of_other_ids_are_refused(ids, words, small_codebook):
    with pytest.raises(
        BestiaryError, match=f"dictionary 'birds' was trained on {words}, whose numbers do not refer to a codebook"
    ):
        match_dictionary(birds(provenance={"ids": ids}), small_codebook)


def test_a_codebook_without_kinds_is_refused(small_codebook):
    with pytest.raises(BestiaryError, match="the codebook has parts but no kinds"):
        match_dictionary(birds(), replace(small_codebook, fine=()))


def test_nothing_asked_for_is_told(small_codebook):
    with pytest.raises(BestiaryError) as fault:
        read_asked_parts("a plain bird", None, birds(), small_codebook)
    assert str(fault.value) == (
        "the prompt 'a plain bird' requests no part and no part is connected: write for example <head:3>, or connect Part"
    )


def test_unknown_names_are_told_by_the_grammar(small_codebook):
    with pytest.raises(BestiaryError, match="prompt, column 3: unknown part 'hed': choose 'head'"):
        read_asked_parts("a <hed:0>", None, birds(), small_codebook)
    with pytest.raises(BestiaryError, match="unknown dictionary 'cats': choose 'birds'"):
        read_asked_parts("", chosen(("head", "0"), dictionary="cats"), birds(), small_codebook)

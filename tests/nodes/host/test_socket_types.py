"""Words that stand for something else: the nodes offer them as defaults, and what runs understands those defaults."""

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.host.socket_types import ALL_PARTS, PARTS_PLACE, WORD_PLACE, ChosenPart, ChosenParts
from bestiary.nodes.part_prompt.chosen_parts import fill_template
from bestiary.nodes.part_prompt.part_kind_nodes import BestiaryRandomKind
from bestiary.nodes.part_prompt.part_prompt_nodes import BestiaryPartPrompt
from bestiary.nodes.spectrum.attribute_sweep import SweepSettings, sweep_word
from bestiary.nodes.spectrum.prompt_stage_nodes import BestiaryFindAttributeStages


def default(node: type, name: str) -> object:
    return next(one.default for one in node.define_schema().inputs if one.id == name)


def test_a_prompt_has_a_place_for_its_parts():
    text = default(BestiaryPartPrompt, "text")
    parts = ChosenParts((ChosenPart("birds", "head", "3"),))
    assert PARTS_PLACE in text
    assert fill_template(text, parts) == text.replace(PARTS_PLACE, "<birds.head:3>")


def test_a_sweep_has_a_place_for_its_word():
    assert WORD_PLACE in default(BestiaryFindAttributeStages, "text")
    with pytest.raises(BestiaryError, match=f"enter a word, and a text with {WORD_PLACE}"):
        sweep_word(None, None, SweepSettings("a bird", "red"), None, None, None)


def test_new_kinds_are_drawn_for_all_parts_unless_one_is_named():
    assert default(BestiaryRandomKind, "part") == ALL_PARTS

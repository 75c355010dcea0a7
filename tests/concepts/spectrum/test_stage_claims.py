"""Who has which stage: lines and references, the order of precedence, and every fault."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.attribute_presets import DEFAULT_PRESETS
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.concepts.spectrum.stage_claims import (
    Reference,
    assign_stages,
    claims_of,
    mix_references,
    require_all_stages,
    shown_reference,
    stage_lines,
    typed_presets,
)

TEN = StageBounds.equal(10)


def spectrum(value: float, stages: int = 10, width: int = 768) -> PromptSpectrum:
    """Every stage says `value + stage`; strength 0 says -1."""
    rows = torch.arange(stages).view(-1, 1, 1) + torch.full((stages, 1, width), value)
    return PromptSpectrum(
        "sd15", {"clip_l": rows}, StageBounds.equal(stages), neutral={"clip_l": torch.full((1, width), -1.0)}
    )


def said(mixed: PromptSpectrum) -> list[float]:
    return mixed.matrix()[:, 0, 0].tolist()


def owners(selections: list[str]) -> list[int | None]:
    claims = [claim for n, text in enumerate(selections) for claim in claims_of(n, text, TEN, DEFAULT_PRESETS)]
    return assign_stages(claims, TEN, [f"reference {n}" for n in range(len(selections))])


def test_a_narrow_attribute_goes_before_a_wide_one():
    assert owners(["layout", "content", "material", "style"]) == [0, None, 1, 1, 1, 2, 2, 3, 3, 3]
    assert owners(["style", "content"]) == [None, None, 1, 1, 1, 1, 1, 0, 0, 0]


def test_of_equal_attributes_the_later_one_wins():
    assert owners(["layout", "layout"])[0] == 1


def test_numbers_and_percents_go_before_attributes():
    assert owners(["1-2, 9", "content", "30%-50%"]) == [0, 0, 1, 2, 2, 1, 1, 1, 0, 1]


def test_stages_claimed_twice_by_number_are_told():
    with pytest.raises(BestiaryError, match=r"stages 3-4 are claimed by reference 0 and by reference 1"):
        owners(["2-4", "3-6"])
    # the same owner may name a stage twice
    assert owners(["2-4, 3"])[1:4] == [0, 0, 0]


def test_an_unknown_attribute_is_told():
    with pytest.raises(BestiaryError, match=r"unknown stages 'colour': choose 'layout'"):
        claims_of(0, "colour", TEN, DEFAULT_PRESETS)


def test_lines_put_texts_at_stages():
    lines = "layout: a wide meadow\n\ncontent: a bird: red\n10: =4"
    found = stage_lines(lines, TEN, DEFAULT_PRESETS)
    assert found == {0: "a wide meadow", **dict.fromkeys(range(2, 9), "a bird: red"), 9: 3}


def test_faults_of_lines_tell_the_line_as_typed():
    with pytest.raises(BestiaryError, match="line 3, 'no colon': write stages, a colon and a text"):
        stage_lines("1: a\n\nno colon", TEN, DEFAULT_PRESETS)
    with pytest.raises(BestiaryError, match=r"line 2: stage '11' does not exist: there are stages 1 to 10"):
        stage_lines("1: a\n11: b", TEN, DEFAULT_PRESETS)
    with pytest.raises(BestiaryError, match="stages 2 are claimed by line 1 and by line 3"):
        stage_lines("1-2: a\n\n2-3: b", TEN, DEFAULT_PRESETS)


def test_missing_stages_are_told():
    require_all_stages(dict.fromkeys(range(10), "a"), TEN)
    with pytest.raises(BestiaryError, match=r"stages 3, 5-10 have no text: write a line for them"):
        require_all_stages({0: "a", 1: "a", 3: "b"}, TEN)


def test_typed_presets_replace_the_usual_ones():
    assert typed_presets("  ", TEN, DEFAULT_PRESETS) is DEFAULT_PRESETS
    assert typed_presets("mood: 1-5", TEN, DEFAULT_PRESETS) == {"mood": ((0.0, 0.5),)}


def test_each_stage_of_a_mixture_holds_the_vector_of_its_reference():
    references = {
        "A": Reference(spectrum(100), "layout"),
        "B": Reference(spectrum(200), "content"),
        "C": Reference(spectrum(300), "material, style"),
    }
    mixed, table = mix_references(references)
    assert said(mixed) == [100, -1, 202, 203, 204, 305, 306, 307, 308, 309]
    assert table.splitlines() == [
        "A: stages 1",
        "B: stages 3-5",
        "C: stages 6-10",
        "the initial words: stages 2",
        "10 stages in all",
    ]
    assert dict(mixed.presets) == dict(DEFAULT_PRESETS)


def test_explicit_stages_percents_and_strengths():
    references = {"A": Reference(spectrum(100), "1-5"), "B": Reference(spectrum(200), "50%-100%", 0.0)}
    mixed, _ = mix_references(references)
    assert said(mixed) == [100, 101, 102, 103, 104, -1, -1, -1, -1, -1]


def test_the_rest_may_be_silent():
    mixed, table = mix_references({"A": Reference(spectrum(100), "layout")}, rest="silent")
    assert [mixed.count(stage) for stage in range(10)] == [1] + [0] * 9
    assert "nothing: stages 2-10" in table


def test_references_of_different_stages_are_cut_alike():
    mixed, _ = mix_references(
        {"A": Reference(spectrum(100, 4), "0%-50%"), "B": Reference(spectrum(200, 10), "50%-100%")}
    )
    assert mixed.bounds.edges == tuple(sorted({*TEN.edges, 750, 250}, reverse=True))
    assert said(mixed)[0] == 100
    assert said(mixed)[-1] == 209


def test_a_claim_without_a_stage_left_is_told_in_the_table():
    _, table = mix_references({"A": Reference(spectrum(1), "style"), "B": Reference(spectrum(2), "8-10")})
    assert "A: no stage, others claim all of them" in table


def test_softness_blends_neighbours():
    hard, _ = mix_references({"A": Reference(spectrum(0), "1-5"), "B": Reference(spectrum(100), "6-10")})
    soft, _ = mix_references({"A": Reference(spectrum(0), "1-5"), "B": Reference(spectrum(100), "6-10")}, softness=1.0)
    assert said(hard)[4] < said(soft)[4] < said(soft)[5] < said(hard)[5]


def test_faults_of_a_mixture_name_the_reference():
    with pytest.raises(BestiaryError, match="no spectrum is connected: connect at least one reference"):
        mix_references({})
    name = shown_reference(2, "corgi")
    with pytest.raises(BestiaryError, match=r"reference_2 'corgi': stage '12' does not exist"):
        mix_references({name: Reference(spectrum(1), "12")})
    with pytest.raises(BestiaryError, match=r"stages 1 are claimed by A and by B"):
        mix_references({"A": Reference(spectrum(1), "1"), "B": Reference(spectrum(1), "1-2")})
    other = PromptSpectrum("bestiary-demo", {"clip_l": torch.zeros(10, 1, 128)}, TEN)
    with pytest.raises(BestiaryError, match="spectra of different base models cannot be mixed"):
        mix_references({"A": Reference(spectrum(1), "1"), "B": Reference(other, "2")})

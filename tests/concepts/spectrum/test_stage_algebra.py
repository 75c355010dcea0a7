"""Stage algebra by identity: what a stage holds afterwards is exactly what some reference learned for it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.stage_algebra import (
    attribute_of_stages,
    keep_stages,
    merge_by_attribute,
    refine,
    remap_stages,
    replace_stages,
    say_words,
    with_soft_bounds,
    with_strength,
)
from bestiary.concepts.spectrum.stage_bounds import StageBounds

Make = Callable[..., PromptSpectrum]


def _same(a: PromptSpectrum, b: PromptSpectrum) -> bool:
    return torch.equal(a.matrix(), b.matrix()) and a.bounds == b.bounds and a.counts == b.counts and a.words == b.words


def test_layout_of_a_content_of_b_material_and_style_of_c(make_spectrum: Make) -> None:
    a, b, c = make_spectrum(100), make_spectrum(200), make_spectrum(300)
    mixed = merge_by_attribute({"layout": a, "content": b, "material": c, "style": c})
    owners = [a, None, b, b, b, c, c, c, c, c]
    for stage, owner in enumerate(owners):
        wanted = b.neutral_matrix() if owner is None else owner.matrix()[stage]
        assert torch.equal(mixed.matrix()[stage], wanted)
    told = {"layout": "1", "content": "3-5", "material": "6-7", "style": "8-10"}
    assert mixed.provenance["stages_of"] == told


def test_without_style_and_material_content_has_the_rest(make_spectrum: Make) -> None:
    a, b = make_spectrum(100), make_spectrum(200)
    mixed = merge_by_attribute({"layout": a, "content": b}, rest="silent")
    assert mixed.counts == (1, 0, *(1,) * 8)
    assert torch.equal(mixed.matrix()[2:], b.matrix()[2:])
    assert mixed.words == {1: ""}


def test_mixing_one_reference_with_itself_changes_nothing_where_it_has_stages(make_spectrum: Make) -> None:
    a = make_spectrum(5)
    mixed = merge_by_attribute({"x": a, "y": a}, {"x": ((0.0, 0.5),), "y": ((0.5, 1.0),)})
    assert _same(mixed, a)
    assert _same(merge_by_attribute({"x": mixed, "y": mixed}, {"x": ((0.0, 0.5),), "y": ((0.5, 1.0),)}), mixed)


def test_references_of_different_stages_and_vectors_mix(make_spectrum: Make) -> None:
    a, b = make_spectrum(100, stages=4), make_spectrum(200, stages=10, vectors=3)
    mixed = merge_by_attribute({"x": a, "y": b}, {"x": ((0.0, 0.5),), "y": ((0.5, 1.0),)})
    assert mixed.bounds == a.bounds.refined_by(b.bounds)
    middle = mixed.bounds.stage_of(torch.tensor([990, 610, 490, 10])).tolist()
    assert [mixed.count(stage) for stage in middle] == [1, 1, 3, 3]
    assert torch.equal(mixed.stage_vectors(middle[1]), a.stage_vectors(1))
    assert torch.equal(mixed.stage_vectors(middle[3]), b.stage_vectors(9))


def test_layers_shared_and_not_mix(make_spectrum: Make) -> None:
    a, b = make_spectrum(100), make_spectrum(200, layers=16)
    mixed = replace_stages(b, a, [0])
    assert mixed.layers == 16
    assert torch.equal(mixed.stage_vectors(0), a.stage_vectors(0).expand(16, 1, 768))
    assert torch.equal(mixed.stage_vectors(1), b.stage_vectors(1))


def test_explicit_stages_by_any_name(make_spectrum: Make) -> None:
    a, b = make_spectrum(100), make_spectrum(200)
    mixed = merge_by_attribute({"a": a, "b": b}, {"a": ((0.0, 0.3), (0.9, 1.0)), "b": ((0.3, 0.9),)})
    assert torch.equal(mixed.matrix()[[0, 1, 2, 9]], a.matrix()[[0, 1, 2, 9]])
    assert torch.equal(mixed.matrix()[3:9], b.matrix()[3:9])


def test_the_most_specific_claim_wins_and_of_equals_the_later() -> None:
    presets = {"wide": ((0.0, 1.0),), "narrow": ((0.0, 0.2),), "same": ((0.0, 0.2),)}
    ten = StageBounds.equal(10)
    assert attribute_of_stages(["narrow", "wide"], ten, presets) == ["narrow"] * 2 + ["wide"] * 8
    assert attribute_of_stages(["narrow", "same"], ten, presets) == ["same"] * 2 + [None] * 8


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ({}, "no reference to mix: connect a spectrum for one of layout, content, material, style"),
        ({"colour": 0}, "no preset for the attribute 'colour': choose 'layout'"),
        ({"layout": 0, "style": 1}, "spectra of different base models cannot be mixed: sd15, sd2 with widths"),
        ({"layout": 2, "style": 3}, "spectra for 4 and for 16 cross-attention layers cannot be mixed"),
    ],
)
def test_mixes_that_cannot_be(make_spectrum: Make, references: dict[str, int], message: str) -> None:
    known = [make_spectrum(), make_spectrum(backbone="sd2"), make_spectrum(layers=4), make_spectrum(layers=16)]
    with pytest.raises(BestiaryError, match=message):
        merge_by_attribute({name: known[index] for name, index in references.items()})


def test_a_mix_has_the_shift_of_its_references_and_they_must_agree(make_spectrum: Make) -> None:
    plain, three, six = make_spectrum(), make_spectrum(shift=3.0), make_spectrum(shift=6.0)
    assert merge_by_attribute({"layout": plain, "style": three}).shift == 3.0
    assert merge_by_attribute({"layout": plain}).shift is None
    with pytest.raises(BestiaryError, match=r"spectra learned at different shifts \(3, 6\) cannot be combined"):
        merge_by_attribute({"layout": three, "style": six})


def test_keeping_and_replacing(make_spectrum: Make) -> None:
    a, b = make_spectrum(100), make_spectrum(200)
    assert _same(keep_stages(a, range(10)), a)
    assert _same(replace_stages(a, b, range(10)), b)
    assert _same(replace_stages(a, b, []), a)
    kept = keep_stages(a, [0, 9], "a dog")
    assert kept.words == dict.fromkeys(range(1, 9), "a dog") and kept.counts == (1, *(0,) * 8, 1)
    assert torch.equal(kept.matrix()[[0, 9]], a.matrix()[[0, 9]])
    with pytest.raises(BestiaryError, match="stage 11 does not exist: this spectrum has stages 1 to 10"):
        keep_stages(a, [10])


def test_words_travel_with_their_stage(make_spectrum: Make) -> None:
    spoken = say_words(make_spectrum(), {2: "a cat"})
    assert spoken.words == {2: "a cat"} and spoken.counts[2] == 0
    moved = remap_stages(spoken, {5: 2, 2: 3})
    assert moved.words == {5: "a cat"}
    assert torch.equal(moved.stage_vectors(2), spoken.stage_vectors(3))


def test_remapping_reads_what_was_learned_in_any_order(make_spectrum: Make) -> None:
    a = make_spectrum()
    forth = remap_stages(a, {0: 1, 1: 2, 2: 0})
    back = remap_stages(a, {2: 0, 1: 2, 0: 1})
    assert _same(forth, back)
    assert torch.equal(forth.matrix()[:3], a.matrix()[[1, 2, 0]])
    assert _same(remap_stages(a, {}), a)


def test_strength_runs_from_the_neutral_words_to_what_was_learned(make_spectrum: Make) -> None:
    torch.manual_seed(0)
    a = make_spectrum()
    a = replace(a, embeddings={"clip_l": torch.randn(10, 1, 768)}, neutral={"clip_l": torch.randn(1, 768)})
    assert with_strength(a, 1) is a
    assert torch.equal(with_strength(a, 0).matrix(), a.neutral_matrix().expand(10, 1, 768))
    angles = torch.stack(
        [torch.cosine_similarity(with_strength(a, s / 10).matrix(), a.matrix(), dim=-1).mean() for s in range(11)]
    )
    assert (angles.diff() > 0).all()
    # half way the norm is half way too, not shrunk
    half = with_strength(a, 0.5).matrix().norm(dim=-1)
    assert torch.allclose(half, (a.matrix().norm(dim=-1) + a.neutral_matrix().norm(dim=-1)) / 2)


def test_strength_per_stage_and_layer(make_spectrum: Make) -> None:
    a = make_spectrum(stages=3, layers=4)
    a = replace(a, bypass=dict(a.embeddings))
    changed = with_strength(a, [1, 0, 1])
    assert torch.equal(changed.matrix()[[0, 2]], a.matrix()[[0, 2]])
    assert torch.equal(changed.matrix()[1], a.neutral_matrix().expand(4, 1, 768))
    assert changed.bypass_matrix()[1].abs().max() == 0


def test_strengths_that_cannot_be(make_spectrum: Make) -> None:
    with pytest.raises(BestiaryError, match="strength 7: give one number, or 10, from -4 to 4"):
        with_strength(make_spectrum(), 7)
    with pytest.raises(BestiaryError, match=r"strength \[1, 0\]: give one number, or 10"):
        with_strength(make_spectrum(), [1, 0])
    with pytest.raises(BestiaryError, match="cannot be changed: it has no neutral vectors"):
        with_strength(make_spectrum(neutral=None), 0.5)
    assert with_strength(unknown := make_spectrum(neutral=None), 1) is unknown


def test_soft_boundaries_average_neighbours_and_add_no_stage(make_spectrum: Make) -> None:
    a = make_spectrum()
    assert with_soft_bounds(a, 0) is a
    soft = with_soft_bounds(a, 1)
    assert soft.bounds == a.bounds and soft.counts == a.counts
    assert torch.allclose(soft.matrix()[4], a.matrix()[4] / 2 + (a.matrix()[3] + a.matrix()[5]) / 4)
    assert torch.allclose(soft.matrix()[0], (a.matrix()[0] + a.matrix()[1]) / 2)
    constant = replace(a, embeddings={"clip_l": torch.ones(10, 1, 768)})
    assert torch.equal(with_soft_bounds(constant, 0.7).matrix(), constant.matrix())
    with pytest.raises(BestiaryError, match="softness 2: choose 0"):
        with_soft_bounds(a, 2)


def test_soft_boundaries_pass_words_and_silence_by(make_spectrum: Make) -> None:
    a = say_words(make_spectrum(stages=3), {1: "a dog"})
    assert torch.equal(with_soft_bounds(a, 1).matrix(), a.matrix())


def test_refining_keeps_what_every_timestep_says(make_spectrum: Make) -> None:
    a = say_words(make_spectrum(stages=4), {2: "x"})
    fine = refine(a, a.bounds.refined_by(StageBounds.equal(10)))
    times = torch.arange(1000)
    mine, theirs = a.bounds.stage_of(times), fine.bounds.stage_of(times)
    assert torch.equal(a.matrix()[mine], fine.matrix()[theirs])
    assert {s for s, place in enumerate(a.bounds.stages_of_finer(fine.bounds)) if place == 2} == set(fine.words)
    with pytest.raises(BestiaryError, match="the new stages have no edge at timestep 750"):
        refine(a, StageBounds.equal(2))


def test_neutral_words_follow_more_vectors(make_spectrum: Make) -> None:
    a, b = make_spectrum(1), make_spectrum(2, vectors=2)
    mixed = replace_stages(a, b, [4])
    assert mixed.neutral_matrix().shape == (2, 768)
    assert torch.equal(mixed.neutral_matrix()[1], a.neutral_matrix()[0])

"""Tests of prompts by region: the same as a chain of ComfyUI's own nodes, masks that share out the picture."""

from __future__ import annotations

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.host.socket_types import SceneLayouts
from bestiary.nodes.scenes.region_prompts import filled, region_conditioning, region_masks
from bestiary.scenes.scene_layout import Placement, SceneLayout

TEXT = "a photo of {subject} {place}"


def layouts(*shifts: int, overlap: int = 0, **fields) -> SceneLayouts:
    """Layouts of two boxes side by side on 256 x 128."""
    made = [
        SceneLayout(
            256,
            128,
            (Placement("left", 8 + x, 16, 96, 96), Placement("right", 152 - overlap - x, 16, 96, 96, z=1)),
        )
        for x in shifts or (0,)
    ]
    return SceneLayouts(tuple(made), {"left": "red creature", "right": "animal"}, **fields)


def test_every_subject_has_its_prompt_and_the_whole_picture_one(demo_model):
    import nodes as core

    clip = demo_model.clip
    ours = region_conditioning(clip, layouts(place="in a meadow"), TEXT, "", 0, 1.0)
    masks = region_masks(layouts(), 0)[:, 0]
    rest = (1 - masks.sum(0)).clamp(1e-3, 1)
    theirs = []
    prompts = ["a photo of a red creature in a meadow", "a photo of an animal in a meadow"]
    prompts += ["a photo of a red creature and an animal in a meadow"]
    for prompt, mask in zip(prompts, [*masks, rest], strict=True):
        (encoded,) = core.CLIPTextEncode().encode(clip, prompt)
        theirs += core.ConditioningSetMask().append(encoded, mask, "default", 1.0)[0]
    assert len(ours) == len(theirs) == 3
    for (mine, mine_options), (other, other_options) in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other) and torch.equal(mine_options["mask"], other_options["mask"])
        for key in ("set_area_to_bounds", "mask_strength"):
            assert mine_options[key] == other_options[key]


def test_masks_are_the_boxes_and_follow_every_layout():
    masks = region_masks(layouts(0, 8), 0)
    assert masks.shape == (2, 2, 128, 256)
    assert masks[0, 0].nonzero().amin(0).tolist() == [16, 8] and masks[0, 1].nonzero().amin(0).tolist() == [16, 16]
    assert set(masks.unique().tolist()) == {0, 1}


def test_soft_edges_stay_within_one_and_overlaps_are_shared():
    masks = region_masks(layouts(overlap=60), 24)
    assert float(masks.sum(0).max()) <= 1 + 1e-6 and bool(((masks > 0.1) & (masks < 0.9)).any())
    between = masks[:, 0, 64, 98]
    assert torch.allclose(between[0], between[1], atol=0.1) and between.sum() > 0.9


def test_strength_is_the_share_of_the_own_prompt(demo_model):
    entries = region_conditioning(demo_model.clip, layouts(), TEXT, "in a garden", 0, 0.25)
    inside = [float(options["mask"][0, 64, 50]) for _, options in entries]
    assert inside == [0.25, 0, 0.75]
    alone = region_conditioning(demo_model.clip, layouts(), TEXT, "in a garden", 0, 0)
    assert [float(options["mask"].max()) for _, options in alone] == [0, 0, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of {subject} {place}", "a photo of an owl in a wood"),
        ("A {subject}, {place}. {x}", "an owl, in a wood. {x}"),
        ("the  {subject}", "an owl"),
    ],
)
def test_places_of_the_text_are_filled_in_with_one_article(text, expected):
    assert filled(text, "an owl", "in a wood") == expected


def test_nothing_of_a_subject_s_own_words_is_a_place():
    assert filled(TEXT, "a {place} cat", "") == "a photo of a {place} cat"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "a photo"}, "text 'a photo' does not say where the subject goes: write {subject} there"),
        ({"strength": 1.5}, "strength is 1.5; it must be between 0 and 1"),
        ({"feather": -1}, "feather is -1; it must be 0 pixels or more"),
    ],
)
def test_faults_say_what_is_wrong(demo_model, change, message):
    asked = {"clip": demo_model.clip, "layouts": layouts(), "text": TEXT, "place": "", "feather": 0, "strength": 1.0}
    with pytest.raises(BestiaryError, match=message):
        region_conditioning(**{**asked, **change})


def test_layouts_of_different_subjects_are_refused(demo_model):
    other = SceneLayout(256, 128, (Placement("left", 8, 16, 96, 96),))
    mixed = SceneLayouts((*layouts().layouts, other), {})
    with pytest.raises(BestiaryError, match="the layouts differ in their subjects or their size"):
        region_conditioning(demo_model.clip, mixed, TEXT, "", 0, 1.0)

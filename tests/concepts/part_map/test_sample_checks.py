"""Pictures that tell nothing about parts are refused, and odd foregrounds put in words."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features.patch_features import PatchGrid
from bestiary.concepts.part_map.sample_checks import (
    area_doubts,
    foreground_doubts,
    plain_pictures,
    refuse_copies,
    refuse_few,
)


def test_plain_pictures_are_told_from_pictures() -> None:
    images = torch.zeros(3, 3, 32, 32)
    images[0] = torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1)  # a colour is as plain as black
    images[1, 1, 0, 0] = 2 / 255  # what JPEG adds
    images[2, :, :4] = 0.1
    assert plain_pictures(images).tolist() == [True, True, False]


def test_few_pictures_are_refused() -> None:
    refuse_few(3, "here")
    with pytest.raises(BestiaryError, match="1 picture here: parts are found by comparing pictures; give at least 3"):
        refuse_few(1, "here")


def test_copies_are_refused_and_likenesses_not() -> None:
    features = torch.rand(1, 4, 4, 8).expand(6, 4, 4, 8).clone()
    with pytest.raises(BestiaryError, match="all 6 pictures of it are identical"):
        refuse_copies(PatchGrid(features + 1e-5), "of it")
    features[3, 2, 2] = -features[3, 2, 2]
    refuse_copies(PatchGrid(features), "of it")


def test_what_is_odd_about_a_foreground_is_said() -> None:
    assert area_doubts([0.3] * 10) == area_doubts([]) == []
    found = foreground_doubts({"foreground_margin": 0.1}, [0.0, 0.02, 0.02, 0.5, 0.99])
    assert found[:3] == [
        "In 1 of 5 pictures no foreground was found.",
        "In 2 of 5 pictures the foreground covers less than 3 % of the picture.",
        "In 1 of 5 pictures the foreground covers nearly the whole picture.",
    ]
    assert "only 0.10 more than their borders (at least 0.30 expected)" in found[3] and "--masks" in found[3]
    assert len(foreground_doubts({"foreground_margin": 0.5}, [0.3])) == 0

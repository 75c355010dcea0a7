"""Tests of subjects cut out of the pictures of a graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.scenes.subject_making import added, called_by, read_size, subjects_of_images
from bestiary.scenes.cutout import AS_GIVEN, OWN_COLOURS, make_subject


def made(images, mask=None, name="ball", words="", size="", support="ground"):
    return subjects_of_images(images, mask, name, words, size, support)


def test_alpha_of_the_picture_counts_where_there_is_no_mask(ball, ball_image):
    (ours,) = made(ball_image, words=" blue  ball ", size="0.5")
    theirs = make_subject("ball", ball[..., :3], ball[..., 3], OWN_COLOURS)
    np.testing.assert_array_equal(ours.cutout, theirs.cutout)
    assert (ours.words, ours.size, ours.support) == ("blue ball", 0.5, "ground")


def test_a_mask_is_white_where_the_subject_is_and_comes_before_the_alpha(ball, ball_image):
    mask = torch.zeros(40, 60)
    mask[10:20, 5:25] = 1
    (ours,) = made(ball_image, mask)
    assert ours.cutout.shape == (10, 20, 4) and (ours.cutout[..., 3] == 255).all()
    theirs = make_subject("ball", ball[..., :3], (mask * 255).to(torch.uint8).numpy(), AS_GIVEN)
    np.testing.assert_array_equal(ours.cutout, theirs.cutout)


def test_further_pictures_of_a_batch_are_references(ball_image, box_image):
    both = torch.cat([ball_image, ball_image.flip(2)])
    subjects = added(added(None, made(both)), made(box_image, name="box"))
    assert [one.name for one in subjects.subjects] == ["ball", "box"]
    assert [one.name for one in subjects.others] == ["ball"]
    assert called_by(subjects) == {"ball": "ball", "box": "box"}


@pytest.mark.parametrize(("text", "size"), [("", None), ("2", 2.0), (" horse ", "horse"), ("tiny", "tiny")])
def test_sizes_are_numbers_or_words(text, size):
    assert read_size(text) == size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(1, 40, 60, 3)}, "'ball': the picture has no transparency and no mask is connected"),
        ({"mask": torch.zeros(40, 60)}, "'ball': the mask is empty; it must be white where the subject is"),
        ({"mask": torch.ones(40, 60)}, "'ball': the mask is white all over, so the whole picture would be the subject"),
        (
            {"mask": torch.zeros(64, 64)},
            "mask has 64 x 64 pixels, its picture 60 x 40.*Load Image gives such a black square",
        ),
        ({"mask": torch.rand(3, 40, 60)}, "3 masks for 1 pictures"),
        ({"images": torch.full((1, 40, 60, 4), float("nan"))}, "values that are not numbers"),
        ({"images": torch.zeros(40, 60, 3)}, "connect pictures"),
        ({"name": "  "}, "subject name '': use 1 to 80 letters"),
        ({"size": "-1"}, "size -1.0 must be a number above 0"),
        ({"support": "wall"}, "support 'wall' is not one of ground, sky, any or on:NAME"),
    ],
)
def test_faults_say_what_is_wrong(change, message, ball_image):
    with pytest.raises(BestiaryError, match=message):
        made(**{"images": ball_image, **change})


def test_a_subject_of_one_pixel_is_one(ball_image):
    mask = torch.zeros(40, 60)
    mask[3, 4] = 1
    assert made(ball_image, mask)[0].cutout.shape == (1, 1, 4)


def test_a_name_that_is_taken_is_refused(ball_image):
    first = added(None, made(ball_image, name="Big Ball"))
    with pytest.raises(BestiaryError, match="there is a subject 'Big Ball' already: call this one 'big-ball 2'"):
        added(first, made(ball_image, name="big-ball"))

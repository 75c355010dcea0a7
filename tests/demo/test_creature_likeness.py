"""Drawn creatures compared part by part, and boxes cut out of pictures as squares."""

from __future__ import annotations

import numpy as np
import torch
from bestiary.demo.attribute_judge import AttributeJudge, species_classes
from bestiary.demo.creature_likeness import EDGE, RECOGNISED, creature_likeness, cut_boxes
from bestiary.demo.creatures import HELD_OUT_SPECIES, draw_creature


def test_a_drawing_is_like_its_species_and_unlike_another() -> None:
    rng = np.random.default_rng(0)
    chosen = HELD_OUT_SPECIES[:2]
    drawn = [torch.from_numpy(draw_creature(one, rng).image.copy()).permute(2, 0, 1).float() / 255 for one in chosen]
    judge = AttributeJudge.load()
    likeness = creature_likeness(judge, torch.stack(drawn), [species_classes([one]) for one in chosen])
    assert likeness.shape == (2, 2)
    assert likeness.diagonal().min() >= 0.8 and likeness[0, 1] < RECOGNISED and likeness[1, 0] < RECOGNISED
    # a subject known from pictures: the mean over them
    seen = judge.classes(torch.stack(drawn))
    both = creature_likeness(judge, torch.stack(drawn), [seen])
    assert np.allclose(both[0, 0], (1 + (seen[0] == seen[1]).float().mean()) / 2)


def test_boxes_become_squares_within_the_picture() -> None:
    picture = torch.arange(40 * 60).reshape(1, 40, 60).expand(3, -1, -1) / 2400
    whole, corner = cut_boxes(picture, np.array([(10, 0, 40, 40), (50, 30, 30, 5)], np.float32))
    assert whole.shape == (3, EDGE, EDGE)
    # its middle is that of the box
    assert abs(float(whole.mean()) - float(picture[:, :, 10:50].mean())) < 1e-3
    # a wide box at the corner becomes a square that ends with the picture
    assert abs(float(corner.mean()) - float(picture[:, 10:, 30:].mean())) < 1e-3

"""Tests of the demo nodes: the drawn pictures that stand in for a folder of photographs."""

from __future__ import annotations

import io

import numpy as np
import pytest
from bestiary.demo.creatures import held_out_set
from PIL import Image


def drawn(server, count: int, seed: int) -> list[np.ndarray]:
    """Pictures that Demo Pictures gives, as they are saved."""
    graph = {
        "draw": {"class_type": "BestiaryDemoPictures", "inputs": {"count": count, "seed": seed}},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["draw", 0]}},
        "tell": {"class_type": "PreviewAny", "inputs": {"source": ["draw", 1]}},
    }
    outputs = server.run(graph)
    assert len(outputs["tell"]["text"]) == count
    places = outputs["show"]["images"]
    return [
        np.asarray(Image.open(io.BytesIO(server.get("/view", params=place).content)).convert("RGB")) for place in places
    ]


def test_pictures_are_those_of_the_drawn_world(server):
    ours, theirs = drawn(server, 3, 5), [drawing.image for drawing in held_out_set(3, 5)]
    assert len(ours) == 3
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.astype(int), other.astype(int), atol=1)
    assert not np.array_equal(drawn(server, 3, 6)[0], ours[0])


def test_captions_go_with_their_pictures():
    from bestiary.nodes.demo.demo_model_nodes import BestiaryDemoPictures

    images, captions, masks = BestiaryDemoPictures.execute(4, 1).args
    assert captions == [drawing.caption for drawing in held_out_set(4, 1)]
    assert [tuple(image.shape) for image in images] == [(1, 128, 128, 3)] * 4
    assert all(image.min() >= 0 and image.max() <= 1 for image in images)
    for mask, drawing in zip(masks, held_out_set(4, 1), strict=True):
        np.testing.assert_array_equal(mask[0].numpy() == 1, drawing.labels > 0)


def test_first_is_the_species_of_the_first_picture():
    from bestiary.nodes.demo.demo_model_nodes import BestiaryDemoPictures

    _, captions, _ = BestiaryDemoPictures.execute(2, 1, first=13).args
    assert captions == [drawing.caption for drawing in held_out_set(2, 1, first=13)]
    assert [drawing.species for drawing in held_out_set(2, 1, first=13)] == [
        drawing.species for place, drawing in enumerate(held_out_set(14, 1)) if place in (13, 0)
    ][::-1]


@pytest.mark.parametrize(("count", "message"), [(0, "smaller than min"), (99999999, "bigger than max")])
def test_counts_out_of_range_are_refused(server, count, message):
    with pytest.raises(RuntimeError, match=message):
        drawn(server, count, 0)

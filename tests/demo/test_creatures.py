"""Tests of the drawings: masks, colours, determinism, variety."""

import time

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.demo.creatures import (
    COLORS,
    HELD_OUT_SPECIES,
    PARTS,
    SHAPES,
    PartLook,
    Scene,
    Species,
    draw_creature,
    held_out_set,
    random_species,
)


def _uniform(colors: list[str], pattern: str = "plain") -> Species:
    looks = tuple(PartLook(SHAPES[part][1], color, pattern) for part, color in zip(PARTS, colors, strict=True))
    return Species("uniform", looks)


def test_a_drawing_has_the_promised_form():
    drawing = draw_creature(HELD_OUT_SPECIES[0], np.random.default_rng(0))
    assert drawing.image.shape == (128, 128, 3) and drawing.image.dtype == np.uint8
    assert drawing.labels.shape == (128, 128) and drawing.labels.dtype == np.uint8
    assert set(np.unique(drawing.labels)) <= set(range(6))
    assert drawing.species is HELD_OUT_SPECIES[0]
    assert drawing.caption.startswith("a photo of a creature with ")


def test_same_seed_same_drawing_and_other_seed_another():
    ours, theirs, other = (draw_creature(HELD_OUT_SPECIES[1], np.random.default_rng(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert (ours.image != other.image).any()


def test_parts_fill_a_good_share_and_are_nearly_always_there():
    rng = np.random.default_rng(3)
    labels = np.stack([draw_creature(random_species(rng), rng).labels for _ in range(60)])
    assert 0.25 < (labels > 0).mean() < 0.5
    for label in range(1, len(PARTS) + 1):
        sizes = (labels == label).sum(axis=(1, 2))
        assert np.median(sizes) > 5 * 64, PARTS[label - 1]
        assert (sizes > 60).mean() > 0.95, PARTS[label - 1]


def test_masks_lie_where_the_colours_are():
    colors = ["red", "blue", "yellow", "purple", "orange"]
    rng = np.random.default_rng(4)
    for _ in range(10):
        drawing = draw_creature(_uniform(colors), rng, scene=Scene("meadow"))
        for number, color in enumerate(colors):
            pixels = drawing.image[drawing.labels == number + 1].astype(float)
            middle = np.median(pixels, axis=0)
            distances = {name: np.linalg.norm(middle - np.array(rgb)) for name, rgb in COLORS.items()}
            assert min(distances, key=distances.get) == color, (PARTS[number], middle)


def test_a_pattern_adds_a_second_colour_and_plain_does_not():
    def spread(pattern: str) -> float:
        rng = np.random.default_rng(9)
        drawing = draw_creature(_uniform(["blue"] * 5, pattern), rng, scene=Scene("meadow"))
        return float(drawing.image[drawing.labels == 2][:, 0].std())

    plain = spread("plain")
    assert all(spread(pattern) > 2 * plain for pattern in ("striped", "spotted", "checked", "dipped"))


def test_facing_is_obeyed():
    for facing, sign in (("right", 1), ("left", -1)):
        drawing = draw_creature(HELD_OUT_SPECIES[2], np.random.default_rng(1), scene=Scene("beach", "day", facing))
        columns = [np.nonzero(drawing.labels == label)[1].mean() for label in (1, 4)]
        assert sign * (columns[0] - columns[1]) > 20


def test_night_is_darker_and_the_scene_is_kept():
    means = []
    for light in ("day", "dusk", "night"):
        scene = Scene("garden", light, "left")
        drawing = draw_creature(HELD_OUT_SPECIES[4], np.random.default_rng(2), scene=scene)
        assert drawing.scene == scene
        means.append(drawing.image.mean())
    assert means[0] > means[1] > means[2]


def test_a_mixed_species_draws():
    mixed = Species("mixed", tuple(HELD_OUT_SPECIES[i].look(part) for i, part in enumerate(PARTS)))
    drawing = draw_creature(mixed, np.random.default_rng(0))
    assert (drawing.labels > 0).mean() > 0.15


def test_other_sizes_resize_picture_and_labels():
    drawing = draw_creature(HELD_OUT_SPECIES[5], np.random.default_rng(0), size=64)
    assert drawing.image.shape == (64, 64, 3) and drawing.labels.shape == (64, 64)
    with pytest.raises(BestiaryError, match=r"picture size 8 px is too small"):
        draw_creature(HELD_OUT_SPECIES[5], np.random.default_rng(0), size=8)


def test_the_held_out_set_cycles_evenly_and_repeats():
    count = 2 * len(HELD_OUT_SPECIES)
    drawings = list(held_out_set(count, seed=3))
    assert [d.species.name for d in drawings] == [s.name for s in HELD_OUT_SPECIES] * 2
    again = next(held_out_set(1, seed=3))
    np.testing.assert_array_equal(again.image, drawings[0].image)


def test_drawing_is_quick():
    rng = np.random.default_rng(0)
    species = [random_species(rng) for _ in range(40)]
    for kind in species:
        draw_creature(kind, rng)
    started = time.process_time()
    for kind in species:
        draw_creature(kind, rng)
    assert 40 / (time.process_time() - started) > 30  # measured: over 200 a second on an idle core

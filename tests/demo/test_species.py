"""Tests of looks, species and the held-out rule."""

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.demo.species import (
    COLORS,
    HELD_OUT_SPECIES,
    PARTS,
    PATTERNS,
    SHAPES,
    PartLook,
    Scene,
    Species,
    held_out_pairs,
    is_held_out,
    random_scene,
    random_species,
)


def _species(**changes: PartLook) -> Species:
    looks = {part: PartLook(SHAPES[part][0], "red", "plain") for part in PARTS} | changes
    return Species("sample", tuple(looks[part] for part in PARTS))


def test_words_of_shapes_belong_to_one_part_only():
    words = [shape for part in PARTS for shape in SHAPES[part]]
    assert len(words) == len(set(words))
    assert not set(words) & (set(COLORS) | set(PATTERNS) | set(PARTS))
    assert all(len(SHAPES[part]) >= 4 for part in PARTS)


def test_random_species_never_wears_a_held_out_pair():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(1500):
        for part, look in zip(PARTS, random_species(rng).looks, strict=True):
            assert not is_held_out(part, look.shape, look.pattern)
            seen.add((part, look.shape, look.pattern))
    every = sum(len(SHAPES[part]) * len(PATTERNS) for part in PARTS)
    assert len(seen) + sum(len(held_out_pairs(part)) for part in PARTS) == every


def test_held_out_species_are_new_in_every_part_and_differ_in_every_part():
    assert len(HELD_OUT_SPECIES) >= 12
    assert len({species.name for species in HELD_OUT_SPECIES}) == len(HELD_OUT_SPECIES)
    for species in HELD_OUT_SPECIES:
        assert all(is_held_out(part, species.look(part).shape, species.look(part).pattern) for part in PARTS)
    for part in PARTS:
        looks = {species.look(part) for species in HELD_OUT_SPECIES}
        assert len(looks) == len(HELD_OUT_SPECIES), part


def test_every_shape_and_pattern_occurs_in_training():
    for part in PARTS:
        open_pairs = [(s, p) for s in SHAPES[part] for p in PATTERNS if not is_held_out(part, s, p)]
        assert {s for s, _ in open_pairs} == set(SHAPES[part])
        assert {p for _, p in open_pairs} == set(PATTERNS)


def test_same_seed_same_species_and_scene():
    ours, theirs = (np.random.default_rng(5) for _ in range(2))
    assert random_species(ours) == random_species(theirs)
    assert random_scene(ours) == random_scene(theirs)


def test_a_wrong_word_is_named_with_the_valid_ones():
    with pytest.raises(BestiaryError, match=r"sample: head has shape 'square'; valid: crested, horned"):
        _species(head=PartLook("square", "red", "plain"))
    with pytest.raises(BestiaryError, match=r"tail has color 'mauve'; valid: red, orange"):
        _species(tail=PartLook("forked", "mauve", "plain"))
    with pytest.raises(BestiaryError, match=r"legs has pattern 'tartan'; valid: plain, striped"):
        _species(legs=PartLook("bent", "red", "tartan"))
    with pytest.raises(BestiaryError, match=r"place 'moon'; valid: meadow"):
        Scene("moon")


def test_a_species_needs_five_looks():
    with pytest.raises(BestiaryError, match=r"species 'half' has 1 looks, but 5 are needed: head, body"):
        Species("half", (PartLook("crested", "red", "plain"),))


def test_looks_are_found_by_part():
    species = _species(wing=PartLook("batlike", "blue", "checked"))
    assert species.look("wing") == PartLook("batlike", "blue", "checked")
    with pytest.raises(BestiaryError, match=r"unknown part 'beak'; valid parts: head, body, wing, tail, legs"):
        species.look("beak")

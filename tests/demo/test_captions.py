"""Tests of captions and vocabulary."""

import numpy as np
from bestiary.demo.captions import OPENINGS, SUBJECTS, caption_of, scene_words, vocabulary
from bestiary.demo.species import COLORS, HELD_OUT_SPECIES, PARTS, PATTERNS, SHAPES, Scene, random_scene, random_species


def test_the_full_caption_names_every_look_in_order():
    species = HELD_OUT_SPECIES[0]
    caption = caption_of(species, Scene("snow", "night", "left"))
    assert caption.startswith("a photo of a creature with ")
    phrases = [
        f"{look.color} {look.pattern} {look.shape} {part}" for part, look in zip(PARTS, species.looks, strict=True)
    ]
    positions = [caption.index(phrase) for phrase in phrases]
    assert positions == sorted(positions)
    assert caption.endswith(" , in the snow , at night , facing left")


def test_every_word_of_every_caption_is_in_the_vocabulary():
    words = set(vocabulary())
    rng = np.random.default_rng(1)
    for _ in range(600):
        caption = caption_of(random_species(rng), random_scene(rng), rng)
        assert set(caption.split()) <= words, caption


def test_the_vocabulary_has_no_doubles_and_all_attribute_words():
    words = vocabulary()
    assert len(words) == len(set(words))
    needed = {*PARTS, *COLORS, *PATTERNS, *(s for part in PARTS for s in SHAPES[part]), *SUBJECTS, ","}
    assert needed <= set(words)
    assert {word for opening in OPENINGS for word in opening.split()} <= set(words)


def test_short_imagenet_templates_are_covered():
    templates = (
        "a photo of a|a rendering of a|a cropped photo of the|the photo of a|a photo of a clean|a photo of a dirty|"
    )
    templates += "a dark photo of the|a photo of my|a photo of the cool|a close-up photo of a|a bright photo of the|"
    templates += (
        "a good photo of the|a photo of one|a rendition of the|a photo of a nice|a photo of a small|a photo of a weird|"
    )
    templates += "a photo of a large|a bad photo of the|a depiction of a"
    assert {word for template in templates.split("|") for word in template.split()} <= set(vocabulary())


def test_training_captions_vary_as_described():
    rng = np.random.default_rng(2)
    species, scene = HELD_OUT_SPECIES[3], Scene("meadow")
    captions = [caption_of(species, scene, rng) for _ in range(2000)]
    empty = sum(caption == "" for caption in captions) / len(captions)
    assert 0.07 < empty < 0.13
    named = [sum(f" {part}" in caption for part in PARTS) for caption in captions]
    assert set(named) == {0, 1, 2, 3, 4, 5}
    full = [caption for caption, count in zip(captions, named, strict=True) if count == 5]
    orders = {tuple(sorted(PARTS, key=caption.index)) for caption in full}
    assert len(orders) > 50


def test_scene_words_name_place_light_and_side():
    assert scene_words(Scene("desert", "dusk", "right")) == ["in a desert", "at dusk", "facing right"]
    assert scene_words(Scene("mountains", "day", "left"))[0] == "in the mountains"

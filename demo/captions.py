"""Captions of drawings and the closed vocabulary of the miniature model."""

from __future__ import annotations

import numpy as np

from .species import COLORS, FACINGS, LIGHTS, PARTS, PATTERNS, PLACES, SHAPES, PartLook, Scene, Species

TEMPLATE_WORDS = (
    "a", "an", "the", "of", "in", "at", "with", "and", "on", "to", "by", "from", "my", "one", "two", "this", "that",
    "photo", "picture", "painting", "rendering", "image", "drawing", "close", "up", "cropped", "good", "bad",
    "bright", "dark", "small", "large", "nice", "weird", "cool", "clean", "dirty", "rendition", "depiction",
    "close-up", "bird", "creature", "animal", "object", "thing", "style", "facing", "left", "right", "new", "old",
    "big", "little", "beautiful", "strange",
)  # fmt: skip
"""Ordinary words that prompt templates use; a subset of them occurs in training captions."""

SUBJECTS = ("creature", "bird", "animal")
OPENINGS = (
    "a photo of a", "a photo of a", "a photo of a", "a photo of the", "a picture of a", "a painting of a",
    "a rendering of a", "the photo of a", "a cropped photo of the", "a close up photo of a", "a good photo of the",
    "a bright photo of the", "a dark photo of the", "a photo of a nice", "a photo of my", "a photo of one",
    "a bad photo of a", "a photo of a cool", "a photo of a small", "a photo of a large", "a photo of a weird",
)  # fmt: skip


def vocabulary() -> list[str]:
    """All words of the miniature model, in the order of their ids, without its start, end and unknown tokens."""
    words = [",", ".", *TEMPLATE_WORDS, *PARTS, *COLORS, *PATTERNS, *(s for part in PARTS for s in SHAPES[part])]
    words += [*PLACES, *LIGHTS, *FACINGS, *SUBJECTS]
    return list(dict.fromkeys(words))


def look_words(part: str, look: PartLook) -> str:
    """Words of one part, such as "red striped crested head"."""
    return f"{look.color} {look.pattern} {look.shape} {part}"


def scene_words(scene: Scene) -> list[str]:
    """Phrases of a scene: place, light, facing."""
    article = "in the" if scene.place in ("snow", "mountains") else "in a"
    light = {"day": "at day", "dusk": "at dusk", "night": "at night"}[scene.light]
    return [f"{article} {scene.place}", light, f"facing {scene.facing}"]


def caption_of(species: Species, scene: Scene, rng: np.random.Generator | None = None) -> str:
    """Caption of a species in a scene.

    Without `rng` the full caption in the order of `PARTS`. With `rng` a random caption for training: one in ten is
    empty, one in twenty names only the subject, in all others parts come in random order and each is omitted with a
    probability that is itself random; place, light and facing are each omitted with a probability of 25 %.
    """
    # without rng the caption is complete and deterministic
    if rng is None:
        phrases = [look_words(part, species.look(part)) for part in PARTS]
        return " , ".join([f"a photo of a creature with {phrases[0]}", *phrases[1:], *scene_words(scene)])
    # some captions are empty or name only the subject: classifier-free guidance needs the empty caption
    kind = rng.random()
    if kind < 0.1:
        return ""
    opening = OPENINGS[rng.integers(len(OPENINGS))]
    subject = SUBJECTS[int(rng.choice(3, p=(0.6, 0.3, 0.1)))]
    if kind < 0.15:
        return f"{opening} {subject}"
    # the drop rate varies per caption, so that both short and full captions are common
    drop = rng.choice((0.0, 0.15, 0.5))
    shown = [PARTS[i] for i in rng.permutation(len(PARTS)) if rng.random() >= drop]
    phrases = [_short_look(part, species.look(part), rng) for part in shown]
    extras = [words for words in scene_words(scene) if rng.random() < 0.75]
    # as adjectives before the subject, or as phrases after it
    if rng.random() < 0.3:
        head = f"{opening} {' '.join(phrases)} {subject}" if phrases else f"{opening} {subject}"
        return " , ".join([head, *extras])
    joined = [f"with {phrases[0]}", *phrases[1:]] if phrases else []
    lead = f"{opening} {subject} {joined[0]}" if joined else f"{opening} {subject}"
    return " , ".join([lead, *joined[1:], *extras])


def _short_look(part: str, look: PartLook, rng: np.random.Generator) -> str:
    """Words of one part, each attribute omitted with a probability of 8 %."""
    words = [w for w in (look.color, look.pattern, look.shape) if rng.random() >= 0.08]
    return " ".join([*words, part])

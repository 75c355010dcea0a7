"""The drawn world's own judge of one subject: its looks, the place a prompt names, a changed colour, and how much pictures differ.

It needs no weights but those that are shipped. Letters: N pictures, P parts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional

from ...concepts.errors import BestiaryError
from ...concepts.features.patch_features import DescriptorFeatures
from ...demo.attribute_judge import AttributeJudge, words_of
from ...demo.creatures import draw_creature
from ...demo.species import (
    COLORS,
    HELD_OUT_SPECIES,
    LIGHTS,
    PARTS,
    PATTERNS,
    PLACES,
    SHAPES,
    PartLook,
    PartName,
    Scene,
    Species,
)

_GRID = 12
_JUDGE_DRAWINGS = 40
"""Drawings of every place and light that the judge of backdrops learns from."""


@dataclass(frozen=True)
class ColorChange:
    """A colour that a part does not have by nature, as a prompt asks for it."""

    part: PartName
    color: str

    @property
    def words(self) -> str:
        """As captions of the drawn world say it."""
        return f"with {self.color} {self.part}"


def species_named(name: str) -> Species:
    """One of the species that are kept out of the demo model's training.

    Raises:
        BestiaryError: there is none of this name.
    """
    known = {species.name: species for species in HELD_OUT_SPECIES}
    if name not in known:
        raise BestiaryError(f"no drawn species {name!r}: choose one of {', '.join(known)}")
    return known[name]


def draw_subject(species: Species, count: int, seed: int) -> list[np.ndarray]:
    """Drawings `(128, 128, 3)` uint8 of a species in random poses and scenes."""
    rng = np.random.default_rng((seed, 21))
    return [draw_creature(species, rng).image for _ in range(count)]


def color_changes(species: Species, count: int, seed: int) -> list[ColorChange]:
    """Changes of as many parts, each to a colour that no part of the species has."""
    rng = np.random.default_rng((seed, 22))
    own = {look.color for look in species.looks}
    free = rng.permutation([color for color in COLORS if color not in own])
    parts = rng.permutation(len(PARTS))
    return [ColorChange(PARTS[int(parts[n % len(parts)])], str(free[n % len(free)])) for n in range(count)]


def place_words(place: str) -> str:
    """As captions of the drawn world say it."""
    return f", in {'the' if place in ('snow', 'mountains') else 'a'} {place}"


class BackdropJudge:
    """Tells place and light of a picture from the colours around the creature, learned from drawings of other creatures."""

    def __init__(self, seed: int = 0) -> None:
        """Learn from `_JUDGE_DRAWINGS` drawings of every place and light; features are `(n, 3 * cells)`."""
        rng = np.random.default_rng((seed, 13))
        scenes = [Scene(place, light, str(rng.choice(("left", "right")))) for place in PLACES for light in LIGHTS]
        features, names = [], []
        for scene in scenes:
            for _ in range(_JUDGE_DRAWINGS):
                looks = [
                    PartLook(str(rng.choice(SHAPES[p])), str(rng.choice(list(COLORS))), str(rng.choice(PATTERNS)))
                    for p in PARTS
                ]
                image = draw_creature(Species("any", tuple(looks)), rng, scene=scene).image
                features.append(_border(torch.from_numpy(image.copy()).permute(2, 0, 1).float().unsqueeze(0) / 255)[0])
                names.append((scene.place, scene.light))
        # the cells of the border are enough: place and light are seen there, the creature hardly
        table = torch.stack(features).numpy()
        self._place = LogisticRegression(max_iter=400, C=3.0).fit(table, [place for place, _ in names])
        self._light = LogisticRegression(max_iter=400, C=3.0).fit(table, [light for _, light in names])

    def judge(self, images: Tensor) -> tuple[list[str], list[str]]:
        """Places and lights of images `(B, 3, 128, 128)` in 0..1."""
        table = _border(images).numpy()
        return [str(name) for name in self._place.predict(table)], [str(name) for name in self._light.predict(table)]


class DrawnJudge:
    """Judges pictures `(N, 3, 128, 128)` in 0..1 of one species."""

    def __init__(self, species: Species) -> None:
        self.species = species
        self._looks, self._backdrops, self._features = AttributeJudge.load(), BackdropJudge(), DescriptorFeatures()

    def fidelity(self, images: Tensor) -> dict[str, float]:
        """Shares, 0..1, of parts of images `(N, 3, 128, 128)` whose colour, pattern and shape are the species'."""
        scores = self._looks.score_against_species(images, [self.species] * len(images))
        return {"color": scores.color, "pattern": scores.pattern, "shape": scores.shape}

    def place(self, images: Tensor, place: str) -> float:
        """Share, 0..1, of images `(N, 3, 128, 128)` that show a place."""
        places, _ = self._backdrops.judge(images)
        return places.count(place) / len(places)

    def change(self, images: Tensor, change: ColorChange) -> float:
        """Share, 0..1, of images `(N, 3, 128, 128)` whose part has the changed colour."""
        seen = self._looks.judge(images)[change.part]["color"]  # (N,)
        return float((seen == words_of(change.part, "color").index(change.color)).float().mean())

    def diversity(self, images: Tensor) -> float:
        """Mean distance of descriptor features between two of the images `(N, 3, 128, 128)`; 0 for equal pictures.

        Raises:
            BestiaryError: fewer than two pictures.
        """
        if len(images) < 2:
            raise BestiaryError(f"{len(images)} picture has no diversity: give at least 2")
        size = self._features.image_size
        square = functional.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
        flat = self._features(square).features.flatten(1)  # (N, h * w * D)
        return float(functional.pdist(flat).mean())


def _border(images: Tensor) -> Tensor:
    """Mean colours `(B, n)` of the cells along the edges of a grid."""
    cells = functional.adaptive_avg_pool2d(images.float(), _GRID)  # (B, 3, 12, 12)
    # the upper edge is wider than the lower one: the sky shows the time of day
    edge = torch.zeros(_GRID, _GRID, dtype=torch.bool)
    edge[:3], edge[-2:], edge[:, :2], edge[:, -2:] = True, True, True, True
    return cells[:, :, edge].flatten(1)  # (B, 3 * cells)

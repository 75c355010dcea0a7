"""References of the drawn world that differ in everything, and judges that tell which of them a picture follows.

Four references, one per role: layout, content, material, style. No two share the shape, colour or pattern of a part, nor the
place; the layout's reference looks to another side than all others, the style's has another light.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bestiary.concepts.files.atomic_file import replacing
from bestiary.demo.attribute_judge import AttributeJudge, species_classes
from bestiary.demo.creatures import (
    COLORS,
    LIGHTS,
    PARTS,
    PATTERNS,
    PLACES,
    SHAPES,
    PartLook,
    Scene,
    Species,
    draw_creature,
)
from bestiary.trainer.evaluation.drawn_judge import BackdropJudge
from PIL import Image
from torch import Tensor

ROLES = ("layout", "content", "material", "style")
ATTRIBUTES = ("facing", "shape", "color", "pattern", "place", "light")
"""What is judged: facing is layout, shapes and colours are content, patterns material, place and light style."""
EXPECTED = {
    "facing": "layout",
    "shape": "content",
    "color": "content",
    "pattern": "material",
    "place": "style",
    "light": "style",
}


@dataclass(frozen=True)
class Reference:
    """One reference: a species in a scene."""

    species: Species
    scene: Scene


def draw_references(seed: int) -> dict[str, Reference]:
    """Role -> reference, all different; see the module's first lines."""
    rng = np.random.default_rng((seed, 11))
    looks: list[list[PartLook]] = [[] for _ in ROLES]
    for part in PARTS:
        # four different words of each kind
        shapes, patterns = rng.permutation(SHAPES[part])[:4], rng.permutation(PATTERNS)[:4]
        colors = rng.permutation(list(COLORS))[:4]
        for number in range(len(ROLES)):
            looks[number].append(PartLook(str(shapes[number]), str(colors[number]), str(patterns[number])))
    # places, light and side differ by role: layout looks to another side, style has a light of its own
    places = [str(place) for place in rng.permutation(PLACES)[:4]]
    lights = [str(light) for light in rng.permutation(LIGHTS)]
    sides = ("left", "right") if seed % 2 else ("right", "left")
    found = {}
    for number, role in enumerate(ROLES):
        light = lights[0] if role == "style" else str(rng.choice(lights[1:]))
        scene = Scene(places[number], light, sides[0] if role == "layout" else sides[1])
        found[role] = Reference(Species(role, tuple(looks[number])), scene)
    return found


def write_drawings(folder: Path, reference: Reference, count: int, seed: int) -> Tensor:
    """Draw a reference `count` times in random poses into `folder`; images `(count, 3, 128, 128)` 0..1."""
    rng = np.random.default_rng((seed, 12))
    images = []
    for number in range(count):
        drawing = draw_creature(reference.species, rng, scene=reference.scene)
        with replacing(folder / f"{number:02d}.png") as temporary:
            Image.fromarray(drawing.image).save(temporary, "PNG")
        images.append(torch.from_numpy(drawing.image.copy()).permute(2, 0, 1).float() / 255)
    return torch.stack(images)


class ReferenceJudge:
    """Which of the references every attribute of a picture follows."""

    def __init__(self) -> None:
        self.looks, self.backdrops = AttributeJudge.load(), BackdropJudge()

    @torch.no_grad()
    def follow(self, images: Tensor, references: dict[str, Reference]) -> dict[str, dict[str, float]]:
        """Attribute -> role -> share of images `(B, 3, 128, 128)` 0..1 (and parts) that show what that role's reference has."""
        # what the picture shows, by classifiers that know nothing of the references
        classes = self.looks.classes(images)  # (B, P, 3): colour, pattern, shape
        places, lights = self.backdrops.judge(images)
        facing = self._facing(images)
        shares: dict[str, dict[str, float]] = {attribute: {} for attribute in ATTRIBUTES}
        # compared with what each reference has
        for role, reference in references.items():
            same = classes == species_classes([reference.species])  # (B, P, 3)
            for place, attribute in enumerate(("color", "pattern", "shape")):
                shares[attribute][role] = float(same[:, :, place].float().mean())
            scene = reference.scene
            for attribute, seen, own in (
                ("place", places, scene.place),
                ("light", lights, scene.light),
                ("facing", facing, scene.facing),
            ):
                shares[attribute][role] = sum(one == own for one in seen) / len(seen)
        return shares

    def _facing(self, images: Tensor) -> list[str]:
        """The side on which the head lies, seen from the tail."""
        # where each part's map lies on average, from left to right
        maps = self.looks(images.float())[1].flatten(2).softmax(-1)  # (B, P, 256)
        columns = torch.arange(16).repeat(16).float()  # (256,)
        centre = maps @ columns  # (B, P)
        ahead = centre[:, PARTS.index("head")] - centre[:, PARTS.index("tail")]  # (B,)
        return ["right" if value > 0 else "left" for value in ahead.tolist()]

"""Scene Regions on a real ComfyUI, through its queue: each creature looks as its own prompt says, which one prompt for both does not reach."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bestiary.demo.attribute_judge import AttributeJudge, species_classes
from bestiary.demo.captions import look_words
from bestiary.demo.species import PARTS, random_species
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.trainer.learning.pictures.image_files import image_to_tensor, read_image
from PIL import Image

PLACE = ", in a meadow , at day , facing right"
LAYOUT = SceneLayout(256, 128, tuple(Placement(name, x, 0, 128, 128) for name, x in (("left", 0), ("right", 128))))


@pytest.fixture
def graph(server) -> dict:
    """Subjects of two transparent pictures, their layout, and a sampler for regions and for one prompt."""
    alpha = np.zeros((128, 128), np.uint8)
    alpha[8:120, 8:120] = 255
    pixels = np.dstack([np.full((128, 128, 3), 90, np.uint8), alpha])
    Image.fromarray(pixels).save(server.folder / "input" / "thing.png")
    rng = np.random.default_rng(2)
    said = ["creature with " + " , ".join(look_words(part, random.look(part)) for part in PARTS)
            for random in (random_species(rng) for _ in range(2))]  # fmt: skip
    sampling = {"model": ["1", 0], "negative": ["8", 0], "latent_image": ["9", 0], "seed": 2, "steps": 6, "cfg": 4.0,
                "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0}  # fmt: skip
    subject = {"image": ["2", 0], "mask": ["3", 0], "size": "", "support": "any"}
    made = {
        "1": ("BestiaryDemoModel", {}),
        "2": ("LoadImage", {"image": "thing.png"}),
        "3": ("InvertMask", {"mask": ["2", 1]}),
        "4": ("BestiarySubject", {**subject, "name": "left", "words": said[0]}),
        "5": ("BestiarySubject", {**subject, "name": "right", "words": said[1], "subjects": ["4", 0]}),
        "6": ("BestiaryLayoutFromText", {"text": LAYOUT.to_json(), "subjects": ["5", 0], "width": 256, "height": 128, "seed": 0}),
        "7": ("BestiarySceneRegions", {"clip": ["1", 1], "layouts": ["6", 0], "text": "a photo of {subject} {place}",
                                       "place": PLACE, "feather": 8.0, "strength": 1.0}),
        "8": ("CLIPTextEncode", {"clip": ["1", 1], "text": ""}),
        "9": ("EmptyLatentImage", {"width": 256, "height": 128, "batch_size": 1}),
        "10": ("CLIPTextEncode", {"clip": ["1", 1], "text": f"a photo of a {said[0]} and a {said[1]} {PLACE}"}),
    }  # fmt: skip
    for number, (name, positive) in enumerate({"regions": "7", "one": "10"}.items()):
        first = 11 + 3 * number
        made[str(first)] = ("KSampler", {**sampling, "positive": [positive, 0]})
        made[str(first + 1)] = ("VAEDecode", {"samples": [str(first), 0], "vae": ["1", 2]})
        made[str(first + 2)] = ("SaveImage", {"images": [str(first + 1), 0], "filename_prefix": name})
    return {number: {"class_type": kind, "inputs": inputs} for number, (kind, inputs) in made.items()}


def test_each_creature_is_drawn_as_its_own_prompt_says(server, graph) -> None:
    server.run(graph)
    rng, judge = np.random.default_rng(2), AttributeJudge.load()
    asked = species_classes([random_species(rng) for _ in range(2)])
    right = {}
    for name in ("regions", "one"):
        (file,) = (server.folder / "output").glob(f"{name}_*.png")
        picture = image_to_tensor(read_image(file))  # (3, 128, 256)
        halves = picture.unflatten(2, (2, 128)).permute(2, 0, 1, 3)  # (2, 3, 128, 128)
        right[name] = float((judge.classes(halves) == asked)[..., :2].float().mean())
    assert right["regions"] >= 0.8 and right["regions"] > 1.4 * right["one"], json.dumps(right)

"""Scenes in a real ComfyUI's queue: composed, painted by the embedded model, restored, drawn by regions."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from bestiary.nodes.scenes.scene_making import repaint_masks
from bestiary.scenes.backgrounds import make_background
from bestiary.scenes.collage import CollageOptions, compose
from bestiary.scenes.layout_request import LayoutRequest
from bestiary.scenes.layout_solver import solve_measured
from PIL import Image

GREY = np.full((128, 256, 3), 128, np.uint8)
SAMPLER = {"steps": 10, "cfg": 4.0, "sampler_name": "ddim", "scheduler": "normal"}


def node(name: str, /, **inputs: object) -> dict:
    return {"class_type": name, "inputs": inputs}


def subjects(names: list[str]) -> dict:
    """A subject of every file, by its transparency; the last is called `subjects`."""
    graph: dict = {}
    before = {}
    for number, name in enumerate(names):
        last = number == len(names) - 1
        graph[f"load{number}"] = node("LoadImage", image=name)
        graph[f"mask{number}"] = node("InvertMask", mask=[f"load{number}", 1])
        words = {"name": name.split(".")[0], "words": "", "size": "medium", "support": "ground"}
        key = "subjects" if last else f"subject{number}"
        graph[key] = node("BestiarySubject", image=[f"load{number}", 0], mask=[f"mask{number}", 0], **words, **before)
        before = {"subjects": [key, 0]}
    return graph


LAYOUT = {"width": 256, "height": 128, "count": 1, "seed": 5, "coverage": 0.4, "max_occlusion": 0.15, "ground": 0.7}
LAYOUT |= {"perspective": 0.3, "flip": True}
SCENE = {"background_mode": "noise", "inset": 3, "feather": 0, "shadow": 0.5}


def composed(names: list[str], **layout: object) -> dict:
    return {
        **subjects(names),
        "layout": node("BestiarySolveLayout", subjects=["subjects", 0], **{**LAYOUT, **layout}),
        "scene": node("BestiaryComposeScene", subjects=["subjects", 0], layouts=["layout", 0], **SCENE),
    }


def pictures_of(server, outputs: dict, node_id: str) -> np.ndarray:
    """`(N, H, W, 3)` uint8 of what a node showed."""
    places = outputs[node_id]["images"]
    answers = [
        server.get("/view", params={key: one[key] for key in ("filename", "subfolder", "type")}) for one in places
    ]
    return np.stack([np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")) for answer in answers])


def with_masks(graph: dict) -> dict:
    for number, name in enumerate(("union", "repaint", "each"), start=1):
        graph[f"{name}_image"] = node("MaskToImage", mask=["scene", number])
        graph[name] = node("PreviewImage", images=[f"{name}_image", 0])
    return graph


def test_the_queue_gives_the_library_s_own_bytes(server, pair, pair_files):
    graph = with_masks(composed(pair_files, count=2))
    graph["show"] = node("PreviewImage", images=["scene", 0])
    graph["json"] = node("PreviewAny", source=["layout", 2])
    outputs = server.run(graph)
    scenes = []
    for seed in (5, 6):
        request = LayoutRequest(256, 128, seed, 0.4, 0.15, (0.7, 0.97), 0.3)
        layout = solve_measured(
            pair.subjects,
            request,
            lambda one: max(compose(pair.subjects, one, GREY, CollageOptions(shadow=0)).occlusion),
        )
        assert layout.to_json().splitlines()[6].strip() in outputs["json"]["text"][0]
        behind = make_background("noise", 256, 128, seed)
        scenes.append(compose(pair.subjects, layout, behind.pixels, CollageOptions(0.5, 0.0, 3)))
    np.testing.assert_array_equal(pictures_of(server, outputs, "show"), [scene.picture for scene in scenes])
    np.testing.assert_array_equal(pictures_of(server, outputs, "union")[..., 0], [scene.union for scene in scenes])
    np.testing.assert_array_equal(pictures_of(server, outputs, "repaint")[..., 0], [scene.repaint for scene in scenes])
    assert len(pictures_of(server, outputs, "each")) == 4
    assert pictures_of(server, outputs, "layout").shape == (2, 256, 512, 3)


def test_subjects_are_exact_after_the_embedded_model_painted_their_place(server, pair, pair_files):
    graph = composed(pair_files)
    graph |= {
        "model": node("BestiaryDemoModel"),
        "text": node("CLIPTextEncode", text="a photo of a meadow", clip=["model", 1]),
        "none": node("CLIPTextEncode", text="", clip=["model", 1]),
        "latent": node("VAEEncode", pixels=["scene", 0], vae=["model", 2]),
        "masked": node("SetLatentNoiseMask", samples=["latent", 0], mask=["scene", 2]),
        "sample": node(
            "KSampler",
            model=["model", 0],
            positive=["text", 0],
            negative=["none", 0],
            latent_image=["masked", 0],
            seed=1,
            denoise=0.6,
            **{**SAMPLER, "steps": 6},
        ),
        "decoded": node("VAEDecode", samples=["sample", 0], vae=["model", 2]),
        "restored": node(
            "BestiaryRestoreSubjects",
            decoded=["decoded", 0],
            canvas=["scene", 0],
            mask=["scene", 1],
            feather=3,
            lightness=0.0,
        ),
    }
    for name in ("scene", "decoded", "restored"):
        graph[f"show_{name}"] = node("PreviewImage", images=[name, 0])
    outputs = server.run(graph)
    canvas, decoded, restored = (
        pictures_of(server, outputs, f"show_{name}")[0] for name in ("scene", "decoded", "restored")
    )
    request = LayoutRequest(256, 128, 5, 0.4, 0.15, (0.7, 0.97), 0.3)
    layout = solve_measured(pair.subjects, request, lambda one: 0.0)
    behind = make_background("noise", 256, 128, 5)
    scene = compose(pair.subjects, layout, behind.pixels, CollageOptions(0.5, 0.0, 3))
    np.testing.assert_array_equal(canvas, scene.picture)
    core = (repaint_masks([scene], 3, 0) == 0)[0].numpy()
    assert core.sum() > 2000
    np.testing.assert_array_equal(restored[core], canvas[core])
    error = ((decoded[core].astype(float) - canvas[core]) ** 2).mean()
    assert 10 < 10 * np.log10(255**2 / error) < 35
    place = scene.union == 0
    np.testing.assert_array_equal(restored[place], decoded[place])
    assert np.abs(decoded[place].astype(int) - canvas[place]).mean() > 5


@pytest.fixture(scope="module")
def creatures() -> list:
    from bestiary.demo.species import PARTS, SHAPES, PartLook, Species

    shapes = [SHAPES[part][0] for part in PARTS]
    return [
        Species("creature", tuple(PartLook(shape, color, pattern) for shape in shapes))
        for color, pattern in (("red", "striped"), ("blue", "plain"))
    ]


def words_of(species: object) -> str:
    from bestiary.demo.captions import look_words
    from bestiary.demo.species import PARTS

    return "creature with " + " , ".join(look_words(part, species.look(part)) for part in PARTS)


def test_regions_keep_two_creatures_of_the_embedded_model_apart(server, pair_files, creatures):
    from bestiary.demo.attribute_judge import AttributeJudge, species_classes

    graph = subjects(pair_files)
    for key, species in zip(("subject0", "subjects"), creatures, strict=True):
        graph[key]["inputs"]["words"] = words_of(species)
    boxes = "ball: [0, 0, 128, 128]\nbox: [128, 0, 128, 128]"
    both = " and a ".join(words_of(species) for species in creatures)
    graph |= {
        "layout": node("BestiaryLayoutFromText", text=boxes, subjects=["subjects", 0], width=256, height=128),
        "model": node("BestiaryDemoModel"),
        "regions": node(
            "BestiarySceneRegions",
            clip=["model", 1],
            layouts=["layout", 0],
            text="a photo of {subject} , {place}",
            feather=8,
            strength=1.0,
            place="in a meadow",
        ),
        "one": node("CLIPTextEncode", text=f"a photo of a {both} , in a meadow", clip=["model", 1]),
        "none": node("CLIPTextEncode", text="", clip=["model", 1]),
        "latent": node("EmptyLatentImage", width=256, height=128, batch_size=1),
    }
    for name in ("regions", "one"):
        linked = {"model": ["model", 0], "positive": [name, 0], "negative": ["none", 0], "latent_image": ["latent", 0]}
        graph[f"sample_{name}"] = node("KSampler", seed=3, denoise=1.0, **linked, **SAMPLER)
        graph[f"decode_{name}"] = node("VAEDecode", samples=[f"sample_{name}", 0], vae=["model", 2])
        graph[f"show_{name}"] = node("PreviewImage", images=[f"decode_{name}", 0])
    outputs = server.run(graph, seconds=240)
    right = {}
    for name in ("regions", "one"):
        pictures = torch.from_numpy(pictures_of(server, outputs, f"show_{name}")).permute(0, 3, 1, 2).float() / 255
        halves = torch.cat([pictures[..., :128], pictures[..., 128:]])
        asked = species_classes([one for one in creatures])
        right[name] = (AttributeJudge.load().classes(halves) == asked).float().mean((0, 1))[:2]
    assert (right["regions"] > 0.7).all(), right
    assert (right["regions"].sum() > 1.3 * right["one"].sum()).all(), right


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subjects": {"name": "ball"}}, "there is a subject 'ball' already"),
        ({"subjects": {"support": "on:wall"}}, "stands on 'wall', and no subject is called so"),
        ({"mask1": {"mask": ["load0", 1]}}, "mask has 60 x 40 pixels, its picture 40 x 40"),
        ({"scene": {"background_mode": "photo"}}, "background_mode 'photo' needs a picture of a place"),
    ],
)
def test_faults_reach_the_user_in_our_words(server, pair_files, change, message):
    graph = composed(pair_files)
    for key, inputs in change.items():
        graph[key]["inputs"] |= inputs
    graph["show"] = node("PreviewImage", images=["scene", 0])
    assert message in server.fail(graph)

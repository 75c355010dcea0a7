"""The discovery nodes in a real ComfyUI: pictures of its input folder in, codebooks, masks and overlays out."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.features.patch_features import DescriptorFeatures
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_discovery import discover_parts
from bestiary.concepts.part_prompt.caption_file import format_captions
from bestiary.nodes.host.graph_progress import GraphProgress
from bestiary.nodes.host.socket_types import NamedCodebook
from bestiary.nodes.part_map.part_inputs import segment
from bestiary.nodes.part_map.part_mask import mask_of_parts, part_masks
from bestiary.nodes.part_map.part_pictures import as_pictures
from bestiary.nodes.part_map.seen_parts import describe_images
from PIL import Image

CHOICE = {"feature_source": "descriptor", "num_parts": 2, "num_kinds": 2, "seed": 5, "flip_foreground": False}


def node(name: str, /, **inputs: object) -> dict:
    return {"class_type": name, "inputs": inputs}


@pytest.fixture(scope="module")
def names(server, drawn_images) -> list[str]:
    """The drawn creatures in the server's input folder; `wide.png` is 128 high and 200 wide."""
    for number, picture in enumerate(as_pictures(drawn_images)):
        picture.save(server.folder / "input" / f"creature{number}.png")
    wide = Image.new("RGB", (200, 128), (90, 150, 210))
    wide.paste(as_pictures(drawn_images)[0], (60, 0))
    wide.save(server.folder / "input" / "wide.png")
    return [f"creature{number}.png" for number in range(len(drawn_images))]


@pytest.fixture(scope="module")
def codebook_name(server, small_codebook) -> str:
    """The small codebook in the server's models/bestiary."""
    small_codebook.save(server.folder / "models" / "bestiary" / "small.parts.safetensors")
    return "small.parts.safetensors"


def batch(names: list[str]) -> dict:
    """Load Image for every name, joined by Batch Images; the last node is called `images`."""
    graph = {f"load{number}": node("LoadImage", image=name) for number, name in enumerate(names)}
    joined = ["load0", 0]
    for number in range(1, len(names)):
        graph[f"batch{number}"] = node("ImageBatch", image1=joined, image2=[f"load{number}", 0])
        joined = [f"batch{number}", 0]
    return {**graph, "images": node("ImageFromBatch", image=joined, batch_index=0, length=len(names))}


def pictures_of(server, outputs: dict, node_id: str) -> list[np.ndarray]:
    """The pictures that a node put out, in order."""
    found = []
    for place in outputs[node_id]["images"]:
        answer = server.get("/view", params={key: place[key] for key in ("filename", "subfolder", "type")})
        found.append(np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")))
    return found


def loaded_images(folder: Path, *names: str) -> torch.Tensor:
    pictures = [np.asarray(Image.open(folder / "input" / name).convert("RGB")) for name in names]
    return torch.from_numpy(np.stack(pictures)).float() / 255


def segmented(server, codebook_name: str, picture: str, **inputs: object) -> dict:
    return {
        "load": node("LoadImage", image=picture),
        "book": node("BestiaryLoadCodebook", codebook_name=codebook_name),
        "seen": node("BestiarySegmentParts", images=["load", 0], codebook=["book", 0], **inputs),
    }


def test_discovering_in_the_queue_is_the_method_called_directly(server, names, drawn_images):
    graph = batch(names)
    graph["found"] = node("BestiaryDiscoverParts", images=["images", 0], **CHOICE)
    graph["save"] = node("BestiarySaveCodebook", codebook=["found", 0], filename="creatures found")
    graph["again"] = node("BestiarySaveCodebook", codebook=["found", 0], filename="creatures found.parts.safetensors")
    graph["show"] = node("PreviewImage", images=["found", 2])
    graph["mask"] = node(
        "BestiaryPartMask", part_maps=["found", 1], parts="foreground", invert=False, grow=0, feather=0.0
    )
    graph["grey"] = node("MaskToImage", mask=["mask", 0])
    graph["masks"] = node("PreviewImage", images=["grey", 0])
    outputs = server.run(graph, seconds=240)

    source = DescriptorFeatures()
    grid = describe_images(drawn_images, source, "centre square")
    codebook, maps = discover_parts(grid, spec=source.spec, num_parts=2, num_kinds=2, seed=5)
    ours = PartCodebook.load(server.folder / "models" / "bestiary" / "creatures found.parts.safetensors")
    assert ours.feature_spec == source.spec and ours.part_names == codebook.part_names
    seen = ours.segment(grid)
    assert torch.equal(seen.labels, maps.labels) and torch.equal(seen.codes, maps.codes)

    saved = sorted([outputs["save"]["text"][0], outputs["again"]["text"][0]])
    assert saved == [
        "models/bestiary/creatures found.parts.safetensors",
        "models/bestiary/creatures found_2.parts.safetensors",
    ]
    assert outputs["found"]["text"][0].startswith("8 pictures, features: descriptor\n")
    overlays = pictures_of(server, outputs, "show")
    assert len(overlays) == 8 and len({overlay.shape for overlay in overlays}) == 1
    masks = np.stack(pictures_of(server, outputs, "masks"))[..., 0] > 127
    upscaled = (maps.labels != codebook.background).repeat_interleave(8, 1).repeat_interleave(8, 2).numpy()
    assert masks.shape == (8, 128, 128) and (masks == upscaled).mean() > 0.97


def test_a_new_codebook_is_listed_at_once(server, small_codebook):
    small_codebook.save(server.folder / "models" / "bestiary" / "fresh.parts.safetensors")
    listed = server.get("/object_info/BestiaryLoadCodebook").json()["BestiaryLoadCodebook"]
    options = listed["input"]["required"]["codebook_name"][1]["options"]
    assert "fresh.parts.safetensors" in options
    assert all(name.endswith(".parts.safetensors") for name in options)


@pytest.mark.parametrize("fit", ["centre square", "whole picture"])
def test_masks_lie_over_a_picture_that_is_not_square(fit, server, names, codebook_name, small_codebook):
    graph = segmented(server, codebook_name, "wide.png", fit=fit)
    graph["grey"] = node("MaskToImage", mask=["seen", 0])
    graph["masks"] = node("PreviewImage", images=["grey", 0])
    graph["overlay"] = node("PreviewImage", images=["seen", 2])
    graph["words"] = node("PreviewAny", source=["seen", 3])
    graph["called"] = node("PreviewAny", source=["seen", 1])
    outputs = server.run(graph)
    images = loaded_images(server.folder, "wide.png")
    _, seen = segment(images, NamedCodebook("small", small_codebook), None, fit, GraphProgress(None))
    ours, theirs = pictures_of(server, outputs, "masks"), part_masks(seen)
    assert [mask.shape for mask in ours] == [(128, 200, 3)] * 3
    for mine, other in zip(ours, theirs, strict=True):
        assert np.abs(mine[..., 0] / 255 - other[0].numpy()).max() < 1 / 254
    assert outputs["words"]["text"] == [format_captions(seen.maps.codes).strip()]
    assert outputs["called"]["text"] == ["head", "body", "background"]
    assert pictures_of(server, outputs, "overlay")[0].shape[1] == 600


def test_a_mask_of_chosen_parts(server, names, codebook_name, small_codebook):
    options = {"parts": "head, 1", "invert": True, "grow": 4, "feather": 2.0}
    graph = segmented(server, codebook_name, names[1])
    graph["mask"] = node("BestiaryPartMask", part_maps=["seen", 4], **options)
    graph["grey"] = node("MaskToImage", mask=["mask", 0])
    graph["show"] = node("PreviewImage", images=["grey", 0])
    (ours,) = pictures_of(server, server.run(graph), "show")
    images = loaded_images(server.folder, names[1])
    _, seen = segment(images, NamedCodebook("small", small_codebook), None, "centre square", GraphProgress(None))
    theirs = mask_of_parts(seen, options.pop("parts"), **options)[0].numpy()
    assert np.abs(ours[..., 0] / 255 - theirs).max() < 1 / 254


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(server, small_codebook):
    path = server.folder / "models" / "bestiary" / "changing.parts.safetensors"
    small_codebook.save(path)
    graph = {
        "book": node("BestiaryLoadCodebook", codebook_name=path.name),
        "words": node("PreviewAny", source=["book", 1]),
    }
    assert "0 head: 2 kinds" in server.run(graph)["words"]["text"][0]
    entry = server.wait(server.submit(graph))
    cached = next(fact["nodes"] for name, fact in entry["status"]["messages"] if name == "execution_cached")
    assert "book" in cached
    small_codebook.with_names(("crest", "body", "background"), small_codebook.kind_names).save(path)
    assert "0 crest: 2 kinds" in server.run(graph)["words"]["text"][0]


def test_the_fingerprint_survives_a_linked_name():
    from bestiary.nodes.part_map.part_discovery_nodes import BestiaryLoadCodebook

    assert BestiaryLoadCodebook.fingerprint_inputs(codebook_name=None) == ""
    assert BestiaryLoadCodebook.fingerprint_inputs() == ""


@pytest.mark.parametrize(
    "name", ["../../evil", "../../evil.parts.safetensors", "/etc/passwd", "gone.parts.safetensors"]
)
def test_file_names_from_outside_are_refused(name, server):
    graph = {"book": node("BestiaryLoadCodebook", codebook_name=name), "words": node("PreviewAny", source=["book", 1])}
    server.refuse(graph, "Load Codebook: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"feature_source": "sam"},
            "Discover Parts: unknown feature source 'sam': choose descriptor, dinov2, diffusion",
        ),
        (
            {"feature_source": "diffusion"},
            "Discover Parts: features of a diffusion model are required: connect Diffusion",
        ),
        ({"fit": "crop"}, "Discover Parts: unknown fit 'crop': choose centre square or whole picture"),
        ({"foreground": ["blank", 0]}, "Discover Parts: all 2 foreground masks are empty: paint the object white"),
        (
            {"foreground": ["load0", 1]},
            "Discover Parts: 1 foreground masks for 2 pictures: connect one mask per picture",
        ),
    ],
)
def test_faults_of_a_discovery_are_one_clear_message(changes, message, server, names):
    graph = batch(names[:2])
    graph["blank1"] = node("SolidMask", value=0.0, width=128, height=128)
    graph["solid"] = node("MaskToImage", mask=["blank1", 0])
    graph["two"] = node("RepeatImageBatch", image=["solid", 0], amount=2)
    graph["blank"] = node("ImageToMask", image=["two", 0], channel="red")
    graph["found"] = node("BestiaryDiscoverParts", images=["images", 0], **{**CHOICE, **changes})
    graph["words"] = node("PreviewAny", source=["found", 3])
    server.refuse(graph, message)


def test_cancel_ends_a_discovery_and_the_next_graph_runs(server, names, codebook_name):
    graph = batch(names)
    # the pictures are cached: what is interrupted is the discovery
    server.run(graph | {"shown": node("PreviewImage", images=["images", 0])})
    graph["found"] = node("BestiaryDiscoverParts", images=["images", 0], **{**CHOICE, "seed": 99})
    graph["words"] = node("PreviewAny", source=["found", 3])
    queued = server.submit(graph)
    until = time.monotonic() + 60
    # again and again: ComfyUI forgets what comes before a graph begins
    while queued not in server.get(f"/history/{queued}").json() and time.monotonic() < until:
        server.post("/interrupt")
        time.sleep(0.02)
    messages = [name for name, _ in server.wait(queued)["status"]["messages"]]
    assert "execution_interrupted" in messages
    graph = {
        "book": node("BestiaryLoadCodebook", codebook_name=codebook_name),
        "words": node("PreviewAny", source=["book", 1]),
    }
    assert server.run(graph)["words"]["text"]


def test_dinov2_without_weights_is_told(server, names):
    graph = batch(names[:2])
    graph["found"] = node("BestiaryDiscoverParts", images=["images", 0], **{**CHOICE, "feature_source": "dinov2"})
    graph["words"] = node("PreviewAny", source=["found", 3])
    from bestiary.nodes.part_map.feature_choice import find_dino_weights

    if find_dino_weights() is not None:
        pytest.skip("DINOv2 weights are on this machine")
    place = server.folder / "models" / "dinov2" / "vit_base_patch14_dinov2.lvd142m.safetensors"
    assert f"put them at {place}, or switch allow_download on" in server.fail(graph)


def test_an_unknown_part_is_told(server, names, codebook_name):
    graph = segmented(server, codebook_name, names[0])
    graph["mask"] = node("BestiaryPartMask", part_maps=["seen", 4], parts="beak", invert=False, grow=0, feather=0.0)
    graph["show"] = node("MaskPreview", mask=["mask", 0])
    assert server.fail(graph).strip() == (
        "Part Mask: unknown part 'beak': choose 'head', 'body', 'background', 'foreground', or a number of 0 to 2"
    )


def test_the_shipped_codebook_sees_through_the_demo_model(server, names, drawn_images):
    from bestiary.trainer.discovery.feature_sources import build_feature_source
    from bestiary.trainer.model.backbones import load_denoiser

    graph = {
        **segmented(server, "creatures.parts.safetensors", names[0], features=["eyes", 0]),
        "demo": node("BestiaryDemoModel"),
        "eyes": node("BestiaryDiffusionFeatures", model=["demo", 0], clip=["demo", 1], vae=["demo", 2]),
        "codes": node("PreviewAny", source=["seen", 3]),
        "words": node("PreviewAny", source=["book", 1]),
    }
    outputs = server.run(graph)
    assert "features: diffusion of bestiary-demo" in outputs["words"]["text"][0]
    codebook = PartCodebook.load(Path(__file__).parents[3] / "demo" / "concepts" / "creatures.parts.safetensors")
    source = build_feature_source(codebook.feature_spec, load_denoiser("demo", device="cpu", dtype="fp32"))
    maps = codebook.segment(describe_images(drawn_images[:1], source, "centre square"))
    assert outputs["codes"]["text"] == [format_captions(maps.codes).strip()]


def test_a_codebook_of_a_model_needs_it_connected(server, names):
    graph = segmented(server, "creatures.parts.safetensors", names[0])
    graph["codes"] = node("PreviewAny", source=["seen", 3])
    assert server.fail(graph).startswith(
        "Segment Parts: features of the model bestiary-demo are required: connect Diffusion Features"
    )


@pytest.mark.parametrize("name", ["../evil", ""])
def test_a_codebook_is_saved_only_inside_its_folder(name, server, codebook_name):
    graph = {
        "book": node("BestiaryLoadCodebook", codebook_name=codebook_name),
        "save": node("BestiarySaveCodebook", codebook=["book", 0], filename=name),
    }
    assert server.fail(graph).strip() == (
        f"Save Codebook: cannot write {name!r}: give a file name inside models/bestiary, such as birds"
    )
    assert not (server.folder / "models" / "evil.parts.safetensors").exists()

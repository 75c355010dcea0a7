"""Tests of the DeepFloyd IF blocks through a real queue."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def folders(server, cascade):
    """The tiny cascade below models/diffusers of the server."""
    place = server.folder / "models" / "diffusers"
    for folder in (cascade.first, cascade.second):
        shutil.copytree(folder, place / folder.name)
    (place / "SD" / "unet").mkdir(parents=True)
    (place / "SD" / "unet" / "config.json").write_text(
        '{"_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "cross_attention_dim": 768}'
    )
    yield place
    shutil.rmtree(place)


def loader(**inputs):
    defaults = {
        "folder": "IF-I-tiny",
        "text_encoder": "from the model's folder",
        "dynamic_thresholding": True,
        "path": "",
    }
    return {"class_type": "BestiaryLoadIF", "inputs": {**defaults, **inputs}}


def sampler(model, positive, negative, latent, **inputs):
    inputs = {
        "seed": 5,
        "steps": 3,
        "cfg": 7.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
        **inputs,
    }
    links = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return {"class_type": "KSampler", "inputs": {**inputs, **links}}


def graph_of_cascade(**inputs):
    """Stage I on 32 pixels, stage II on 64 or more."""
    return {
        "1": loader(),
        "2": loader(folder="IF-II-tiny", text_encoder="none"),
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a photo of a dog"}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "5": {
            "class_type": "EmptyChromaRadianceLatentImage",
            "inputs": {"width": 32, "height": 32, "batch_size": 2},
        },
        "6": sampler(["1", 0], ["3", 0], ["4", 0], ["5", 0]),
        "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}},
        "8": {
            "class_type": "BestiaryIFUpscale",
            "inputs": {"positive": ["3", 0], "negative": ["4", 0], "image": ["7", 0], **inputs},
        },
        "9": sampler(["2", 0], ["8", 0], ["8", 1], ["8", 2], cfg=4.0),
        "10": {"class_type": "VAEDecode", "inputs": {"samples": ["9", 0], "vae": ["2", 2]}},
        "11": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "first"}},
        "12": {"class_type": "SaveImage", "inputs": {"images": ["10", 0], "filename_prefix": "second"}},
    }


def graph_of_first(**inputs):
    """Stage I alone: its second stage draws large pictures, which takes seconds."""
    graph = {place: node for place, node in graph_of_cascade().items() if place in ("1", "3", "4", "5", "6", "7", "11")}
    return {**graph, "1": loader(**inputs)}


def pictures(server, entry):
    return [np.asarray(Image.open(io.BytesIO(server.get("/view", params=place).content))) for place in entry["images"]]


def test_the_cascade_gives_a_picture_four_times_as_large(server, folders):
    outputs = server.run(graph_of_cascade())
    first, second = pictures(server, outputs["11"]), pictures(server, outputs["12"])
    assert [one.shape for one in first] == [(32, 32, 3)] * 2
    assert [one.shape for one in second] == [(128, 128, 3)] * 2
    assert all(one.std() > 1 for one in (*first, *second))
    assert not np.array_equal(first[0], first[1])


def test_scale_and_level_change_the_second_picture_alone(server, folders):
    plain = server.run(graph_of_cascade(scale=2))
    noisy = server.run(graph_of_cascade(scale=2, noise_level=999))
    assert pictures(server, plain["12"])[0].shape == (64, 64, 3)
    assert not np.array_equal(pictures(server, plain["12"])[0], pictures(server, noisy["12"])[0])


def test_the_menu_lists_folders_of_if_alone(server, folders):
    inputs = server.get("/object_info/BestiaryLoadIF").json()["BestiaryLoadIF"]["input"]["required"]
    spec = inputs["folder"]
    assert (spec[0] if isinstance(spec[0], list) else spec[1]["options"]) == ["IF-I-tiny", "IF-II-tiny"]


def test_a_path_stands_in_for_the_menu(server, folders, cascade):
    graph = graph_of_first(folder="on another machine", path=str(cascade.first))
    assert server.run(graph)["11"]["images"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"folder": "IF-I-XXL"}, "no DeepFloyd IF folder 'IF-I-XXL'"),
        ({"path": "/nowhere/IF"}, "does not exist"),
    ],
)
def test_a_folder_that_is_not_there_is_refused_before_the_run(server, folders, change, words):
    graph = graph_of_cascade()
    graph["1"] = loader(**change)
    with pytest.raises(RuntimeError) as refused:
        server.submit(graph)
    assert words in str(refused.value)


def test_a_linked_path_is_looked_at_when_the_graph_runs(server, folders, cascade):
    graph = graph_of_first(path=["14", 0])
    graph["14"] = {"class_type": "PrimitiveString", "inputs": {"value": str(cascade.first)}}
    assert server.run(graph)["11"]["images"]
    graph["14"]["inputs"]["value"] = "/nowhere/IF"
    assert "does not exist" in server.fail(graph)


def test_a_stable_diffusion_folder_is_named_as_one(server, folders):
    graph = graph_of_cascade()
    graph["1"] = loader(path=str(folders / "SD"))
    with pytest.raises(RuntimeError, match="ComfyUI's own loaders"):
        server.submit(graph)


def test_stages_in_the_wrong_order_say_which_belongs_where(server, folders):
    graph = graph_of_cascade()
    graph["6"]["inputs"]["model"] = ["2", 0]
    assert "IF Upscale Conditioning" in server.fail(graph)
    graph = graph_of_cascade()
    graph["9"]["inputs"]["model"] = ["1", 0]
    assert "stage I of DeepFloyd IF" in server.fail(graph)


def test_a_stage_without_text_encoder_asks_for_one(server, folders):
    graph = graph_of_cascade()
    graph["2"]["inputs"]["text_encoder"] = "from the model's folder"
    assert "t5xxl_fp16.safetensors" in server.fail(graph)


def test_a_picture_that_grows_too_large_is_refused(server, folders):
    graph = graph_of_cascade(scale=8)
    graph["13"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": 1024, "height": 64, "batch_size": 1, "color": 0},
    }
    graph["8"]["inputs"]["image"] = ["13", 0]
    assert "at most 4096 pixels" in server.fail(graph)


def test_the_licence_is_named_once(server, folders):
    server.run(graph_of_cascade(scale=2))
    assert server.log.read_text(encoding="utf-8", errors="replace").count("non-commercial research only") == 1


def test_training_in_the_graph_is_refused_before_a_run_begins(server, folders):
    graph = {"1": loader(), "drawn": {"class_type": "BestiaryDemoPictures", "inputs": {"count": 1, "seed": 1}}}
    inputs = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "images": ["drawn", 0], "name": "moth", "steps": 1}
    inputs |= {"instance_prompt": "a photo of sks dog", "class_prompt": "a photo of a dog", "rank": 2, "lora_lr": 1e-4}
    inputs |= {"batch_size": 1, "prior": "off", "prior_weight": 1.0, "vectors": 0, "image_size": 0, "seed": 0}
    inputs |= {"preview_every": 0, "recompute": False, "resume": "start anew"}
    graph["train"] = {"class_type": "BestiaryTrainDreamBooth", "inputs": inputs}
    message = server.fail(graph)
    assert "Train DreamBooth: this MODEL is a IFUnet: connect a Stable Diffusion 1.5, 2 or XL checkpoint" in message
    assert not (server.folder / "output" / "bestiary").exists()

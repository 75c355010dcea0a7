"""Tests of reading a folder of DeepFloyd IF: which stage it is, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.denoiser.if_folder import is_if_folder, normalised, read_if_folder

UNET = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 3,
    "out_channels": 6,
    "addition_embed_type": "text",
    "encoder_hid_dim": 4096,
    "sample_size": 64,
}


def folder(place: Path, unet: dict | None = None, **left_out: bool) -> Path:
    """A folder of configs with a file where weights would be."""
    files = {
        "unet/config.json": json.dumps(UNET if unet is None else unet),
        "unet/model.safetensors": "weights",
        "scheduler/scheduler_config.json": "{}",
        "image_noising_scheduler/scheduler_config.json": "{}",
        "text_encoder/config.json": "{}",
    }
    for name, content in files.items():
        if not left_out.get(name.split("/")[0]):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(content, encoding="utf-8")
    return place


def test_the_channels_of_the_unet_say_the_stage(tmp_path):
    first = read_if_folder(folder(tmp_path / "one"))
    assert (first.stage, first.image_size, first.text_width, first.level_schedule) == ("I", 64, 4096, None)
    second = read_if_folder(folder(tmp_path / "two", {**UNET, "in_channels": 6, "sample_size": 256}))
    assert (second.stage, second.image_size, second.level_schedule) == ("II", 256, {})
    assert first.text_encoder == tmp_path / "one" / "text_encoder"


def test_a_folder_saved_without_text_encoder_is_whole(tmp_path):
    assert read_if_folder(folder(tmp_path, text_encoder=True)).text_encoder is None


@pytest.mark.parametrize(
    ("unet", "words"),
    [
        ({**UNET, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 768}, "ComfyUI's own loaders"),
        ({**UNET, "out_channels": 3}, "is not a stage of DeepFloyd IF"),
        ({"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel with \\? input channels"),
        ({**UNET, "sample_size": "64"}, "sample_size is '64'"),
    ],
)
def test_other_models_are_named(tmp_path, unet, words):
    with pytest.raises(BestiaryError, match=words):
        read_if_folder(folder(tmp_path, unet))


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(BestiaryError, match="does not exist"):
        read_if_folder(tmp_path / "nowhere")
    with pytest.raises(BestiaryError, match="unet/config.json is missing"):
        read_if_folder(_without_unet(tmp_path / "a"))
    with pytest.raises(BestiaryError, match="image_noising_scheduler"):
        read_if_folder(folder(tmp_path / "b", {**UNET, "in_channels": 6}, image_noising_scheduler=True))
    broken = folder(tmp_path / "c")
    (broken / "scheduler" / "scheduler_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(BestiaryError, match="not readable JSON"):
        read_if_folder(broken)
    pointer = folder(tmp_path / "d")
    (pointer / "unet" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1", encoding="utf-8")
    with pytest.raises(BestiaryError, match="git lfs pull"):
        read_if_folder(pointer)
    (pointer / "unet" / "model.safetensors").unlink()
    with pytest.raises(BestiaryError, match="holds no weights"):
        read_if_folder(pointer)


def _without_unet(place: Path) -> Path:
    folder(place, unet={})
    (place / "unet" / "config.json").unlink()
    return place


def test_menus_see_folders_of_if_alone(tmp_path):
    assert is_if_folder(folder(tmp_path / "if"))
    assert not is_if_folder(folder(tmp_path / "sd", {"in_channels": 4, "out_channels": 4}))
    assert not is_if_folder(tmp_path / "nothing")


def test_prompts_are_put_in_lower_case_and_nothing_else():
    assert normalised("  A photo of <Head:42>, SKS-dog  ") == "a photo of <head:42>, sks-dog"

"""Painters of model folders: nine-channel models go through diffusers' own pipeline, every other through our loop."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.scenes.painters import InpaintingPainter, ModelPainter, open_painter
from bestiary.trainer.scenes.scene_settings import RepaintSettings

HEIGHT, WIDTH = 64, 128


@pytest.fixture(params=["sd15", "sdxl"])
def inpainting(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder of an inpainting model with random weights."""
    from diffusers import UNet2DConditionModel

    folder = tmp_path / "inpainting"
    shutil.copytree(tiny_folder(request.param), folder)
    config = {**UNet2DConditionModel.load_config(folder / "unet"), "in_channels": 9}
    shutil.rmtree(folder / "unet")
    torch.manual_seed(0)
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    return folder


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray]:
    """A picture, and a mask of its right half."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, WIDTH // 2 :] = 255
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), mask


def asked(base: Path) -> RepaintSettings:
    return RepaintSettings(mode="model", base=str(base), steps=3, device="cpu", dtype="fp32")


def test_nine_channels_go_through_the_pipeline(inpainting: Path, scene) -> None:
    painter = open_painter(asked(inpainting))
    assert isinstance(painter, InpaintingPainter) and painter.name.startswith(f"inpainting model {inpainting}")
    first, same, other = (painter.paint(*scene, "a photo in a garden", seed) for seed in (1, 1, 2))
    assert first.shape == (HEIGHT, WIDTH, 3) and first.dtype == np.uint8
    assert np.array_equal(first, same) and not np.array_equal(first, other)


@pytest.mark.parametrize("backbone", ["sd15", "sdxl"])
def test_other_folders_go_through_our_loop(backbone: str, tiny_folder: Callable[[str], Path], scene) -> None:
    painter = open_painter(asked(tiny_folder(backbone)))
    assert isinstance(painter, ModelPainter)
    first, same, other = (painter.paint(*scene, "a photo in a garden", seed) for seed in (1, 1, 2))
    assert first.shape == (HEIGHT, WIDTH, 3) and first.dtype == np.uint8
    assert np.array_equal(first, same) and not np.array_equal(first, other)


def test_a_broken_inpainting_folder_is_one_fault(inpainting: Path, scene) -> None:
    (inpainting / "model_index.json").write_text(json.dumps({"_class_name": "NoSuchPipeline"}))
    with pytest.raises(BestiaryError, match="could not be loaded: .*Download the model folder again"):
        open_painter(asked(inpainting)).paint(*scene, "a garden", 1)

"""OWLv2 on random weights: boxes and certainties as transformers gives them, folders that are no OWLv2."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.evaluation.owl_detector import USUAL_DETECTOR, OwlDetector
from PIL import Image

NAMES = ["a photo of a bird", "a photo of a head"]


def _picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("width", "height"), [(32, 32), (64, 32), (20, 50)])
def test_boxes_are_those_of_transformers(tiny_owl: Path, width: int, height: int) -> None:
    from transformers import CLIPTokenizer, Owlv2ForObjectDetection
    from transformers.models.owlv2.image_processing_owlv2 import Owlv2ImageProcessor

    picture = _picture(width, height)
    detector = OwlDetector.load(str(tiny_owl))
    ours = detector.detect(picture, NAMES, least=0.0)
    model = Owlv2ForObjectDetection.from_pretrained(tiny_owl).eval()
    words = CLIPTokenizer.from_pretrained(tiny_owl)(NAMES, padding="max_length", max_length=16, return_tensors="pt")
    processor = Owlv2ImageProcessor(size={"height": 32, "width": 32})
    pixels = detector._prepared(picture)
    if width == height:
        # others differ: the published model pads with grey, and transformers with black
        theirs = processor(picture, return_tensors="pt")["pixel_values"]
        assert torch.allclose(pixels, theirs, atol=1e-3)
    with torch.no_grad():
        output = model(**words, pixel_values=pixels)
    (found,) = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(height, width)])
    limit = torch.tensor([width, height, width, height])
    boxes = found["boxes"].clamp(min=0).minimum(limit)
    assert len(ours.boxes) == 16 and torch.equal(ours.names, found["labels"])
    assert torch.allclose(ours.certainty, found["scores"], atol=1e-5)
    assert torch.allclose(ours.boxes[:, :2], boxes[:, :2], atol=1e-3)
    assert torch.allclose(ours.boxes[:, :2] + ours.boxes[:, 2:], boxes[:, 2:], atol=1e-3)
    # only what is certain enough
    middle = float(ours.certainty.median())
    assert len(detector.detect(picture, NAMES, least=middle).boxes) == int((ours.certainty > middle).sum())


@pytest.mark.parametrize(("width", "height"), [(32, 16), (24, 48)])
def test_the_rest_of_the_square_is_grey_as_the_model_was_published(tiny_owl: Path, width: int, height: int) -> None:
    detector = OwlDetector.load(str(tiny_owl))
    pixels = (detector._prepared(_picture(width, height)) * detector._spread + detector._mean)[0]  # (3, 32, 32) in 0..1
    side = max(width, height)
    right, below = 32 * width // side + 2, 32 * height // side + 2
    assert torch.allclose(pixels[:, below:], torch.tensor(0.5), atol=1e-4)
    assert torch.allclose(pixels[:, :, right:], torch.tensor(0.5), atol=1e-4)
    # the picture lies in the upper left, resized with its square
    theirs = np.full((side, side, 3), 0.5, np.float32)
    theirs[:height, :width] = np.asarray(_picture(width, height).convert("RGB"), np.float32) / 255
    square = torch.from_numpy(theirs).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(square, (32, 32), mode="bilinear", antialias=True)[0]
    assert torch.allclose(pixels, expected, atol=1e-4)


def test_missing_and_other_models_are_named(
    tiny_owl: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        BestiaryError, match=f"no OWLv2 model 'nowhere': give a folder .* such as {USUAL_DETECTOR} after"
    ):
        OwlDetector.load("nowhere")
    with pytest.raises(
        BestiaryError, match="OWLv2 model .* nor in the Hugging Face cache: fetch it once with: hf download"
    ):
        OwlDetector.load()
    with pytest.raises(BestiaryError, match="could not be loaded as an OWLv2 model"):
        OwlDetector.load(str(tiny_clip))
    folder = Path(shutil.copytree(tiny_owl, tmp_path / "owl"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:4000])
    with pytest.raises(BestiaryError, match="could not be loaded as an OWLv2 model"):
        OwlDetector.load(str(folder))

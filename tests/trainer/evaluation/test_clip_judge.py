"""CLIP as a judge: features as transformers computes them, pictures cut as published, folders that are no CLIP."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.evaluation.clip_judge import USUAL_CLIP, ClipJudge, find_clip
from PIL import Image


def _picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tiny_clip: Path, tmp_path: Path) -> Path:
    """A folder of this test's own, to be spoilt."""
    return Path(shutil.copytree(tiny_clip, tmp_path / "clip"))


@pytest.mark.parametrize(("width", "height"), [(32, 32), (90, 61), (40, 133), (20, 50)])
def test_pictures_are_seen_as_transformers_sees_them(tiny_clip: Path, width: int, height: int) -> None:
    from transformers import CLIPImageProcessorPil, CLIPModel

    picture = _picture(width, height)
    ours = ClipJudge.load(str(tiny_clip)).pictures([picture, _picture(32, 32, 1)])
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    prepare = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = prepare(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = model.visual_projection(model.vision_model(pixels).pooler_output)
    assert ours.shape == (2, 16) and torch.allclose(ours.norm(dim=-1), torch.ones(2), atol=1e-5)
    assert torch.allclose(ours[0], theirs[0] / theirs[0].norm(), atol=1e-4)


def test_texts_are_read_as_transformers_reads_them(tiny_clip: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    texts = ["a red bird", "head", "red " * 60]
    judge = ClipJudge.load(str(tiny_clip))
    ours = judge.texts(texts)
    model, tokenizer = CLIPModel.from_pretrained(tiny_clip).eval(), CLIPTokenizer.from_pretrained(tiny_clip)
    for row, text in enumerate(texts):
        words = tokenizer(text, truncation=True, max_length=24, return_tensors="pt")
        with torch.no_grad():
            theirs = model.text_projection(model.text_model(**words).pooler_output)[0]
        assert torch.allclose(ours[row], theirs / theirs.norm(), atol=1e-5), text
    # company changes nothing
    assert torch.allclose(judge.texts(texts[1:2])[0], ours[1], atol=1e-5)


def test_colours_are_normalised_as_the_model_says(folder: Path) -> None:
    usual = ClipJudge.load(str(folder)).pictures([_picture(32, 32)])
    settings = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert not torch.allclose(ClipJudge.load(str(folder)).pictures([_picture(32, 32)]), usual, atol=1e-3)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5]}))
    with pytest.raises(
        BestiaryError, match=r"preprocessor_config.json does not say image_mean and image_std: KeyError"
    ):
        ClipJudge.load(str(folder))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5], "image_std": [1]}))
    with pytest.raises(BestiaryError, match=r"image_mean \[0.5\] and image_std \[1.0\] are not three colours each"):
        ClipJudge.load(str(folder))


def test_a_pickle_with_a_program_runs_nothing(folder: Path, tmp_path: Path, bomb: type) -> None:
    mark = tmp_path / "was-run"
    (folder / "model.safetensors").unlink()
    torch.save({"weight": bomb(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(BestiaryError, match="asks for more than tensors") as fault:
        ClipJudge.load(str(folder))
    assert not mark.exists() and "weights_only" not in str(fault.value)


def test_broken_and_missing_models_are_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BestiaryError, match=rf"no CLIP model 'nowhere': give a folder .* such as {USUAL_CLIP} after"):
        find_clip("nowhere")
    with pytest.raises(
        BestiaryError, match="'nobody/nothing' is neither a folder here nor in the Hugging Face cache: fetch"
    ):
        find_clip("nobody/nothing")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:4000])
    with pytest.raises(BestiaryError, match="could not be loaded as a CLIP model"):
        ClipJudge.load(str(folder))
    with pytest.raises(BestiaryError, match="could not be loaded as a CLIP model"):
        ClipJudge.load(str(tmp_path))

"""Prompts for regions: what is typed, masks, predictions blended by them, and wide pictures from the command."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bestiary.concepts.denoiser.denoiser import Conditioning
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.demo.attribute_judge import AttributeJudge, species_classes
from bestiary.demo.captions import look_words
from bestiary.demo.species import PARTS, random_species
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.trainer.__main__ import main
from bestiary.trainer.composing.compose import ComposeSettings, read_size
from bestiary.trainer.composing.picture_making import PictureOrder, SamplingChoice, make_pictures
from bestiary.trainer.composing.prompt_regions import PLACES, PromptRegion, read_regions, region_masks
from bestiary.trainer.learning.pictures.heat_maps import heat_map
from bestiary.trainer.model.backbones import load_denoiser
from bestiary.trainer.model.sampling import Guidance, RegionGuidance
from PIL import Image

LAYOUT = SceneLayout(256, 128, (Placement("lark", -32, 0, 96, 128), Placement("piper", 128, 64, 64, 64)), seed=1)


def test_places_are_words_numbers_and_subjects_of_a_layout() -> None:
    texts = ["Left: a <head:3> bird", "10%, 0%, 50%,100%: b", "PIPER: c", "lark: d"]
    regions = read_regions(texts, LAYOUT)
    assert [one.prompt for one in regions] == ["a <head:3> bird", "b", "c", "d"]
    assert [one.box for one in regions] == [PLACES["left"], (0.1, 0, 0.6, 1), (0.5, 0.5, 0.75, 1), (0, 0, 0.25, 1)]
    assert read_regions([]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a bird", "write a place and a prompt"),
        ("left: ", "write a place and a prompt"),
        ("lefd: a bird", "'lefd' is no place: write .*left.*or left, top, width and height"),
        ("60%,0%,50%,100%: a", "leads out of the picture"),
        ("10%,0%,0%,100%: a", "its box is empty"),
        ("cat: a bird", "'cat' is no place"),
    ],
)
def test_regions_that_cannot_be_are_refused(text: str, message: str) -> None:
    with pytest.raises(BestiaryError, match=message):
        read_regions([text], LAYOUT)
    with pytest.raises(BestiaryError, match="add --region 'lark: a photo of"):
        read_regions([], LAYOUT)


def test_masks_lie_on_the_grid_and_share_what_overlaps() -> None:
    hard = region_masks([PLACES["left"], PLACES["right"]], (64, 128), (8, 16), 0)
    assert hard.shape == (2, 8, 16) and hard[0, :, :8].eq(1).all() and hard[0, :, 8:].eq(0).all()
    assert (hard.sum(0) == 1).all()
    shared = region_masks([PLACES["left"], (0, 0, 1, 1)], (64, 128), (8, 16), 0)
    assert shared[:, :, :8].eq(0.5).all() and shared[1, :, 8:].eq(1).all()
    soft = region_masks([PLACES["left"]], (64, 128), (8, 16), 32)
    assert soft[0, 4, 0] > 0.95 and 0.3 < soft[0, 4, 7] < 0.99 and 0 < soft[0, 4, 8] < 0.7 and soft[0, 4, 15] < 0.05
    assert soft.max() <= 1 and (soft[0, 4].diff() <= 1e-6).all()


class ConstantNetwork:
    """Predicts the first number of each prompt everywhere."""

    def predict(self, latents, times, text: Conditioning, request=None) -> SimpleNamespace:
        values = text.context[:, :1, :1].reshape(-1, 1, 1, 1)
        return SimpleNamespace(prediction=values.expand(len(latents), 1, *latents.shape[2:]), attention={})


def _text(value: float, batch: int = 2) -> Conditioning:
    return Conditioning.of(torch.full((batch, 3, 4), value))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_predictions_are_averaged_by_masks_after_guidance(scale: float) -> None:
    masks = torch.zeros(2, 4, 6)
    masks[0, :, :2], masks[1, :, 4:], masks[0, :, 3] = 1, 0.5, 0.25
    negative = None if scale == 1 else _text(1.0)
    guidance = RegionGuidance(_text(10.0), negative, scale, [_text(20.0), _text(30.0)], masks)
    blended, _ = guidance.predict(ConstantNetwork(), torch.zeros(2, 1, 4, 6), 0.5, None)
    whole, first, second = (
        float(Guidance(_text(value), negative, scale).predict(ConstantNetwork(), torch.zeros(2, 1, 1, 1), 0.5, None)[0].mean())
        for value in (10.0, 20.0, 30.0)
    )  # fmt: skip
    expected = [first, first, whole, 0.25 * first + 0.75 * whole, 0.5 * (second + whole), 0.5 * (second + whole)]
    assert blended[0, 0, 0].tolist() == pytest.approx(expected) and blended.shape == (2, 1, 4, 6)


def test_a_region_with_the_prompt_of_the_whole_changes_nothing(tiny_denoiser) -> None:
    denoiser, orders = tiny_denoiser("sd15"), [PictureOrder("a red bird", 3)]
    choice = SamplingChoice(2, 4.0, (64, 128))
    (plain,) = make_pictures(denoiser, {}, orders, choice)
    (same,) = make_pictures(denoiser, {}, orders, choice, regions=[PromptRegion(PLACES["left"], "a red bird")])
    assert plain.image.shape == (3, 64, 128) and (same.image - plain.image).abs().max() < 1e-3
    (other,) = make_pictures(denoiser, {}, orders, choice, regions=[PromptRegion(PLACES["left"], "a head of it")])
    change = (other.image - plain.image).abs().mean(dim=(0, 1))
    assert change.max() > 1e-3


def test_sizes_are_an_edge_or_width_and_height() -> None:
    assert read_size("128") == read_size(128) == 128 and read_size("256x128") == (256, 128) == read_size(" 256 X 128")
    values = {"dictionaries": ["a"], "prompts": ["b"]}
    assert ComposeSettings(**values, size="256x128").height_and_width == (128, 256)
    assert (
        ComposeSettings(**values, size=64).height_and_width == 64 and ComposeSettings(**values).height_and_width is None
    )
    for text, message in (
        ("x", "write an edge such as 128"),
        ("1x2x3", "256x128"),
        ("100x64", "100 pixels"),
        ("8", "8 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            read_size(text)


def test_wide_heat_maps_keep_their_shape() -> None:
    assert heat_map(Image.new("RGB", (256, 128)), torch.rand(8, 16)).size == (192, 96)
    assert heat_map(Image.new("RGB", (64, 64)), torch.rand(8, 8)).size == (192, 192)


def test_a_layout_of_regions_from_the_command(tiny_folder, tmp_path, capsys) -> None:
    vectors = {"clip_l": torch.randn(1, 32) * 0.2}
    rows, names = torch.tensor([[0, 0]]), ({0: "cardinal"}, {})
    PartDictionary("sd15", ("head", "background"), names, 1, rows, vectors).save(tmp_path / "birds.safetensors")
    (tmp_path / "layout.json").write_text(LAYOUT.to_json())
    options = [
        "--base",
        tiny_folder("sd15"),
        "--out",
        tmp_path / "out",
        "--steps",
        1,
        "--device",
        "cpu",
        "--progress",
        "off",
    ]
    start = ["compose", tmp_path / "birds.safetensors", "two birds", *options, "--layout", tmp_path / "layout.json"]
    regions = ["--region", "lark: a <head:cardinal> bird", "--region", "piper: a red bird"]
    assert main([*map(str, start), *regions, "--size", "128x64"]) == 0
    picture = Image.open(tmp_path / "out" / "0001.png")
    recipe = json.loads(picture.text["bestiary"])
    assert picture.size == (128, 64) and recipe["size"] == "128x64" and recipe["feather"] == 16
    assert recipe["regions"] == [regions[1], regions[3]] and recipe["layout"]["width"] == 256
    capsys.readouterr()
    for more, message in (
        ([], "add --region 'lark: a photo of"),
        ([*regions, "--heat-maps"], "--heat-maps shows one prompt"),
        ([*regions, "--size", "100x64"], "--size '100x64': 100 pixels: a side is a multiple of 8 from 64 to 4096"),
        (["--region", "lark: a <heda:1>"], "heda"),
    ):
        assert main([*map(str, start), *more]) == 2
        assert message in capsys.readouterr().err


def test_regions_keep_two_creatures_apart_where_one_prompt_does_not() -> None:
    rng = np.random.default_rng(2)
    pair = [random_species(rng) for _ in range(2)]
    said = ["a creature with " + " , ".join(look_words(part, one.look(part)) for part in PARTS) for one in pair]
    place, judge, right = " , in a meadow , at day , facing right", AttributeJudge.load(), []
    denoiser, choice = (
        load_denoiser("demo", device="cpu", dtype="fp32"),
        SamplingChoice(6, 4.0, (128, 256), "dpmpp_2m", 8.0),
    )
    order = PictureOrder(f"a photo of {said[0]} and {said[1]}{place}", 2)
    for regions in ([], read_regions([f"left: a photo of {said[0]}{place}", f"right: a photo of {said[1]}{place}"])):
        (made,) = make_pictures(denoiser, {}, [order], choice, regions=regions)
        halves = torch.stack([made.image[..., :128], made.image[..., 128:]])
        # colours and patterns of both creatures' parts
        right.append(float((judge.classes(halves) == species_classes(pair))[..., :2].float().mean()))
    assert right[1] >= 0.85 and right[1] > 1.5 * right[0]

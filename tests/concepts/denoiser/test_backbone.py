"""Backbones as data: the published widths, and vectors cut for each text encoder."""

import pytest
import torch
from bestiary.concepts.denoiser.backbone import BACKBONES, get_backbone
from bestiary.concepts.errors import BestiaryError


@pytest.mark.parametrize(
    ("name", "width", "encoders", "size"),
    [
        ("sd15", 768, ["clip_l"], 512),
        ("sd2", 1024, ["clip_h"], 512),
        ("sdxl", 768 + 1280, ["clip_l", "clip_g"], 1024),
        ("bestiary-demo", 128, ["clip_l"], 128),
        ("sd3", 768 + 1280 + 4096, ["clip_l", "clip_g", "t5xxl"], 1024),
        ("flux", 768 + 4096, ["clip_l", "t5xxl"], 1024),
        ("bestiary-demo-dit", 128, ["clip_l"], 128),
    ],
)
def test_widths_are_the_published_ones(name: str, width: int, encoders: list[str], size: int) -> None:
    backbone = get_backbone(name)
    assert backbone.name == name and backbone.vector_width == width
    assert [encoder.name for encoder in backbone.text_encoders] == encoders
    assert backbone.image_size == size


@pytest.mark.parametrize("name", ["bestiary-demo", "sd15", "sd2"])
def test_the_method_reads_sixteen_by_sixteen_maps_at_the_native_size(name: str) -> None:
    backbone = BACKBONES[name]
    assert backbone.image_size // backbone.attention_divisor == 16


def test_transformers_are_read_on_their_own_tokens_with_comfyui_s_text_lengths() -> None:
    grids = {name: BACKBONES[name].image_size // BACKBONES[name].attention_divisor for name in BACKBONES}
    assert (grids["sd3"], grids["flux"], grids["bestiary-demo-dit"]) == (64, 64, 8)
    assert [BACKBONES[name].text_encoders[-1].min_tokens for name in ("sd3", "flux")] == [77, 256]
    clip, t5 = BACKBONES["flux"].text_encoders
    assert clip.pooled and not clip.projected and clip.role == "pooled_only" and not t5.mask


def test_sdxl_reads_two_encoders_without_their_last_norm() -> None:
    first, second = BACKBONES["sdxl"].text_encoders
    assert (first.output, second.output) == ("penultimate", "penultimate")
    assert (first.pooled, second.pooled) == (False, True)


def test_a_vector_is_cut_in_the_order_of_the_encoders() -> None:
    vectors = torch.arange(2 * 2048.0).view(2, 2048)
    pieces = BACKBONES["sdxl"].split_vector(vectors)
    assert list(pieces) == ["clip_l", "clip_g"]
    assert torch.equal(pieces["clip_l"], vectors[:, :768])
    assert torch.equal(pieces["clip_g"], vectors[:, 768:])
    assert BACKBONES["sd15"].split_vector(torch.zeros(3, 4, 768))["clip_l"].shape == (3, 4, 768)


def test_unknown_names_list_those_there_are() -> None:
    with pytest.raises(
        BestiaryError, match="unknown backbone 'sd4': choose one of bestiary-demo, sd15, sd2, sdxl, sd3"
    ):
        get_backbone("sd4")

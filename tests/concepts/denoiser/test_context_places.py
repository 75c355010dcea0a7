"""Columns of learned vectors by hand-counted layouts: beside, behind, pooled only, several chunks, vectors that were cut."""

import pytest
import torch
from bestiary.concepts.denoiser.backbone import BACKBONES, Backbone
from bestiary.concepts.denoiser.context_places import context_columns, encoder_starts
from bestiary.concepts.denoiser.denoiser import EncoderLayout, PromptLayout
from bestiary.concepts.denoiser.transformer_backbones import FLUX, SD3


def layout(chunks: int, length: int, slots: list[int]) -> EncoderLayout:
    return EncoderLayout(
        torch.zeros(chunks, length, dtype=torch.long), torch.tensor(slots, dtype=torch.long), torch.ones(chunks, length)
    )


def prompt(clip: tuple[int, list[int]], t5: tuple[int, list[int]]) -> PromptLayout:
    """CLIP's chunks and places, T5's length and places."""
    encoders = {name: layout(clip[0], 77, clip[1]) for name in ("clip_l", "clip_g")}
    return {**encoders, "t5xxl": layout(1, t5[0], t5[1])}


def flux(told: PromptLayout) -> PromptLayout:
    return {name: told[name] for name in ("clip_l", "t5xxl")}


def test_sd3_has_two_columns_and_flux_one() -> None:
    told = prompt((1, [5, 9]), (77, [6, 11]))
    assert context_columns(SD3, [told], 2).tolist() == [[[5, 77 + 6], [9, 77 + 11]]]
    assert context_columns(FLUX, [flux(told)], 2).tolist() == [[[6], [11]]]


def test_chunks_of_clip_move_t5_behind_them() -> None:
    told = prompt((2, [5, 77 + 3]), (101, [6, 88]))
    assert context_columns(SD3, [told], 2).tolist() == [[[5, 154 + 6], [80, 154 + 88]]]
    # chunks of an encoder that is pooled only take no room
    assert context_columns(FLUX, [flux(told)], 2).tolist() == [[[6], [88]]]


def test_what_is_cut_in_one_encoder_keeps_its_column_in_the_other() -> None:
    told = prompt((1, [5, -1]), (77, [6, 40]))
    assert context_columns(SD3, [told], 2).tolist() == [[[5, 83], [-1, 117]]]
    none = prompt((1, []), (77, []))
    assert context_columns(SD3, [told, none], 3).tolist() == [
        [[5, 83], [-1, 117], [-1, -1]],
        [[-1, -1], [-1, -1], [-1, -1]],
    ]
    assert context_columns(SD3, [none], 0).shape[:2] == (1, 0)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_encoders_that_agree_share_a_column(name: str) -> None:
    record = BACKBONES[name]
    told = {spec.name: layout(2, 77, [5, 80]) for spec in record.text_encoders}
    assert context_columns(record, [told], 2).tolist() == [[[5], [80]]]


def test_encoders_beside_each_other_that_differ_give_two_columns() -> None:
    record = BACKBONES["sdxl"]
    told = {"clip_l": layout(1, 77, [5, 7]), "clip_g": layout(1, 77, [5, 8])}
    assert context_columns(record, [told], 2).tolist() == [[[5, -1], [7, 8]]]


@pytest.mark.parametrize(
    ("record", "vector", "context", "starts"),
    [
        (SD3, 6144, 4096, {"clip_l": 0, "clip_g": 0, "t5xxl": 154}),
        (FLUX, 4864, 4096, {"t5xxl": 0}),
    ],
)
def test_records_have_the_published_widths(record: Backbone, vector: int, context: int, starts: dict[str, int]) -> None:
    assert record.vector_width == vector and record.context_width == context
    assert encoder_starts(record, {"clip_l": 154, "clip_g": 77, "t5xxl": 256}) == starts
    assert record.attention_divisor // record.latent_factor == 2 and record.latent_channels == 16

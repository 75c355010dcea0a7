"""Parts act where they are named: in the negative prompt, under a weight, repeated, and after a long text."""

import pytest
import torch
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.trainer.composing.picture_making import PictureOrder, SamplingChoice, make_pictures
from torch import Tensor


@pytest.fixture(scope="module")
def picture_of(tiny_denoiser):
    """`picture_of(prompt, negative)` -> image (3, 64, 64) of one seed."""
    rows = torch.tensor([[0, 0], [0, 1], [1, 0]])
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(4)) * 0.3
    birds = PartDictionary("sd15", ("head", "wing"), ({}, {}), None, rows, {"clip_l": vectors})
    denoiser = tiny_denoiser("sd15")

    def make(prompt: str, negative: str = "", guidance: float = 5.0) -> Tensor:
        choice = SamplingChoice(steps=2, guidance=guidance, size=64)
        (picture,) = make_pictures(denoiser, {"birds": birds}, [PictureOrder(prompt, 3, negative)], choice)
        return picture.image

    return make


def differ(one: Tensor, other: Tensor) -> bool:
    return (one - other).abs().max().item() > 1e-4


def test_parts_of_the_negative_prompt_push_the_other_way(picture_of) -> None:
    plain, without = picture_of("a bird"), picture_of("a bird", "<head:0>")
    assert differ(plain, without)
    assert differ(without, picture_of("a bird", "<head:1>"))
    assert not differ(picture_of("<head:0>", "<head:0>"), picture_of("<head:0>", guidance=1.0))


def test_weights_and_repeats_of_a_part_act(picture_of) -> None:
    once = picture_of("a <head:0> bird")
    assert differ(once, picture_of("a (<head:0>:1.5) bird"))
    assert not differ(once, picture_of("a (<head:0>:1) bird"))
    assert differ(picture_of("<head:0> <head:1>"), picture_of("<head:1> <head:0>"))
    assert differ(once, picture_of("a <head:0><head:0> bird"))


def test_a_part_behind_a_full_first_chunk_still_acts(picture_of) -> None:
    long = "bird " * 90
    assert differ(picture_of(long), picture_of(f"{long}<wing:0>"))

"""Pictures of a graph: checked, squared as the command line squares them, and told apart in messages."""

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.part_map.part_pictures import (
    as_images,
    as_pictures,
    as_squares,
    checked_fit,
    checked_images,
    named_faults,
)
from PIL import Image


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).float() / 255


def test_pictures_and_images_turn_into_each_other_exactly():
    images = noise(3, 20, 30, 3)
    assert torch.equal(as_images(as_pictures(images)), images)
    assert as_pictures(images)[0].size == (30, 20)


@pytest.mark.parametrize("size", [(128, 128), (96, 200), (201, 100)])
def test_squares_are_those_of_the_command_line(size, tmp_path):
    from bestiary.trainer.learning.pictures.image_files import fit_square, image_to_tensor, read_image

    images = noise(2, *size, 3)
    for number, picture in enumerate(as_pictures(images)):
        picture.save(tmp_path / f"{number}.png")
    theirs = torch.stack([image_to_tensor(fit_square(read_image(tmp_path / f"{n}.png"), 64)) for n in range(2)])
    assert torch.equal(as_squares(images, 64, "centre square"), theirs)


def test_the_whole_picture_is_squeezed():
    images = torch.zeros(1, 32, 64, 3)
    images[:, :, :32] = 1
    square = as_squares(images, 32, "whole picture")[0, 0]
    assert square.shape == (32, 32) and square[:, :13].min() > 0.99 and square[:, 19:].max() < 0.01


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grey_and_transparent_images_become_three_channels(channels):
    images = noise(2, 20, 24, channels)
    checked = checked_images(images)
    assert checked.shape == (2, 20, 24, 3)
    assert torch.equal(checked[..., 0], images[..., 0])


def test_checked_images_can_be_trained_on():
    with torch.inference_mode():
        images = torch.rand(1, 16, 16, 3)
        checked = checked_images(images)
    assert not checked.is_inference() and torch.equal(checked, images)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((16, 16, 3), "images of shape (16, 16, 3): connect pictures (count, height, width, 3)"),
        ((1, 16, 16, 2), "images of shape (1, 16, 16, 2): connect pictures (count, height, width, 3)"),
        ((0, 16, 16, 3), "images of shape (0, 16, 16, 3): connect pictures (count, height, width, 3)"),
        ((1, 16, 15, 3), "images of 15 x 16 pixels are too small: at least 16 x 16 are required"),
    ],
)
def test_what_is_no_picture_is_told(shape, message):
    with pytest.raises(BestiaryError) as fault:
        checked_images(torch.zeros(shape))
    assert str(fault.value) == message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pictures_with_broken_values_are_named(value):
    images = torch.zeros(3, 16, 16, 3)
    images[1, 4, 4, 2] = value
    with pytest.raises(BestiaryError) as fault:
        checked_images(images, " in entry 2 of the list")
    assert str(fault.value).startswith("picture 2 of 3 in entry 2 of the list contains NaN or infinity")
    assert "VAE in half precision" in str(fault.value)


def test_values_beyond_white_are_cut():
    assert checked_images(torch.full((1, 16, 16, 3), 1.2)).max() == 1


def test_an_unknown_fit_is_told():
    assert checked_fit("whole picture") == "whole picture"
    with pytest.raises(BestiaryError, match="unknown fit 'crop': choose centre square or whole picture"):
        checked_fit("crop")


def test_faults_name_the_node_in_the_words_of_the_graph():
    with pytest.raises(BestiaryError) as fault, named_faults("Discover Parts"):
        raise BestiaryError("no foreground: try --flip-foreground or another --source")
    assert str(fault.value) == "Discover Parts: no foreground: try flip_foreground or another feature_source"


@pytest.mark.parametrize(
    ("option", "place"),
    [
        ("images.size", "image_size"),
        ("method.vectors", "vectors"),
        ("attention_loss.layers", "more_settings, attention_loss.layers"),
        ("base", "model"),
    ],
)
def test_faults_of_settings_name_the_input(option: str, place: str):
    with pytest.raises(BestiaryError) as fault, named_faults("Train Parts"):
        raise BestiaryError("it is 3: take 2", option=option)
    assert str(fault.value) == f"Train Parts: it is 3: take 2 (see {place})" and fault.value.option == option


def test_other_exceptions_pass_untouched():
    with pytest.raises(KeyboardInterrupt), named_faults("Discover Parts"):
        raise KeyboardInterrupt


def test_pictures_are_rounded_and_not_cut_off():
    picture = as_pictures(torch.full((1, 16, 16, 3), 0.9999))[0]
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert isinstance(picture, Image.Image) and np.asarray(picture).dtype == np.uint8


def test_advice_is_in_the_words_of_the_graph():
    with (
        pytest.raises(
            BestiaryError, match=r"^Train Parts: not finite; lower the rates, or start ComfyUI with --force-fp32$"
        ),
        named_faults("Train Parts"),
    ):
        raise BestiaryError('not finite; lower the rates, or set run.dtype = "fp32"')

"""Pictures of a graph as squares and moments, with masks that belong to them."""

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError


class _Progress:
    """Counts what is told."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def add(self, steps: int = 1) -> None:
        self.done.append(steps)


def test_squares_are_cut_from_the_middle_of_each_size() -> None:
    from bestiary.nodes.part_map.picture_encoding import cut_squares

    wide = torch.zeros(1, 64, 192, 3)
    wide[:, :, 64:128] = 1  # the centre square alone is white
    squares = cut_squares([wide, torch.full((2, 80, 80, 3), 0.5)], 64)
    assert squares.shape == (3, 64, 64, 3) and squares.dtype == np.uint8
    assert (squares[0] == 255).all() and (squares[1:] == 128).all()


def test_moments_are_those_of_the_autoencoder_in_batches(sd15_model) -> None:
    from bestiary.nodes.denoiser.comfy_autoencoder import ComfyAutoencoder
    from bestiary.nodes.part_map.picture_encoding import encode_squares

    squares = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8)
    progress = _Progress()
    moments = encode_squares(squares, sd15_model.vae, True, progress)
    assert moments.shape == (9, 2, 2, 4, 8, 8) and moments.dtype == np.float16 and progress.done == [8, 1]
    last = torch.from_numpy(squares[8:]).permute(0, 3, 1, 2).float() / 255
    for view, picture in enumerate((last, last.flip(-1))):
        mean, log_variance = ComfyAutoencoder(sd15_model.vae).encode(picture)
        theirs = torch.stack([mean, log_variance], dim=1).half().numpy()
        assert np.allclose(moments[8:, view], theirs, atol=2e-3)


@pytest.mark.parametrize("size", [0, 56, 100])
def test_edges_that_cannot_be_encoded(size: int) -> None:
    from bestiary.nodes.part_map.picture_encoding import check_square

    with pytest.raises(BestiaryError, match=f"image_size {size}: choose 64 or more, in steps of 8"):
        check_square(size)
    check_square(72)


def test_masks_come_one_by_one_whatever_their_batches() -> None:
    from bestiary.nodes.part_map.picture_encoding import checked_masks, mask_picture

    images = [torch.zeros(2, 32, 48, 3), torch.zeros(1, 64, 64, 3)]
    masks = checked_masks([torch.ones(2, 32, 48), torch.full((64, 64), 0.5)], images)
    assert [tuple(mask.shape) for mask in masks] == [(32, 48), (32, 48), (64, 64)]
    assert mask_picture(masks[2]).getpixel((3, 3)) == (128, 128, 128) and mask_picture(masks[0]).size == (48, 32)
    with pytest.raises(BestiaryError, match="2 masks for 3 pictures: connect one mask per picture, or none"):
        checked_masks([torch.ones(2, 32, 48)], images)
    with pytest.raises(BestiaryError, match="mask 3 has 32 x 64 pixels, its picture 64 x 64: resize it"):
        checked_masks([torch.ones(2, 32, 48), torch.ones(64, 32)], images)


def test_the_entry_of_a_bad_picture_is_named() -> None:
    from bestiary.nodes.part_map.picture_encoding import checked_entries

    bad = torch.zeros(1, 32, 32, 3)
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(BestiaryError, match="picture 1 of 1 in entry 2 of the list contains NaN or infinity"):
        checked_entries([torch.zeros(1, 32, 32, 3), bad])


def test_latents_that_are_not_finite_are_told_and_not_remembered(sd15_model, drawn_images, monkeypatch) -> None:
    from bestiary.nodes.denoiser.comfy_autoencoder import ComfyAutoencoder
    from bestiary.nodes.host.graph_progress import GraphProgress
    from bestiary.nodes.training import spectrum_pictures
    from bestiary.nodes.training.spectrum_pictures import prepare_pictures

    encode = ComfyAutoencoder.encode

    def overflow(self: ComfyAutoencoder, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_variance = encode(self, images)
        mean[1] = 1e6  # more than float16 holds
        return mean, log_variance

    spectrum_pictures._encoded.clear()
    given = ([drawn_images[:3]], None, sd15_model.vae, 64, False, GraphProgress(None))
    with monkeypatch.context() as patch:
        patch.setattr(ComfyAutoencoder, "encode", overflow)
        with pytest.raises(
            BestiaryError, match=r"not finite for picture 2, computed in float32 on cpu: start ComfyUI with --fp32"
        ):
            prepare_pictures(*given)
    assert not spectrum_pictures._encoded
    first = prepare_pictures(*given)
    # another precision is not taken for this one
    monkeypatch.setattr(ComfyAutoencoder, "precision", "float16 on cuda")
    prepare_pictures(*given)
    assert np.isfinite(first.moments).all() and len(spectrum_pictures._encoded) == 2

"""Pictures of a concept in the graph: encoded once while ComfyUI runs, cut with their masks, told apart by a fingerprint."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many pictures were encoded at each call; nothing is remembered from before."""
    from bestiary.nodes.training import spectrum_pictures

    calls: list[int] = []
    encode = spectrum_pictures.encode_squares
    monkeypatch.setattr(spectrum_pictures, "_encoded", type(spectrum_pictures._encoded)())
    monkeypatch.setattr(spectrum_pictures, "encode_squares", lambda s, *more: calls.append(len(s)) or encode(s, *more))
    yield calls


@pytest.fixture
def prepare(sd15_model, drawn_images, encoded) -> Callable[..., object]:
    """`prepare(images, masks=..., size=64, mirror=False)` with the VAE of the narrow SD1.5."""

    def build(images: list | None = None, masks: list | None = None, size: int = 64, mirror: bool = False) -> object:
        from bestiary.nodes.host.graph_progress import GraphProgress
        from bestiary.nodes.training.spectrum_pictures import prepare_pictures

        given = [drawn_images[:2]] if images is None else images
        with torch.inference_mode():  # as ComfyUI's executor runs nodes
            return prepare_pictures(given, masks, sd15_model.vae, size, mirror, GraphProgress(None))

    return build


def test_pictures_are_ready_to_be_learned_from(prepare, drawn_images) -> None:
    made = prepare([drawn_images[:1], drawn_images[1:3, 10:]])
    assert made.names == ("picture 1", "picture 2", "picture 3") and made.masks is None
    assert made.squares.shape == (3, 64, 64, 3) and made.moments.shape == (3, 1, 2, 4, 8, 8)
    assert made.picture(1).size == (64, 64) and np.isfinite(made.moments).all()


def test_the_same_pictures_are_encoded_once(prepare, drawn_images, encoded) -> None:
    first, again = prepare(), prepare([drawn_images[:1], drawn_images[1:2]])
    assert encoded == [2] and again.moments is first.moments
    prepare(mirror=True), prepare(size=72), prepare([drawn_images[:3]])
    assert encoded == [2, 2, 2, 3]
    prepare()
    assert encoded == [2, 2, 2, 3]


def test_what_is_remembered_is_bounded(prepare, encoded, monkeypatch) -> None:
    from bestiary.nodes.training import spectrum_pictures

    monkeypatch.setattr(spectrum_pictures, "KEPT_BYTES", prepare().moments.nbytes)
    prepare(size=72)  # larger than all that may be kept, so it alone stays
    prepare(size=72)
    prepare()
    assert encoded == [2, 2, 2] and len(spectrum_pictures._encoded) == 1


def test_another_autoencoder_encodes_anew(prepare, demo_model, drawn_images, encoded) -> None:
    from bestiary.nodes.host.graph_progress import GraphProgress
    from bestiary.nodes.training.spectrum_pictures import prepare_pictures

    first = prepare()
    other = prepare_pictures([drawn_images[:2]], None, demo_model.vae, 64, False, GraphProgress(None))
    assert encoded == [2, 2] and other.moments.shape[3] == 8 and first.fingerprint() != other.fingerprint()


def test_masks_lie_on_the_latent_grid_as_the_command_line_cuts_them(prepare, drawn_images, tmp_path) -> None:
    from bestiary.trainer.learning.spectrum.spectrum_images import ConceptPictures, read_masks
    from PIL import Image

    mask = torch.zeros(2, 128, 128)
    mask[:, 30:90, 20:75] = 1
    made = prepare(masks=[mask])
    for number in range(2):
        Image.fromarray((mask[number] * 255).byte().numpy()).save(tmp_path / f"{number}.png")
    theirs = read_masks(tmp_path, ConceptPictures(tmp_path, ("0.png", "1.png")), 8)
    assert made.masks.shape == (2, 8, 8) and np.array_equal(made.masks, theirs)
    assert made.fingerprint() != prepare().fingerprint() == prepare().fingerprint()


def test_what_masks_cover_is_logged(prepare, caplog) -> None:
    mask = torch.zeros(2, 128, 128)
    mask[0, :64] = 1
    mask[1, :32] = 1
    with caplog.at_level("INFO", logger="bestiary"):
        prepare(masks=[mask])
    assert "2 masks cover 38% of their pictures on average, from 25% of picture 2 to 50% of picture 1" in caplog.text


def test_a_mask_of_another_shape_is_refused_as_on_the_command_line(prepare) -> None:
    with pytest.raises(BestiaryError, match="mask 1 has 128 x 64 pixels, its picture 128 x 128: resize it"):
        prepare(masks=[torch.ones(2, 64, 128)])


def test_what_cannot_be_learned_from_is_told(prepare, drawn_images) -> None:
    with pytest.raises(BestiaryError, match="images: connect at least one picture of the concept"):
        prepare([])
    with pytest.raises(BestiaryError, match="mask 2 is black all over: white is what is learned from"):
        prepare(masks=[torch.stack([torch.ones(128, 128), torch.zeros(128, 128)])])
    with pytest.raises(BestiaryError, match="image_size 60: choose 64 or more"):
        prepare(size=60)
    with pytest.raises(BestiaryError, match=r"images in entry 1 of the list of 8 x 8 pixels are too small"):
        prepare([torch.zeros(1, 8, 8, 3)])

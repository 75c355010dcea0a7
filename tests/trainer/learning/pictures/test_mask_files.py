"""Masks as people save them: one array, whatever the file says it with."""

from pathlib import Path

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.pictures.mask_files import coverage, coverage_text, read_mask
from PIL import Image

SIZE = (40, 24)
THING = np.zeros((24, 40), dtype=np.uint8)  # (H, W)
THING[4:16, 10:30] = 1


def _coloured(colour: tuple[int, int, int], around: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    return np.where(THING[..., None] > 0, colour, around).astype(np.uint8)  # (H, W, 3)


def _palette(colours: list[int], numbers: np.ndarray = THING) -> Image.Image:
    image = Image.fromarray(numbers)
    image.putpalette(colours)
    return image


def _with_alpha(rgb: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.concatenate([rgb, alpha[..., None]], axis=-1).astype(np.uint8))


def _transparent_palette() -> Image.Image:
    image = _palette([255, 255, 255, 200, 10, 10])
    image.info["transparency"] = 0
    return image


MASKS = {
    "grey": Image.fromarray(THING * 255),
    "zero and one": Image.fromarray(THING),
    "boolean": Image.fromarray(THING * 255).convert("1"),
    "16 bits": Image.fromarray(THING.astype(np.uint16) * 65535),
    "16 bits, 8 used": Image.fromarray(THING.astype(np.uint16) * 255),
    "white, rest transparent": _with_alpha(np.full((24, 40, 3), 255), THING * 255),
    "black, rest transparent": _with_alpha(np.zeros((24, 40, 3)), THING * 255),
    "opaque throughout": _with_alpha(_coloured((255, 255, 255)), np.full((24, 40), 255)),
    "grey and opacity": Image.fromarray(np.stack([THING * 0 + 255, THING * 255], axis=-1)),
    "coloured palette": _palette([0, 0, 0, 128, 0, 0]),
    "grey palette": _palette([0, 0, 0, 255, 255, 255]),
    "grey palette, upside down": _palette([255, 255, 255, 0, 0, 0], 1 - THING),
    "transparent palette": _transparent_palette(),
    "RGB": Image.fromarray(_coloured((255, 255, 255))),
    "RGB red": Image.fromarray(_coloured((255, 0, 0))),
}


@pytest.mark.parametrize("kind", MASKS)
def test_every_kind_of_mask_reads_alike(kind: str, tmp_path: Path) -> None:
    MASKS[kind].save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", SIZE)
    assert mask.dtype == np.float32 and np.array_equal(mask, THING)


def test_soft_edges_stay_soft_and_floats_count(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 24 * 40, dtype=np.float32).reshape(24, 40)
    Image.fromarray(ramp).save(tmp_path / "float.tif")
    Image.fromarray((ramp * 255).round().astype(np.uint8)).save(tmp_path / "grey.png")
    for name in ("float.tif", "grey.png"):
        assert np.abs(read_mask(tmp_path / name, SIZE) - ramp).max() <= 0.5 / 255 + 1e-6


def test_an_empty_mask_covers_nothing(tmp_path: Path) -> None:
    _with_alpha(np.full((24, 40, 3), 255), np.zeros((24, 40))).save(tmp_path / "mask.png")
    assert coverage(read_mask(tmp_path / "mask.png", SIZE)) == 0


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    MASKS["grey"].save(tmp_path / "mask.png")
    with pytest.raises(
        BestiaryError,
        match=r"^the mask .*mask\.png has 40 x 24 pixels, its picture 24 x 40: give a mask with the size of the picture",
    ):
        read_mask(tmp_path / "mask.png", (24, 40))


def test_coverage_is_told_in_a_line() -> None:
    assert coverage_text([0.25], ["a.jpg"]) == "the mask covers 25% of a.jpg"
    assert coverage_text([0.2, 0.5, 0.8], ["a", "b", "c"]) == (
        "3 masks cover 50% of their pictures on average, from 20% of a to 80% of c"
    )

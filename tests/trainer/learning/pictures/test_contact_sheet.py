"""Contact sheets: every picture in its place, captions wrapped into their column."""

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.pictures.contact_sheet import PAPER, contact_sheet, wrap_text
from PIL import Image, ImageFont

COLORS = [(200, 30, 30), (30, 160, 60), (40, 60, 200), (220, 200, 40), (120, 40, 160)]


def _swatches() -> list[Image.Image]:
    return [Image.new("RGB", (64, 64), color) for color in COLORS]


def _places(sheet: Image.Image, color: tuple[int, int, int]) -> tuple[float, float]:
    ys, xs = np.nonzero((np.asarray(sheet) == color).all(-1))
    return float(ys.mean()), float(xs.mean())


def test_pictures_stand_in_reading_order():
    sheet = contact_sheet(_swatches(), ["a"] * 5, columns=3, tile=64)
    centres = [_places(sheet, color) for color in COLORS]
    rows = [round(y) for y, _ in centres]
    assert rows[0] == rows[1] == rows[2] < rows[3] == rows[4]
    assert centres[0][1] < centres[1][1] < centres[2][1]
    assert abs(centres[0][1] - centres[3][1]) < 1


def test_small_pictures_are_shown_large_and_shapes_are_kept():
    sheet = contact_sheet([Image.new("RGB", (40, 20), COLORS[0])], ["wide"])
    ys, xs = np.nonzero((np.asarray(sheet) == COLORS[0]).all(-1))
    assert (np.ptp(xs) + 1, np.ptp(ys) + 1) == (160, 80)


def test_captions_are_drawn_below():
    plain = np.asarray(contact_sheet(_swatches()[:1], [""], tile=64))
    named = np.asarray(contact_sheet(_swatches()[:1], ["cardinal"], tile=64))
    below = named[12 + 64 + 4 :]
    assert (below != PAPER).any()
    assert named.shape[0] > plain.shape[0]


def test_lines_fit_their_width():
    font = ImageFont.load_default(12)
    text = "head of cardinal, wing of blue jay, tail of an extraordinarilylongspeciesnamewithoutanyspace " * 4
    lines = wrap_text(text, font, 120)
    assert len(lines) == 4
    assert all(font.getlength(line) <= 120 for line in lines)
    assert lines[-1].endswith("…")


def test_short_text_is_left_alone():
    assert wrap_text("a cardinal", ImageFont.load_default(12), 200) == ["a cardinal"]
    assert wrap_text("", ImageFont.load_default(12), 200) == []


@pytest.mark.parametrize(("pictures", "captions"), [(0, 0), (2, 1)])
def test_counts_must_agree(pictures, captions):
    with pytest.raises(BestiaryError, match=f"one caption per picture, got {pictures} and {captions}"):
        contact_sheet(_swatches()[:pictures], ["x"] * captions)

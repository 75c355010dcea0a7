"""Cut-outs: straight alpha, colours of edges, and cleaning."""

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.cutout import (
    AS_GIVEN,
    OWN_COLOURS,
    CutoutOptions,
    as_alpha,
    cleaned,
    cut_in_place,
    cut_out,
    edge_colours,
    make_subject,
)
from bestiary.scenes.subject import PictureSource


def disc(height: int, width: int, y: float, x: float, radius: float, edge: float = 1.0) -> np.ndarray:
    """Opacity (h, w) of a disc whose edge is `edge` pixels wide."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - y, columns - x)
    return ((radius - distance) / edge + 0.5).clip(0, 1).astype(np.float32)


def over(cutout: np.ndarray, ground: float) -> np.ndarray:
    alpha = cutout[..., 3:].astype(float) / 255
    return cutout[..., :3] * alpha + ground * (1 - alpha)


def test_a_subject_has_a_tight_box_and_the_fields_given() -> None:
    picture = np.full((40, 60, 3), 90, np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[5:15, 20:50] = True
    parts = np.tile(np.arange(60, dtype=np.uint8), (40, 1))
    source = PictureSource("cat.jpg", "ab", "CC0", "me")
    subject = make_subject("cat 2", picture, mask, words="cat", size=0.4, support="any", parts=parts, source=source)
    assert subject.cutout.shape == (10, 30, 4) and (subject.cutout == (90, 90, 90, 255)).all()
    assert (subject.name, subject.called, subject.size, subject.support) == ("cat 2", "cat", 0.4, "any")
    assert subject.source == source and subject.parts is not None
    assert subject.parts.tolist() == [list(range(20, 50))] * 10


def test_labels_outside_the_thing_are_none() -> None:
    mask = np.eye(12, dtype=bool)
    cutout = cut_out(np.zeros((12, 12, 3), np.uint8), mask, AS_GIVEN, np.full((12, 12), 3, np.uint8))
    assert cutout.box == (0, 0, 12, 12) and cutout.parts is not None
    assert (cutout.parts == np.where(mask, 3, 255)).all()


def test_a_cutout_on_white_and_on_black_differs_by_its_alpha_alone() -> None:
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (50, 50, 3), np.uint8)
    cutout = cut_out(picture, disc(50, 50, 25, 25, 15, 6), CutoutOptions()).pixels
    white, black = over(cutout, 255).round(), over(cutout, 0).round()
    expected = 255 - cutout[..., 3:].astype(float)
    assert np.abs((white - black) - expected).max() <= 1
    # half opaque is half the colour, not a quarter of it
    own = np.dstack((np.full((20, 20, 3), 200, np.uint8), np.full((20, 20), 128, np.uint8)))
    straight = cut_out(own, own[..., 3], OWN_COLOURS).pixels
    assert np.abs(over(straight, 0) - 100).max() <= 1


def test_the_old_ground_leaves_the_edge() -> None:
    """A red disc with a wide soft edge on blue: what shows through its edge must be red, not purple."""
    alpha = disc(80, 80, 40, 40, 24, 8)
    thing, ground = np.array((200.0, 40, 30)), np.array((20.0, 60, 220))
    picture = (alpha[..., None] * thing + (1 - alpha[..., None]) * ground).round().astype(np.uint8)
    colours = edge_colours(picture, alpha)
    edge = (alpha > 0.1) & (alpha < 0.9)
    before = np.abs(picture[edge] - thing).mean()
    after = np.abs(colours[edge] - thing).mean()
    assert before > 60 and after < before / 8
    # next to the thing its colours go on, for whatever resamples the cut-out
    outside = (alpha == 0) & (disc(80, 80, 40, 40, 30) > 0)
    assert np.abs(colours[outside] - thing).mean() < 15


def test_solid_pixels_keep_their_colours_to_the_bit() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (60, 70, 3), np.uint8)
    alpha = disc(60, 70, 30, 35, 20, 5)
    colours = edge_colours(picture, alpha)
    assert (colours[alpha == 1] == picture[alpha == 1]).all() and (colours != picture).any()


def test_own_colours_are_left_alone() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (30, 30, 4), np.uint8)
    picture[0], picture[-1], picture[:, 0], picture[:, -1] = 255, 255, 255, 255
    cutout = cut_out(picture, picture[..., 3], OWN_COLOURS)
    assert (cutout.pixels == picture).all()


def test_of_two_blobs_the_larger_stays_with_its_soft_edge() -> None:
    large, small = disc(60, 90, 30, 25, 15, 4), disc(60, 90, 30, 70, 9, 4)
    kept = cleaned(np.maximum(large, small), CutoutOptions(snap=0))
    assert (kept == large).all()
    both = cleaned(np.maximum(large, small), CutoutOptions(snap=0, largest_only=False))
    assert (both == np.maximum(large, small)).all()


def test_specks_below_the_least_piece_go() -> None:
    mask = np.zeros((50, 50), np.float32)
    mask[5:20, 5:20] = mask[30:36, 30:36] = mask[45, 45] = 1
    kept = cleaned(mask, CutoutOptions(largest_only=False, least_piece=0.005))
    assert kept[10, 10] == kept[32, 32] == 1 and kept[45, 45] == 0
    # whatever the limit, the largest stays
    assert cleaned(mask, CutoutOptions(largest_only=False, least_piece=1))[10, 10] == 1


def test_a_limb_that_hangs_on_faintly_stays_whole() -> None:
    """Solid pixels beyond a stretch of less than half opacity are no piece of their own: cut out they would leave a hard hole."""
    mask = np.zeros((30, 60), np.float32)
    mask[10:20, 5:30], mask[12:16, 30:40], mask[12:16, 40:50] = 1, 0.3, 0.8
    assert (cleaned(mask, CutoutOptions()) == mask).all()


def test_small_holes_are_filled_and_large_ones_stay() -> None:
    mask = np.ones((60, 60), np.float32)
    mask[10:12, 10:12], mask[30:50, 30:50] = 0, 0
    filled = cleaned(mask, CutoutOptions(largest_hole=0.01))
    assert (filled[10:12, 10:12] == 1).all() and (filled[30:50, 30:50] == 0).all()
    assert (cleaned(mask, CutoutOptions(largest_hole=0)) == mask).all()


def test_nearly_solid_becomes_solid_and_haze_goes() -> None:
    alpha = np.array([[0.019, 0.021, 0.5, 0.979, 0.981]], np.float32)
    snapped = cleaned(alpha, CutoutOptions(largest_only=False, largest_hole=0))
    assert snapped[0].tolist() == pytest.approx([0, 0.021, 0.5, 0.979, 1])
    assert snapped[0, 0] == 0 and snapped[0, 4] == 1


def test_a_feather_softens_both_ways_and_keeps_the_things_colours() -> None:
    mask = np.zeros((60, 60), bool)
    mask[20:40, 20:40] = True
    picture = np.where(mask[..., None], (200, 40, 30), (20, 60, 220)).astype(np.uint8)
    cutout = cut_out(picture, mask, CutoutOptions(feather=2))
    opacity = cutout.pixels[..., 3]
    assert opacity.shape[0] > 20 and len(np.unique(opacity)) > 20 and opacity.max() == 255
    assert cutout.box[0] < 20 and cutout.box[2] == opacity.shape[1]
    seen = opacity > 64
    assert np.abs(cutout.pixels[seen][:, :3] - np.array((200.0, 40, 30))).max() < 8


def test_large_cutouts_are_made_smaller() -> None:
    alpha = disc(300, 400, 150, 200, 120)
    picture = np.full((300, 400, 3), 50, np.uint8)
    cutout = cut_out(picture, alpha, CutoutOptions(longest=60), np.full((300, 400), 7, np.uint8))
    assert max(cutout.pixels.shape[:2]) in (59, 60, 61) and cutout.parts is not None
    assert cutout.parts.shape == cutout.pixels.shape[:2] and set(np.unique(cutout.parts)) == {7, 255}
    assert cutout.box[2] > 230
    # colours of a thing alone are not mixed with those that lie under nothing
    own = np.dstack((np.where(alpha[..., None] > 0, 200, 0).repeat(3, -1), (alpha * 255).round())).astype(np.uint8)
    small = cut_out(own, own[..., 3], CutoutOptions(edge_colours=False, longest=60)).pixels
    assert (small[small[..., 3] > 40][:, :3] >= 190).all()


def test_a_picture_of_20000_pixels() -> None:
    mask = np.zeros((30, 20_000), bool)
    mask[10:20, 100:19_900] = True
    cutout = cut_out(np.full((30, 20_000, 3), 80, np.uint8), mask, CutoutOptions())
    assert 2046 <= cutout.pixels.shape[1] <= 2048 and cutout.box == (100, 10, 19_800, 10)
    faint = np.zeros((30, 20_000), np.uint8)
    faint[10, 100:19_900] = 2
    with pytest.raises(BestiaryError, match="so thin that nothing of it is left at 16 pixels"):
        cut_out(np.full((30, 20_000, 3), 80, np.uint8), faint, CutoutOptions(False, snap=0, longest=16))


def test_one_pixel_is_a_cutout() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[3, 4] = 255
    cutout = cut_out(np.full((20, 20, 3), 9, np.uint8), mask, CutoutOptions())
    assert cutout.pixels.tolist() == [[[9, 9, 9, 255]]] and cutout.box == (4, 3, 1, 1)


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (np.zeros((10, 12), np.uint8), "subject 'cat': its mask is empty: give one that is white"),
        (
            np.zeros((12, 10), np.uint8),
            "the mask is 10 x 12, its picture 12 x 10 pixels: give a mask of the picture's own",
        ),
        (np.zeros((10, 12, 3), np.uint8), r"the mask is of shape \(10, 12, 3\), its picture 12 x 10"),
        (np.full((10, 12), 2.0), "a mask of float64 holds numbers that are not in 0..1"),
        (np.full((10, 12), np.nan, np.float32), "holds numbers that are not in 0..1"),
        (np.ones((10, 12), np.int32), "a mask of int32 holds"),
    ],
)
def test_masks_that_cannot_be(mask: np.ndarray, told: str) -> None:
    with pytest.raises(BestiaryError, match=told):
        make_subject("cat", np.zeros((10, 12, 3), np.uint8), mask)


def test_pictures_and_labels_that_cannot_be() -> None:
    whole = np.ones((4, 4), bool)
    with pytest.raises(BestiaryError, match=r"is \(h, w, 3\) of uint8, not \(4, 4, 3\) of float32"):
        cut_out(np.zeros((4, 4, 3), np.float32), whole, AS_GIVEN)
    with pytest.raises(BestiaryError, match=r"is \(h, w, 3\) of uint8, not \(4, 4\)"):
        cut_out(np.zeros((4, 4), np.uint8), whole, AS_GIVEN)
    with pytest.raises(BestiaryError, match=r"part labels are \(3, 4\), the picture \(4, 4\)"):
        cut_out(np.zeros((4, 4, 3), np.uint8), whole, AS_GIVEN, np.zeros((3, 4), np.uint8))


@pytest.mark.parametrize(("name", "value"), [("feather", -1), ("snap", 0.5), ("longest", 8), ("largest_hole", 2)])
def test_options_out_of_range(name: str, value: float) -> None:
    with pytest.raises(BestiaryError, match=f"{name} of a cut-out is {value}, expected"):
        CutoutOptions(**{name: value})


def test_masks_of_every_type_mean_the_same() -> None:
    kinds = (np.array([[True, False]]), np.array([[255, 0]], np.uint8), np.array([[1.0, 0.0]]))
    for mask in kinds:
        alpha = as_alpha(mask, (1, 2, 3))
        assert alpha.dtype == np.float32 and alpha.tolist() == [[1, 0]]


def test_a_picture_cut_in_place_keeps_its_size_and_its_solid_pixels():
    picture, mask = np.full((40, 60, 3), 200, np.uint8), np.zeros((40, 60), np.float32)
    mask[10:30, 20:40] = 1
    mask[0:3, 0:3] = 1
    whole = cut_in_place(picture, mask, CutoutOptions(largest_hole=0))
    assert whole.shape == (40, 60, 4) and (whole[..., 3] == 255).sum() == 400
    np.testing.assert_array_equal(whole[10:30, 20:40, :3], picture[10:30, 20:40])
    assert not cut_in_place(picture, mask * 0, CutoutOptions())[..., 3].any()
    with pytest.raises(BestiaryError, match="the mask is 3 x 3, its picture 60 x 40 pixels"):
        cut_in_place(picture, mask[:3, :3], CutoutOptions())

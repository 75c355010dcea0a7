"""Where masks come from, in which order, and what is said where there are none."""

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.cutout import CutoutOptions
from bestiary.scenes.cutout_gate import CutoutLimits
from bestiary.scenes.subject import PictureSource, Subject
from bestiary.scenes.subject_sources import MaskSources, cut_subject, find_mask, in_rounds, subject_names


def square(value: float = 1.0, *, start: int = 10, end: int = 30) -> np.ndarray:
    mask = np.zeros((40, 40), np.float32)
    mask[start:end, start:end] = value
    return mask


PICTURE = np.full((40, 40, 3), 100, np.uint8)
OWN = np.dstack((PICTURE, (square() * 200).astype(np.uint8)))


def looked(picture: np.ndarray) -> np.ndarray:
    """Stands in for IS-Net."""
    assert picture.shape == (40, 40, 3)
    return square(0.99, start=5)


def test_the_files_own_alpha_comes_first_and_is_taken_exactly() -> None:
    found = find_mask(OWN, "cat.png", MaskSources(mask=lambda: square(start=12), isnet=looked))
    assert found.way == "alpha" and (found.alpha == OWN[..., 3].astype(np.float32) / np.float32(255)).all()
    cut = cut_subject(OWN, "cat", MaskSources())
    assert cut.subject is not None and (cut.subject.cutout == OWN[10:30, 10:30]).all()


def test_then_a_mask_then_the_network() -> None:
    opaque = np.dstack((PICTURE, np.full((40, 40), 255, np.uint8)))
    for picture in (PICTURE, opaque):
        with_mask = MaskSources(mask=lambda: square(start=12), isnet=looked)
        assert find_mask(picture, "cat.png", with_mask).way == "mask"
        without = MaskSources(mask=lambda: None, isnet=looked)
        assert find_mask(picture, "cat.png", without).way == "isnet"
    # what a network says is cleaned, what somebody made is not
    network = cut_subject(PICTURE, "cat", MaskSources(isnet=looked)).subject
    mask = cut_subject(PICTURE, "cat", MaskSources(mask=lambda: square(0.99))).subject
    assert network is not None and network.cutout[0, 0, 3] == 255
    assert mask is not None and mask.cutout[0, 0, 3] == 252


def test_without_any_the_three_ways_are_told_at_once() -> None:
    with pytest.raises(BestiaryError) as fault:
        find_mask(PICTURE, "photos/cat.jpg", MaskSources(mask=lambda: None))
    text = str(fault.value)
    assert text.startswith(
        "photos/cat.jpg: there is no mask for its subject. Do one of these three: save it with a transparent ground"
    )
    assert "cat_mask.png" in text and "--masks" in text
    assert "--weights" in text and "models/bestiary/segmentation" in text and "\n" not in text


@pytest.mark.parametrize(
    ("backend", "told"),
    [("alpha", "transparent"), ("mask", "_mask.png"), ("isnet", "--weights"), ("parts", "discovery")],
)
def test_a_named_way_that_has_nothing_says_what_it_needs(backend: str, told: str) -> None:
    with pytest.raises(BestiaryError, match=f"cat.jpg: backend '{backend}' finds no mask for it: .*{told}"):
        find_mask(PICTURE, "cat.jpg", MaskSources(), backend)


def test_a_named_way_is_taken_and_no_other() -> None:
    sources = MaskSources(mask=lambda: square(start=12), isnet=looked)
    assert find_mask(OWN, "cat.png", sources, "isnet").way == "isnet"
    with pytest.raises(BestiaryError, match="backend 'rembg' is not one of alpha, mask, isnet, border, parts"):
        find_mask(OWN, "cat.png", sources, "rembg")
    with pytest.raises(BestiaryError, match="rounds are 1 to 8, not 0"):
        find_mask(OWN, "cat.png", MaskSources(rounds=0))


def test_rough_ways_exist_by_name_only_and_warn() -> None:
    picture = PICTURE.copy()
    picture[10:30, 10:30] = (220, 30, 30)
    with pytest.raises(BestiaryError, match="there is no mask for its subject"):
        find_mask(picture, "cat.jpg", MaskSources(parts=looked))
    border = cut_subject(picture, "cat", MaskSources(), backend="border")
    assert border.subject is not None and border.subject.cutout.shape == (20, 20, 4)
    assert border.warning.startswith("border cuts along differences")
    parts = find_mask(picture, "cat.jpg", MaskSources(parts=looked), "parts")
    assert parts.way == "parts" and "coarse" in parts.warning
    assert find_mask(OWN, "cat.png", MaskSources()).warning == ""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    with pytest.raises(BestiaryError, match="cat.jpg: its border is not plain"):
        find_mask(noise, "cat.jpg", MaskSources(), "border")


def test_a_mask_of_another_size_names_the_picture() -> None:
    with pytest.raises(BestiaryError, match="photos/cat.jpg: the mask is 30 x 20, its picture 40 x 40 pixels"):
        cut_subject(
            PICTURE, "cat", MaskSources(mask=lambda: np.ones((20, 30), bool)), source=PictureSource("photos/cat.jpg")
        )


def test_a_picture_without_a_subject_has_a_reason() -> None:
    """Nothing is stretched: where the network sees nothing, the picture is empty, not white."""
    cut = cut_subject(PICTURE, "cat", MaskSources(isnet=lambda picture: np.full((40, 40), 0.004, np.float32)))
    assert cut.subject is None and cut.faults == ("empty: nothing in it is more than half opaque (at most 0%)",)
    white = cut_subject(PICTURE, "cat", MaskSources(isnet=lambda picture: np.ones((40, 40), np.float32)))
    assert white.subject is None and white.faults[0].startswith("whole frame")
    clear = np.dstack((PICTURE, np.zeros((40, 40), np.uint8)))
    assert cut_subject(clear, "cat", MaskSources(isnet=looked)).faults[0].startswith("empty")


def test_options_and_limits_of_the_caller_win() -> None:
    two = np.maximum(square(end=20), square(start=25))
    assert cut_subject(PICTURE, "cat", MaskSources(isnet=lambda picture: two)).faults[0].startswith("several pieces")
    loose = CutoutLimits(second_piece=None)
    one = cut_subject(PICTURE, "cat", MaskSources(isnet=lambda picture: two), limits=loose).subject
    both = cut_subject(
        PICTURE,
        "cat",
        MaskSources(isnet=lambda picture: two),
        limits=loose,
        options=CutoutOptions(largest_only=False),
    ).subject
    assert one is not None and one.cutout.shape == (10, 10, 4)
    assert both is not None and both.cutout.shape == (20, 20, 4)


def test_rounds_only_take_away_and_agree_with_what_was_seen() -> None:
    seen: list[np.ndarray] = []

    def shrinking(picture: np.ndarray) -> np.ndarray:
        """Sees one row and column less each time."""
        seen.append(picture)
        return square(start=10 + 2 * len(seen))

    masks = []
    for rounds in (1, 2, 3):
        seen.clear()
        masks.append(in_rounds(PICTURE, shrinking, rounds))
        assert len(seen) == rounds
        # the last round saw exactly what the rounds before left
        if rounds > 1:
            assert ((seen[-1] > 0).any(-1) == (masks[rounds - 2] > 0)).all()
    assert (masks[1] <= masks[0]).all() and (masks[2] <= masks[1]).all() and masks[2].sum() < masks[0].sum()
    cut = cut_subject(PICTURE, "cat", MaskSources(isnet=shrinking, rounds=3))
    assert cut.subject is not None and cut.subject.cutout[..., 3].all()


def test_rounds_end_when_the_mask_is_steady() -> None:
    calls = []

    def steady(picture: np.ndarray) -> np.ndarray:
        calls.append(picture)
        return square()

    assert (in_rounds(PICTURE, steady, 8) == square()).all() and len(calls) == 2


def test_an_empty_first_round_ends_it() -> None:
    assert not in_rounds(PICTURE, lambda picture: np.zeros((40, 40), np.float32), 3).any()


def test_files_get_distinct_names_that_subjects_may_have() -> None:
    files = [
        "a.b.png",
        "a.png",
        "a.jpg",
        "in/A.webp",
        "my cat (1).jpg",
        "Käfer.png",
        "_x_.png",
        "!!.png",
        "..png",
        "猫.png",
        "x" * 200 + ".png",
    ]
    names = subject_names(files)
    assert list(names) == files and len(set(names.values())) == len(files)
    assert (
        names["a.b.png"] == "a b" and names["a.png"] == "a" and names["a.jpg"] == "a 2" and names["in/A.webp"] == "A 3"
    )
    assert names["Käfer.png"] == "Käfer" and names["!!.png"] == "subject"
    for name in names.values():
        assert Subject(name, np.full((1, 1, 4), 255, np.uint8)).name == name

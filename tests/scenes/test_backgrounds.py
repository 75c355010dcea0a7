from collections import Counter

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.backgrounds import Place, make_background, place_of, place_phrase


def stripes(width=60, height=40):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width) * 4
    pixels[..., 1] = np.arange(height)[:, None] * 6
    return pixels


@pytest.mark.parametrize("mode", ["photo", "blur", "noise", "plain"])
def test_backgrounds_have_the_size_and_depend_on_the_seed_alone(mode):
    places = [Place("garden_1.jpg", stripes()), Place("beach.png", lambda: stripes(30, 50))]
    one, two, other = (
        make_background(mode, 96, 64, seed, places, index).pixels for seed, index in [(3, 5), (3, 5), (4, 6)]
    )
    assert one.shape == (64, 96, 3) and one.dtype == np.uint8 and one.tobytes() == two.tobytes()
    assert mode == "plain" or one.tobytes() != other.tobytes()


def test_noise_and_plain_need_no_photograph():
    noise = make_background("noise", 50, 30, 1)
    assert noise.pixels.std() > 30 and noise.phrase == "" and noise.place == "noise"
    plain = make_background("plain", 5, 3, 1, color=(1, 2, 3))
    assert (plain.pixels == (1, 2, 3)).all() and plain.phrase == "on a plain background"


def test_all_places_of_a_folder_are_used_equally_often():
    counts = Counter(place_of(7, index, 3) for index in range(30))
    assert counts == {0: 10, 1: 10, 2: 10}
    assert [place_of(7, index, 3) for index in range(30)] != [place_of(8, index, 3) for index in range(30)]
    places = [Place("a", stripes()), Place("b", stripes())]
    assert {make_background("photo", 8, 8, 0, places, index).place for index in range(2)} == {"a", "b"}


def test_photographs_cover_the_canvas_undistorted():
    pixels = make_background("photo", 80, 80, 1, [Place("x", stripes())]).pixels.astype(float)
    across, down = np.diff(pixels[40, 10:70, 0]).mean(), np.diff(pixels[10:70, 40, 1]).mean()
    assert across == pytest.approx(4 / 2, rel=0.05) and down == pytest.approx(6 / 2, rel=0.05)


def test_blur_softens():
    checker = np.kron(np.indices((32, 32)).sum(0) % 2, np.ones((2, 2)))[..., None].repeat(3, 2)
    place = Place("x", (checker * 255).astype(np.uint8))
    sharp, soft = (make_background(mode, 64, 64, 1, [place]).pixels.std() for mode in ("photo", "blur"))
    assert soft < sharp * 0.8


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("garden_1.jpg", "in a garden"),
        ("beach", "on a beach"),
        ("places/old orchard.png", "in an old orchard"),
        ("xanadu", "in the xanadu"),
        ("snow", "on snow"),
        ("on the moon.jpg", "on the moon"),
        ("IMG_2034.JPG", ""),
        ("0001", ""),
        ("underwater_cave", "in an underwater cave"),
    ],
)
def test_place_phrase(name, phrase):
    assert place_phrase(name) == phrase


def test_phrase_of_a_place_and_of_the_caller():
    places = [Place("garden", stripes(), phrase="among the roses")]
    assert make_background("photo", 8, 8, 0, places).phrase == "among the roses"
    assert make_background("photo", 8, 8, 0, places, phrase="here").phrase == "here"


@pytest.mark.parametrize(
    ("mode", "places", "text"),
    [
        ("photo", [], "needs a picture of a place"),
        ("sky", [], "background 'sky' is not one of photo, blur, noise, plain"),
        ("blur", [Place("grey", np.zeros((4, 4), np.uint8))], "place 'grey' is (4, 4) of uint8"),
    ],
)
def test_what_is_no_background(mode, places, text):
    with pytest.raises(BestiaryError) as fault:
        make_background(mode, 8, 8, 0, places)
    assert text in str(fault.value)

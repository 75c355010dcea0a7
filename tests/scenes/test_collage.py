import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.collage import NO_PART, CollageOptions, compose, repaint_mask, visible_alphas
from bestiary.scenes.contact_shadow import contact_shadow
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.scenes.subject import Subject

PLAIN = CollageOptions(shadow=0)


def square(name="box", color=(200, 40, 40), alpha=255, size=32, **fields):
    cutout = np.zeros((size, size, 4), np.uint8)
    cutout[...] = (*color, alpha)
    return Subject(name, cutout, **fields)


def ellipse(name="ball", color=(40, 90, 200), width=48, height=32, **fields):
    """Exact alpha by area: eight by eight samples a pixel."""
    y, x = np.mgrid[: height * 8, : width * 8] + 0.5
    inside = ((x / width / 4 - 1) ** 2 + (y / height / 4 - 1) ** 2 <= 1).reshape(height, 8, width, 8).mean(axis=(1, 3))
    cutout = np.zeros((height, width, 4), np.uint8)
    cutout[..., :3], cutout[..., 3] = color, np.round(inside * 255)
    return Subject(name, cutout, **fields)


def layout(*placements, width=128, height=96, **fields):
    return SceneLayout(width, height, tuple(placements), **fields)


def grey(width=128, height=96, value=100):
    return np.full((height, width, 3), value, np.uint8)


def test_half_alpha_gives_half_and_half():
    """The published code multiplies alpha twice: 50 and 64 in place of 150 and 128."""
    scene = compose([square(alpha=128)], layout(Placement("box", 10, 20, 32, 32)), grey(), PLAIN)
    inside = scene.picture[20:52, 10:42].astype(int)
    assert abs(inside - [150, 70, 70]).max() <= 1
    assert abs(scene.union[20:52, 10:42].astype(int) - 128).max() <= 1
    assert scene.union.sum() == scene.union[20:52, 10:42].sum() and (scene.picture[:20] == 100).all()


def test_labels_are_the_visible_pixels_and_z_decides():
    near, far = Placement("box", 10, 20, 32, 32, z=1), Placement("ball", 20, 20, 48, 32, z=0)
    subjects = [ellipse(), square()]
    scene = compose(subjects, layout(near, far), grey(), PLAIN)
    assert scene.painting_order == (1, 0)
    assert (scene.labels[20:52, 10:42] == 1).all() and scene.area(0) == 32 * 32 and scene.occlusion[0] == 0
    whole = compose(subjects, layout(far), grey(), PLAIN)
    hidden = (whole.labels[20:52, 10:42] == 1).sum()
    assert scene.occlusion[1] == pytest.approx(hidden / whole.area(0)) and scene.area(1) == whole.area(0) - hidden
    swapped = compose(subjects, layout(dataclasses.replace(near, z=-1), far), grey(), PLAIN)
    assert swapped.area(1) == whole.area(0) and swapped.occlusion[0] > 0
    assert scene.box(0) == (10, 20, 32, 32)
    assert ((scene.labels > 0) == (scene.union >= 128)).all()


def test_alpha_of_each_subject_is_its_own():
    scene = compose(
        [square(), ellipse()],
        layout(Placement("box", 10, 20, 32, 32, z=1), Placement("ball", 20, 20, 48, 32)),
        grey(),
        PLAIN,
    )
    assert (scene.alphas[1][20:52, 20:68] == ellipse().cutout[..., 3]).all()
    clear = np.prod([1 - alpha / 255 for alpha in scene.alphas], axis=0)
    assert abs((1 - clear) * 255 - scene.union).max() <= 1


@pytest.mark.parametrize("turn", [0, 30, 90, -45, 180])
@pytest.mark.parametrize("flip", [False, True])
def test_turn_and_flip_move_colours_alpha_and_parts_alike(turn, flip):
    """A cut-out whose left half is red and part 3, whose right half is blue and part 7."""
    cutout = np.full((40, 40, 4), 255, np.uint8)
    cutout[:, :20, :3], cutout[:, 20:, :3] = (255, 0, 0), (0, 0, 255)
    parts = np.where(np.arange(40) < 20, 3, 7)[None].repeat(40, 0).astype(np.uint8)
    subject = Subject("flag", cutout, parts=parts)
    scene = compose([subject], layout(Placement("flag", 44, 28, 40, 40, turn=turn, flip=flip)), grey(), PLAIN)
    red = scene.picture[..., 0].astype(int) - scene.picture[..., 2] > 120
    blue = scene.picture[..., 2].astype(int) - scene.picture[..., 0] > 120
    assert red.sum() > 600 and blue.sum() > 600
    assert (scene.parts[red & (scene.labels == 1)] == 3).mean() > 0.97
    assert (scene.parts[blue & (scene.labels == 1)] == 7).mean() > 0.97
    assert ((scene.parts != NO_PART) <= (scene.labels == 1)).all()
    assert abs(scene.area(0) - 1600) <= 80  # area survives the turn
    # clockwise: the left side goes up at 90 degrees
    angle = np.radians(turn)
    side = np.array([np.cos(angle), np.sin(angle)]) * (1 if flip else -1)
    middle = np.argwhere(red).mean(axis=0)[::-1] + 0.5 - (64, 48)
    assert np.allclose(middle, side * 10, atol=0.6)


def test_turned_edges_keep_their_colour():
    """No dark seam: on a background of the subject's own colour a turned subject cannot be seen."""
    scene = compose([ellipse(color=(100, 100, 100))], layout(Placement("ball", 40, 30, 48, 32, turn=17)), grey(), PLAIN)
    assert abs(scene.picture.astype(int) - 100).max() <= 1


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_scaled_subjects_fill_their_box(scale):
    size = round(32 * scale)
    scene = compose([square()], layout(Placement("box", 8, 8, size, size)), grey(), PLAIN)
    assert scene.box(0) == (8, 8, size, size) and scene.area(0) == size * size
    assert (scene.picture[8 : 8 + size, 8 : 8 + size] == (200, 40, 40)).all()


def test_a_subject_over_the_border_is_cut_and_counted_as_hidden():
    scene = compose([square()], layout(Placement("box", -16, 70, 32, 32)), grey(), PLAIN)
    assert scene.box(0) == (0, 70, 16, 26) and scene.occlusion[0] == pytest.approx(1 - 16 * 26 / 1024)
    gone = compose([square()], layout(Placement("box", -40, 0, 32, 32)), grey(), PLAIN)
    assert gone.occlusion == (1.0,) and gone.area(0) == 0 and gone.box(0) == (0, 0, 0, 0)
    assert (gone.picture == 100).all()


def test_repaint_mask_is_the_ground_and_an_inset():
    scene = compose([square()], layout(Placement("box", 20, 20, 32, 32), width=256, height=128), grey(256, 128), PLAIN)
    assert scene.repaint.shape == (128, 256)
    core = scene.repaint == 0
    assert core.sum() == 22 * 22 and core[25:47, 25:47].all()
    assert (repaint_mask(scene.union, 0) == 255 - scene.union).all()
    # the canvas's border is no edge
    cut = np.zeros((40, 40), np.uint8)
    cut[:, :20] = 255
    assert (repaint_mask(cut, 5)[:, :15] == 0).all() and (repaint_mask(cut, 5)[:, 15:] == 255).all()


def test_layers_over_the_background_give_the_picture():
    scene = compose(
        [square(), ellipse()],
        layout(Placement("box", 20, 20, 32, 32, z=1), Placement("ball", 40, 30, 48, 32, turn=20)),
        grey(),
    )
    canvas = scene.background.astype(float)
    for index in scene.painting_order:
        alpha = scene.layers[index][..., 3:] / 255
        canvas = scene.layers[index][..., :3] * alpha + canvas * (1 - alpha)
    assert abs(canvas - scene.picture).max() <= 2


def test_contact_shadow_lies_under_the_foot_and_is_no_subject():
    placed = layout(Placement("ball", 40, 30, 48, 32))
    with_shadow, without = compose([ellipse()], placed, grey()), compose([ellipse()], placed, grey(), PLAIN)
    darker = without.picture.astype(int).sum(axis=-1) - with_shadow.picture.astype(int).sum(axis=-1)
    assert darker.min() >= 0 and darker[62:64, 56:72].min() > 15 and darker[:50].max() == 0
    assert (with_shadow.union == without.union).all() and (with_shadow.labels == without.labels).all()
    inside = without.alphas[0] == 255
    assert (with_shadow.picture[inside] == without.picture[inside]).all()
    sky = compose([ellipse(support="sky")], placed, grey())
    assert (sky.picture == without.picture).all()


def test_contact_shadow_is_bounded_and_absent_without_a_foot():
    alpha = np.zeros((60, 60), np.float32)
    assert not contact_shadow(alpha, 0.5).any()
    alpha[20:40, 20:40] = 1
    assert 0.2 < contact_shadow(alpha, 0.5).max() <= 0.5
    alpha[20:] = 1
    assert not contact_shadow(alpha, 0.5).any()


def test_every_foot_has_a_shadow_of_its_own():
    """A table of two legs, the left one shorter: it stands farther back."""
    alpha = np.zeros((120, 120), np.float32)
    alpha[20:60, 20:100] = alpha[60:93, 20:30] = alpha[60:100, 90:100] = 1
    shadow = contact_shadow(alpha, 1.0)
    assert shadow[93, 25] > 0.5 > shadow[93, 45] and shadow[100, 95] > 0.5 and shadow[62, 60] == 0


def test_lightness_follows_the_place_and_keeps_the_hue():
    placed = layout(Placement("box", 40, 30, 32, 32))
    lit = CollageOptions(shadow=0, lightness=1)
    dark = compose([square()], placed, grey(value=20), lit).picture[45, 55]
    light = compose([square()], placed, grey(value=250), lit).picture[45, 55]
    assert tuple(dark) == (120, 24, 24) and light[0] == 255 and light[1] == light[2] == 64
    assert (compose([square()], placed, grey(value=20), PLAIN).picture[45, 55] == (200, 40, 40)).all()


def test_the_same_input_gives_the_same_bytes():
    placed = layout(
        Placement("box", 20.3, 20.7, 32.2, 30.1, turn=3, z=1), Placement("ball", 40, 30, 48, 32, turn=20, flip=True)
    )
    scenes = [
        compose([square(), ellipse()], SceneLayout.from_json(placed.to_json()), grey(), CollageOptions(lightness=0.3))
        for _ in range(2)
    ]
    for name in ("picture", "union", "labels", "parts", "repaint"):
        assert getattr(scenes[0], name).tobytes() == getattr(scenes[1], name).tobytes()


def test_the_number_of_threads_changes_nothing():
    """A process with other settings of every threading library gives the same hash."""
    program = """
import hashlib, sys, importlib.util
spec = importlib.util.spec_from_file_location("bestiary", sys.argv[1], submodule_search_locations=[sys.argv[2]])
module = importlib.util.module_from_spec(spec)
sys.modules["bestiary"] = module
spec.loader.exec_module(module)
import numpy as np
from bestiary.scenes.collage import CollageOptions, compose
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.scenes.subject import Subject
from bestiary.scenes.backgrounds import make_background
cutout = np.random.default_rng(1).integers(0, 256, (40, 30, 4), np.uint8)
layout = SceneLayout(128, 96, (Placement("a", 20, 20, 60, 70, turn=9),))
scene = compose([Subject("a", cutout)], layout, make_background("noise", 128, 96, 2).pixels, CollageOptions(lightness=0.5))
print(hashlib.sha256(scene.picture.tobytes() + scene.union.tobytes() + scene.labels.tobytes()).hexdigest())
"""
    root = Path(__file__).parents[2]
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program, str(root / "__init__.py"), str(root)],
            env=os.environ | dict.fromkeys(names, threads),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "4")
    }
    assert len(hashes) == 1 and len(hashes.pop()) == 65


def test_a_subject_of_one_pixel_and_one_that_shrinks_to_a_pixel():
    scene = compose(
        [square(size=1), square("big")],
        layout(Placement("box", 5, 5, 3, 3), Placement("big", 50, 50, 0.2, 0.2)),
        grey(),
        PLAIN,
    )
    assert scene.area(0) == 9 and scene.area(1) == 1


@pytest.mark.parametrize(
    ("subjects", "placements", "background", "text"),
    [
        ([square()], [Placement("cat", 0, 0, 9, 9)], grey(), "the layout places 'cat', and the subjects are 'box'"),
        ([square(), square()], [Placement("box", 0, 0, 9, 9)], grey(), "two subjects are called 'box'"),
        ([square()], [], grey(), "the layout places nobody"),
        ([square()], [Placement("box", 0, 0, 9, 9)], grey(64), "the background is (96, 64, 3)"),
    ],
)
def test_what_cannot_be_composed(subjects, placements, background, text):
    with pytest.raises(BestiaryError) as fault:
        compose(subjects, layout(*placements), background)
    assert text in str(fault.value)


@pytest.mark.parametrize(
    ("fields", "text"),
    [({"shadow": 1.5}, "shadow 1.5"), ({"lightness": -1}, "lightness -1"), ({"inset": -1}, "inset -1")],
)
def test_options_out_of_range(fields, text):
    with pytest.raises(BestiaryError, match=text):
        CollageOptions(**fields)


def test_visible_alphas_are_the_union_between_them():
    soft = np.full((20, 20, 4), 255, np.uint8)
    soft[..., 3] = 128
    subjects = [Subject("back", np.full((20, 20, 4), 255, np.uint8)), Subject("front", soft)]
    layout = SceneLayout(48, 32, (Placement("back", 4, 6, 20, 20, z=0), Placement("front", 14, 6, 20, 20, z=1)))
    scene = compose(subjects, layout, np.zeros((32, 48, 3), np.uint8))
    back, front = (plane.astype(int) for plane in visible_alphas(scene))
    assert (back[16, 6], back[16, 18], front[16, 18], front[16, 30]) == (255, 127, 128, 128)
    assert np.abs(back + front - scene.union).max() <= 1

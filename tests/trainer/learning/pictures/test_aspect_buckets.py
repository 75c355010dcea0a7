"""Buckets by aspect ratio: shapes of one area, and the nearest for every picture."""

from __future__ import annotations

import numpy as np
from bestiary.concepts.pictures.square_fit import fit_shape
from bestiary.trainer.learning.pictures.aspect_buckets import aspect_buckets, bucket_shapes
from PIL import Image


def test_shapes_have_about_one_area_and_whole_steps() -> None:
    shapes = bucket_shapes(512, 64)
    assert (512, 512) in shapes and (448, 640) in shapes and (256, 1024) in shapes
    assert all((width, height) in shapes for height, width in shapes)
    for height, width in shapes:
        assert height % 64 == width % 64 == 0 and abs(height * width / 512**2 - 1) <= 0.1
        assert max(height, width) <= 4 * min(height, width)
    # a square that is no multiple of the step is a shape all the same
    assert (72, 72) in bucket_shapes(72, 64)


def test_every_picture_is_in_the_nearest_bucket() -> None:
    sizes = [(600, 600), (900, 600), (4000, 100), (640, 448), (100, 4000), (512, 500)]
    buckets = aspect_buckets(sizes, 512, 64)
    found = {(bucket.width, bucket.height): bucket.rows for bucket in buckets}
    assert found == {(512, 512): (0, 5), (640, 448): (1, 3), (1024, 256): (2,), (256, 1024): (4,)}
    assert sorted(row for bucket in buckets for row in bucket.rows) == list(range(6))


def test_a_picture_is_cut_to_its_shape_and_not_squeezed() -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("green", (50, 0, 250, 100))
    cut = np.asarray(fit_shape(wide, 50, 100))
    assert cut.shape == (50, 100, 3) and (cut[:, 2:-2] == (0, 128, 0)).all()
    tall = np.asarray(fit_shape(wide.transpose(Image.Transpose.ROTATE_90), 100, 50))
    assert tall.shape == (100, 50, 3) and (tall[2:-2] == (0, 128, 0)).all()

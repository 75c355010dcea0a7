"""Batches of pictures of several shapes: one shape each, every picture equally often, and the same whenever asked for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from bestiary.trainer.learning.dreambooth.dreambooth_images import DreamBoothImages, DreamBoothPlan, PictureBucket
from bestiary.trainer.learning.pictures.latent_cache import LatentCache

CROPS = {(8, 8): (0, 3, 4), (4, 16): (1,), (16, 4): (2, 5)}
NAMES = [*(f"thing {n}" for n in range(6)), *(f"class {n}" for n in range(4))]


class _Process:
    """Times that are the shares themselves."""

    def times_of_shares(self, shares: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(shares)


def _plan(**changes: object) -> DreamBoothPlan:
    values = {
        "batch_size": 2,
        "accumulation": 1,
        "latent_size": 8,
        "process": _Process(),
        "prompts": (),
        "dropout": 0.0,
        "seed": 3,
    }
    return DreamBoothPlan(**(values | changes))


def _marked(rows: tuple[int, ...], high: int, wide: int, views: int = 1) -> LatentCache:
    """Moments that hold the number of their picture: 0 to 5 of the thing, 6 to 9 of the class."""
    numbers = np.array([*rows, 6, 7, 8, 9], np.float16)
    return LatentCache(
        np.broadcast_to(numbers[:, None, None, None, None, None], (len(numbers), views, 2, 3, high, wide))
    )


@pytest.fixture
def buckets() -> list[PictureBucket]:
    """Six pictures of three shapes, with a margin of two cells, and four of the class in each shape."""
    return [
        PictureBucket(rows, _marked(rows, high + 2, wide + 2), (high, wide)) for (high, wide), rows in CROPS.items()
    ]


def test_a_batch_has_one_shape_and_every_picture_comes_equally_often(buckets: list[PictureBucket]) -> None:
    images = DreamBoothImages(NAMES, 6, buckets, _plan())
    things, others, shapes = Counter[str](), Counter[str](), Counter[tuple[int, ...]]()
    for step in range(12):
        batch = images.draw(step, 0)
        shape = tuple(batch.moments.shape[-2:])
        assert batch.noise.shape == batch.moments.shape and batch.of_class.tolist() == [False, False, True, True]
        # the rows of a name are those of its own moments
        assert [NAMES[int(number)] for number in batch.moments[:, 0, 0, 0, 0]] == list(batch.names)
        assert all(NAMES.index(name) in CROPS[shape] for name in batch.names[:2])
        assert batch.sizes is not None and batch.sizes[0, [0, 1, 4, 5]].tolist() == [
            8 * edge for edge in (shape[0] + 2, shape[1] + 2, *shape)
        ]
        shapes[shape] += 1
        things.update(batch.names[:2])
        others.update(batch.names[2:])
    # in two cycles of six batches of two
    assert things == dict.fromkeys(NAMES[:6], 4) and others == dict.fromkeys(NAMES[6:], 6)
    assert shapes == {crop: 2 * len(rows) for crop, rows in CROPS.items()}


def test_a_batch_is_the_same_whenever_it_is_asked_for(buckets: list[PictureBucket]) -> None:
    drawn = [DreamBoothImages(NAMES, 6, buckets, _plan()).draw(step, 0) for step in (9, 0)]
    images = DreamBoothImages(NAMES, 6, buckets, _plan())
    for step, there in zip((9, 0), drawn, strict=True):
        again = images.draw(step, 0)
        assert (
            again.names == there.names
            and torch.equal(again.noise, there.noise)
            and torch.equal(again.times, there.times)
        )
    other = DreamBoothImages(NAMES, 6, buckets, _plan(seed=4))
    assert [other.draw(step, 0).names for step in range(6)] != [images.draw(step, 0).names for step in range(6)]


def test_one_bucket_of_squares_is_the_training_on_squares() -> None:
    cache = _marked(tuple(range(6)), 10, 10, views=2)
    masks = np.random.default_rng(0).random((6, 10, 10), dtype=np.float32)
    squares = DreamBoothImages(NAMES, 6, cache, _plan(), masks)
    bucket = DreamBoothImages(NAMES, 6, [PictureBucket(tuple(range(6)), cache, (8, 8), masks)], _plan())
    for step in range(4):
        ours, theirs = bucket.draw(step, 0), squares.draw(step, 0)
        assert ours.names == theirs.names and torch.equal(ours.noise, theirs.noise)
        assert ours.masks is not None and theirs.masks is not None and torch.equal(ours.masks, theirs.masks)


def test_processes_share_the_batches_of_all_buckets(buckets: list[PictureBucket]) -> None:
    alone = DreamBoothImages(NAMES, 6, buckets, _plan(accumulation=2))
    pair = [DreamBoothImages(NAMES, 6, buckets, _plan(rank=rank, processes=2)) for rank in range(2)]
    for step in range(3):
        assert [alone.draw(step, micro).names for micro in range(2)] == [one.draw(step, 0).names for one in pair]

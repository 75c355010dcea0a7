import numpy as np
import pytest
from bestiary.scenes.coco_masks import decoded_mask, encoded_mask, run_lengths


def masks():
    random = np.random.default_rng(0)
    yield np.zeros((5, 7), bool)
    yield np.ones((5, 7), bool)
    yield np.arange(35).reshape(5, 7) % 2 == 0
    yield np.pad(np.ones((300, 200), bool), 20)
    for share in (0.01, 0.5, 0.99):
        yield random.random((61, 83)) < share


def test_run_lengths_go_down_the_columns_and_begin_with_zeros():
    assert run_lengths(np.array([[0, 1], [0, 1]], bool)) == [2, 2]
    assert run_lengths(np.array([[1, 0], [1, 0]], bool)) == [0, 2, 2]


@pytest.mark.parametrize("mask", list(masks()))
def test_masks_come_back(mask):
    encoded = encoded_mask(mask)
    assert (decoded_mask(encoded) == mask).all() and encoded["size"] == list(mask.shape)


@pytest.mark.parametrize("mask", list(masks()))
def test_ours_and_theirs(mask):
    theirs = pytest.importorskip("pycocotools.mask")
    encoded = encoded_mask(mask)
    reference = theirs.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encoded["counts"] == reference["counts"].decode()
    assert (theirs.decode(encoded) == mask).all() and theirs.area(encoded) == mask.sum()


@pytest.mark.parametrize("counts", ["", "5", "P", "zz~", "5555555555"])
def test_broken_runs_are_refused(counts):
    with pytest.raises(ValueError):
        decoded_mask({"size": [5, 7], "counts": counts})

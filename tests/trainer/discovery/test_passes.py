"""The streaming passes: pictures in order, unreadable ones apart, stored samples used instead of computing again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features.patch_features import PatchGrid
from bestiary.concepts.part_map.foreground import CentroidForeground
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_model import CentroidParts
from bestiary.trainer.discovery.passes import (
    PictureReader,
    check_features,
    describe_shard,
    joined_sample,
    sample_shard,
)
from bestiary.trainer.discovery.state import DiscoveryState
from PIL import Image

SIZE = 16


class Brightness:
    """A feature source whose features are the mean colour and its complement on a 4 x 4 grid."""

    name, image_size, width = "descriptor", SIZE, 6
    spec = {"name": "descriptor"}

    def __init__(self) -> None:
        self.described = 0

    def __call__(self, images: torch.Tensor) -> PatchGrid:
        self.described += len(images)
        colors = torch.nn.functional.adaptive_avg_pool2d(images, 4).permute(0, 2, 3, 1)  # (n, 4, 4, 3)
        return PatchGrid(torch.cat([colors, 1 - colors], dim=-1), colors.mean(-1))


def half_bright(level: int) -> Image.Image:
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[:, SIZE // 2 :] = level
    return Image.fromarray(pixels)


@pytest.fixture
def reader(tmp_path: Path) -> PictureReader:
    """Nine pictures of rising brightness on the right; the fourth and the last are broken."""
    names = [f"{number} a.png" for number in range(9)]
    for number, name in enumerate(names):
        half_bright(20 * number + 60).save(tmp_path / name)
    for number in (3, 8):
        (tmp_path / names[number]).write_bytes(b"")
    return PictureReader(tmp_path, names, SIZE, threads=2)


@pytest.fixture
def codebook() -> PartCodebook:
    """Two parts that are both the bright half, and the dark half as background."""
    bright, dark = torch.ones(6) * torch.tensor([1.0, 1, 1, 0, 0, 0]), torch.tensor([0.0, 0, 0, 1, 1, 1])
    foreground = CentroidForeground(torch.stack([bright + 0.1, dark]), 0)
    parts = CentroidParts(torch.stack([bright, dark]), torch.arange(2), filled=False)
    return PartCodebook({}, 6, (4, 4), ("a", "b", "background"), 2, foreground, parts)


@pytest.mark.parametrize("how", ["folder", "pictures"])
def test_a_folder_that_vanishes_is_no_finished_shard(
    reader: PictureReader, codebook: PartCodebook, tmp_path: Path, how: str
) -> None:
    state, source = DiscoveryState(tmp_path / "state", 9, 9), Brightness()
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    pictures = PictureReader(tmp_path / "shown", reader.names, SIZE, threads=2)
    pictures.root.mkdir()
    for name in reader.names:
        (tmp_path / name).rename((hidden if how == "pictures" else pictures.root) / name)
    if how == "folder":
        pictures.root.rename(tmp_path / "away")
    with pytest.raises(BestiaryError, match=r"shown disappeared while it was read \(.*\): restore it and run the same"):
        describe_shard(state, 0, pictures, source, codebook, 4)
    with pytest.raises(BestiaryError, match=r"4 of 4 pictures no longer exist, first 0 a\.png"):
        sample_shard(state, 0, [0, 1, 2, 4], pictures, source, 4)
    assert not list(state.folder.glob("*.safetensors"))


def test_a_single_picture_that_goes_is_left_out(reader: PictureReader, codebook: PartCodebook, tmp_path: Path) -> None:
    state = DiscoveryState(tmp_path / "state", 9, 9)
    (tmp_path / reader.names[1]).unlink()
    describe_shard(state, 0, reader, Brightness(), codebook, 4)
    assert ("1 a.png", "it no longer exists") in list(state.read_skipped())


@pytest.mark.parametrize("batch_size", [1, 2, 4, 20])
def test_pictures_come_in_order_and_broken_ones_apart(reader: PictureReader, batch_size: int) -> None:
    skipped: list[tuple[str, str]] = []
    batches = list(reader.batches([0, 2, 3, 5, 8], batch_size, skipped))
    assert [place for places, _ in batches for place in places] == [0, 2, 5]
    images = torch.cat([images for _, images in batches])
    assert images.shape == (3, 3, SIZE, SIZE)
    assert (images[:, 0, 0, -1] * 255).round().tolist() == [60, 100, 160]
    assert skipped == [("3 a.png", "the file is empty"), ("8 a.png", "the file is empty")]


def test_no_pictures_give_no_batches(reader: PictureReader) -> None:
    assert list(reader.batches([], 4, [])) == []


def test_a_shard_holds_labels_and_means_of_all_readable_pictures(
    reader: PictureReader, codebook: PartCodebook, tmp_path: Path
) -> None:
    state, source = DiscoveryState(tmp_path / "state", 9, 9), Brightness()
    describe_shard(state, 0, reader, source, codebook, 4)
    shard = next(state.read_parts())
    assert shard.index.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert list(state.read_skipped()) == [("3 a.png", "the file is empty"), ("8 a.png", "the file is empty")]
    assert (shard.labels[:, :, :2] == 2).all() and (shard.labels[-1, :, 2:] == 0).all()
    assert shard.counts.sum(1).tolist() == [16] * 7
    assert shard.means[-1, 0, :3].tolist() == pytest.approx([200 / 255] * 3, abs=1e-3)


def test_sampled_pictures_are_not_described_again(
    reader: PictureReader, codebook: PartCodebook, tmp_path: Path
) -> None:
    with_sample, without = (DiscoveryState(tmp_path / name, 9, 9) for name in ("with", "without"))
    source = Brightness()
    sample_shard(with_sample, 0, [1, 3, 6], reader, source, 2)
    assert source.described == 2
    describe_shard(with_sample, 0, reader, source, codebook, 4)
    assert source.described == 7
    describe_shard(without, 0, reader, source, codebook, 4)
    ours, theirs = (next(state.read_parts()) for state in (with_sample, without))
    for name in ("index", "labels", "counts", "means"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert list(with_sample.read_skipped()) == list(without.read_skipped())


def test_the_sample_comes_back_in_the_order_of_the_pictures(reader: PictureReader, tmp_path: Path) -> None:
    state, source = DiscoveryState(tmp_path / "state", 9, 4), Brightness()
    for shard, chosen in ((1, [4, 7]), (0, [0, 2])):
        sample_shard(state, shard, chosen, reader, source, 2)
    grid = joined_sample(state).grid
    assert grid.features.shape == (4, 4, 4, 6) and grid.saliency.shape == (4, 4, 4)
    assert (grid.features[:, 0, 3, 0] * 255).round().tolist() == [60, 100, 140, 200]


def test_a_sample_without_any_readable_picture(reader: PictureReader, tmp_path: Path) -> None:
    state = DiscoveryState(tmp_path / "state", 9, 9)
    sample_shard(state, 0, [3, 8], reader, Brightness(), 2)
    with pytest.raises(BestiaryError) as fault:
        joined_sample(state)
    assert str(fault.value) == (
        "none of 2 pictures could be read (3 a.png: the file is empty; 8 a.png: the file is empty): "
        "give a folder of pictures"
    )


def test_features_beyond_half_precision_are_bounded(
    reader: PictureReader, codebook: PartCodebook, tmp_path: Path
) -> None:
    class Loud(Brightness):
        def __call__(self, images: torch.Tensor) -> PatchGrid:
            return PatchGrid(super().__call__(images).features * 1e6)

    state = DiscoveryState(tmp_path / "state", 9, 9)
    describe_shard(state, 0, reader, Loud(), codebook, 4)
    assert torch.isfinite(next(state.read_parts()).means).all()


def test_the_first_picture_with_broken_features_is_named() -> None:
    features = torch.zeros(3, 2, 2, 4)
    check_features(PatchGrid(features), ["a", "b", "c"])
    features[1, 0, 0, 2] = float("inf")
    with pytest.raises(BestiaryError) as fault:
        check_features(PatchGrid(features), ["a", "b", "c"])
    assert str(fault.value) == ("the features of b are not finite numbers: choose another --dtype (fp32), or --source")

"""The end of a discovery from stored shards alone: kinds, result files and report, whatever the shards' sizes."""

from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_map.foreground import CentroidForeground
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_model import CentroidParts
from bestiary.trainer.discovery.result import PassesDone, finish_discovery
from bestiary.trainer.discovery.state import DiscoveryState, PartShard
from bestiary.trainer.learning.discovery.discovery_folder import Discovery
from bestiary.trainer.learning.discovery.part_names import NamesFile
from PIL import Image

PICTURES, WIDTH = 12, 4
TRUE_KINDS = torch.arange(PICTURES) % 3


def stored_passes(root: Path, shard_images: int) -> PassesDone:
    """Twelve pictures: a thing of one part in three clear kinds, absent in the last picture; one file was skipped."""
    (root / "pictures").mkdir(parents=True)
    names = [f"{number:02d}.png" for number in range(PICTURES)] + ["broken.png"]
    for name in names[:-1]:
        Image.new("RGB", (32, 32), "teal").save(root / "pictures" / name)
    state = DiscoveryState(root / "parts" / "state", PICTURES + 1, shard_images)
    codebook = PartCodebook(
        {"name": "descriptor"},
        WIDTH,
        (4, 4),
        ("thing", "background"),
        1,
        CentroidForeground(torch.eye(2, WIDTH), 0, 0.5),
        CentroidParts(torch.ones(1, WIDTH), torch.zeros(1).long(), filled=False),
    )
    codebook.save(state.coarse_path)
    labels = torch.ones(PICTURES, 4, 4, dtype=torch.uint8)
    labels[:-1, 1:3, 1:3] = 0
    counts = torch.stack([(labels == part).flatten(1).sum(1) for part in (0, 1)], dim=1).int()
    generator = torch.Generator().manual_seed(0)
    means = 0.01 * torch.randn(PICTURES, 2, WIDTH, generator=generator)
    means[torch.arange(PICTURES), 0, TRUE_KINDS] += 1
    for shard in range(state.num_shards):
        rows = [row for row in state.images_of(shard) if row < PICTURES]
        skipped = [("broken.png", "the file is empty")] if PICTURES in state.images_of(shard) else []
        piece = PartShard(torch.tensor(rows, dtype=torch.int32), labels[rows], counts[rows], means[rows].half())
        state.write_parts(shard, piece if rows else None, skipped)
    about = {"source": {"name": "descriptor"}, "settings": {"seed": 0}, "seconds": 1.0}
    return PassesDone(root / "parts", root / "pictures", names, [("x\\ny.png", "a line break")], state, about)


@pytest.mark.parametrize("shard_images", [1, 5, 12, 50])
def test_true_kinds_are_found_whatever_the_shards(tmp_path: Path, shard_images: int) -> None:
    done = stored_passes(tmp_path, shard_images)
    report = finish_discovery(done, NamesFile(), num_kinds=3, kind_images=100, seed=0)
    found = Discovery.load(done.folder)
    codes = found.maps.codes[:, 0]
    assert codes[-1] == -1 and found.report == report
    pairs = set(zip(codes[:-1].tolist(), TRUE_KINDS[:-1].tolist(), strict=True))
    assert len(pairs) == 3
    assert [entry["images"] for entry in report["parts"]] == [11, 12] and report["parts"][0]["area"] == 0.25
    assert (report["images"], report["skipped"]) == (12, 2)
    assert (done.folder / "captions.txt").read_text().splitlines()[-1].startswith("1:")


def test_kinds_of_a_bounded_sample_still_cover_all_pictures(tmp_path: Path) -> None:
    done = stored_passes(tmp_path, 5)
    finish_discovery(done, NamesFile(), num_kinds=2, kind_images=6, seed=0)
    assert (Discovery.load(done.folder).maps.codes[:-1, 0] >= 0).all()


def test_fewer_pictures_than_kinds(tmp_path: Path) -> None:
    done = stored_passes(tmp_path, 5)
    with pytest.raises(BestiaryError, match="12 kinds of part 'thing' were requested, but only 11 pictures show it"):
        finish_discovery(done, NamesFile(), num_kinds=12, kind_images=100, seed=0)
    assert not (done.folder / "report.json").exists()


def test_samples_are_removed_at_the_end(tmp_path: Path) -> None:
    done = stored_passes(tmp_path, 5)
    done.state.write_sample(0, None, [])
    finish_discovery(done, NamesFile(parts={"0": "thing itself"}), num_kinds=3, kind_images=100, seed=0)
    assert not done.state.sample_path(0).exists() and done.state.part_path(0).exists()
    assert Discovery.load(done.folder).codebook.part_names == ("thing itself", "background")

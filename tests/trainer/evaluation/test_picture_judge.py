"""Looking at pictures: as the discovery saw them, whatever their size and company, and rows that stay together."""

from pathlib import Path

import pytest
import torch
from bestiary.concepts.features.patch_features import DescriptorFeatures
from bestiary.concepts.part_map import foreground
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_discovery import discover_parts
from bestiary.trainer.evaluation.picture_judge import PictureJudge, Sight
from PIL import Image

COUNT = 10


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Bright squares of two colours on dark scenes: (N, 3, 128, 128)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(COUNT, 3, 128, 128, generator=generator) * 0.1
    for row in range(COUNT):
        top, left = torch.randint(24, 40, (2,), generator=generator).tolist()
        images[row, row % 2, top : top + 64, left : left + 64] += 0.8
    return images


@pytest.fixture(scope="module")
def judge(pictures: torch.Tensor) -> PictureJudge:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreground, "_TRAINING_STEPS", 40)
        codebook, _ = discover_parts(DescriptorFeatures()(pictures), num_parts=2, num_kinds=2, seed=0)
    return PictureJudge(codebook, DescriptorFeatures())


def same(one: Sight, other: Sight) -> bool:
    pairs = ((one.maps.labels, other.maps.labels), (one.maps.codes, other.maps.codes))
    return all(torch.equal(ours, theirs) for ours, theirs in pairs) and torch.allclose(one.part_means, other.part_means)


def test_pictures_are_seen_as_the_codebook_sees_them(judge: PictureJudge, pictures: torch.Tensor) -> None:
    sight = judge.look(pictures)
    codebook: PartCodebook = judge.codebook
    maps = codebook.segment(DescriptorFeatures()(pictures))
    assert torch.equal(sight.maps.labels, maps.labels) and torch.equal(sight.maps.codes, maps.codes)
    assert sight.part_means.shape == (COUNT, 3, codebook.width)
    assert sight.picture_means.shape == (COUNT, codebook.width)
    areas = torch.nn.functional.one_hot(maps.labels.long(), 3).flatten(1, 2).sum(1).float()  # (N, M)
    weighted = (sight.part_means * areas.unsqueeze(-1)).sum(1) / areas.sum(1, keepdim=True)
    torch.testing.assert_close(sight.picture_means, weighted, atol=1e-4, rtol=1e-3)


def test_a_picture_looks_the_same_in_any_company(judge: PictureJudge, pictures: torch.Tensor) -> None:
    together = judge.look(pictures.repeat(2, 1, 1, 1))  # more than are looked at at once
    alone = [judge.look(pictures[row : row + 1]) for row in (0, 7)]
    assert same(together.rows([0, 7]), Sight.joined(alone))
    assert same(together.rows([COUNT + 3]), together.rows([3]))


def test_files_and_larger_pictures_are_brought_to_the_sources_size(
    judge: PictureJudge, pictures: torch.Tensor, tmp_path: Path
) -> None:
    levels = (pictures[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(levels).save(tmp_path / "a.png")
    seen = judge.look_at_files([tmp_path / "a.png"])
    assert (seen.maps.labels == judge.look(pictures[:1]).maps.labels).float().mean() > 0.97
    double = torch.nn.functional.interpolate(pictures[:1], scale_factor=2, mode="nearest")
    assert (judge.look(double).maps.labels == seen.maps.labels).float().mean() > 0.95
    assert judge.read([tmp_path / "a.png"], 64).shape == (1, 3, 64, 64)

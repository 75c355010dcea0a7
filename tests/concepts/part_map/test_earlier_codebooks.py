"""Codebooks of earlier versions, kept as files: they load and label as on the day they were written."""

from pathlib import Path

import pytest
import torch
from bestiary.concepts.features.patch_features import PatchGrid
from bestiary.concepts.part_map.part_codebook import PartCodebook
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "earlier_codebooks"


@pytest.mark.parametrize("form", ["learned", "centroids"])
def test_an_earlier_codebook_labels_as_it_did(form: str, tmp_path: Path) -> None:
    seen = load_file(FOLDER / "seen.safetensors")
    grid = PatchGrid(seen["features"].float(), seen["saliency"].float())
    codebook = PartCodebook.load(FOLDER / f"{form}.safetensors")
    # as it was loaded, and written and read once more
    codebook.save(tmp_path / "again.safetensors")
    for ours in (codebook, PartCodebook.load(tmp_path / "again.safetensors")):
        maps = ours.segment(grid)
        assert torch.equal(maps.labels, seen[f"{form}.labels"])
        assert torch.equal(maps.codes, seen[f"{form}.codes"])
        means, _ = ours.part_means(grid, maps.labels)
        assert torch.allclose(means, seen[f"{form}.means"], atol=1e-5)

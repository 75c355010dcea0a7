"""Looks at pictures with the eyes of a discovery: which part is where, and of which kind each part is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...concepts.features.patch_features import FeatureSource
from ...concepts.part_map.part_codebook import PartCodebook
from ...concepts.part_map.part_map import PartMaps
from ..learning.pictures.image_files import fit_square, image_to_tensor, read_image

_AT_ONCE = 16


@dataclass(frozen=True)
class Sight:
    """What a discovery sees in N pictures."""

    maps: PartMaps
    """Labels `(N, h, w)` and codes `(N, M)`."""
    part_means: Tensor
    """`(N, M, D)`: mean feature of every part."""
    picture_means: Tensor
    """`(N, D)`: mean feature of the whole picture."""

    @classmethod
    def joined(cls, sights: Sequence["Sight"]) -> "Sight":
        """Several as one, in order."""
        labels = torch.cat([sight.maps.labels for sight in sights])  # (N, h, w)
        codes = torch.cat([sight.maps.codes for sight in sights])  # (N, M)
        means = torch.cat([sight.part_means for sight in sights])  # (N, M, D)
        return cls(PartMaps(labels, codes), means, torch.cat([sight.picture_means for sight in sights]))

    def rows(self, rows: Sequence[int]) -> "Sight":
        """The same for some of the pictures, in this order."""
        # rows of (N, ...)
        index = torch.tensor(rows, dtype=torch.long)
        maps = PartMaps(self.maps.labels[index], self.maps.codes[index])
        return Sight(maps, self.part_means[index], self.picture_means[index])


class PictureJudge:
    """A codebook with the feature source it was made from."""

    def __init__(self, codebook: PartCodebook, source: FeatureSource) -> None:
        """The source must read a denoiser without adapters, as it did when the codebook was made."""
        self.codebook = codebook
        self._source = source

    @torch.no_grad()
    def look(self, images: Tensor) -> Sight:
        """See parts and kinds in images `(N, 3, H, W)` in 0..1, each picture by itself."""
        return Sight.joined([self._look_at_some(some) for some in images.split(_AT_ONCE)])

    def look_at_files(self, paths: Sequence[Path]) -> Sight:
        """See parts and kinds in picture files, prepared as the discovery prepared them."""
        return self.look(self.read(paths, self._source.image_size))

    @staticmethod
    def read(paths: Sequence[Path], size: int) -> Tensor:
        """Picture files as `(N, 3, size, size)` in 0..1."""
        return torch.stack([image_to_tensor(fit_square(read_image(path), size)) for path in paths])

    def _look_at_some(self, images: Tensor) -> Sight:
        size = self._source.image_size
        # the source looks at its own size, whatever size was sampled
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)  # (B, 3, S, S)
        grid = self._source(images)
        maps = self.codebook.segment(grid)
        features = self.codebook.embed(grid).float().cpu()  # (B, h, w, D)
        # without gradients and on the CPU: sights of many pictures are kept
        means, _ = self.codebook.part_means(grid, maps.labels)
        return Sight(PartMaps(maps.labels.cpu(), maps.codes.cpu()), means.float().cpu(), features.flatten(1, 2).mean(1))

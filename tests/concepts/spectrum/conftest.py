"""Spectra whose every number says where it came from."""

from collections.abc import Callable

import pytest
import torch
from bestiary.concepts.denoiser.backbone import get_backbone
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds


@pytest.fixture
def make_spectrum() -> Callable[..., PromptSpectrum]:
    """`make_spectrum(base, stages=10, vectors=1, layers=None, backbone="sd15", **fields)`: stage s holds base + s (+ 0.1 per vector)."""

    def make(
        base: float = 0.0,
        stages: int = 10,
        vectors: int = 1,
        layers: int | None = None,
        backbone: str = "sd15",
        **fields: object,
    ) -> PromptSpectrum:
        record = get_backbone(backbone)
        steps = (
            base + torch.arange(stages, dtype=torch.float32).view(-1, 1, 1) + 0.1 * torch.arange(vectors).view(1, -1, 1)
        )
        ramp = torch.linspace(0.5, 1, record.vector_width)
        matrix = steps * ramp  # (S, V, D)
        if layers is not None:
            matrix = matrix.unsqueeze(1) + 100 * torch.arange(layers).view(1, -1, 1, 1)  # (S, L, V, D)
        fields = {"neutral": torch.full((vectors, record.vector_width), -1.0), **fields}
        bounds = fields.pop("bounds", StageBounds.equal(stages))
        return PromptSpectrum.from_matrix(record, matrix, bounds, **fields)

    return make

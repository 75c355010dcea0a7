"""Judge a prompt spectrum without any further model: how well each stage predicts the noise of its own pictures.

The same noised pictures are given to the base model with the spectrum, with its mean (plain textual inversion), with the words it
started from, and with stages shuffled. A stage that has learned something beats the words; stages that differ beat the mean and the
shuffle. Letters: S stages, V vectors of a stage, D width.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..concepts.atomic_file import write_text
from ..concepts.errors import BestiaryError
from ..concepts.spectrum.prompt_spectrum import PromptSpectrum, check_spectrum_backbone
from ..concepts.spectrum.spectrum_file import load_spectrum
from .compose import base_of
from .pages import paragraph, section, table, write_page
from .spectrum_settings import load_spectrum_recipe
from .spectrum_setup import SpectrumSetup, prepare_spectrum

ProgressReport = Callable[[int, int], None]


class EvaluateSpectrumSettings(BaseModel):
    """What `bestiary evaluate spectrum` is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    spectrum: Path
    """The spectrum file."""
    images: Path
    """A picture, or a folder of pictures, of the concept; best such that were not learned from."""
    base: str | None = None
    """Base model folder or `demo`; None takes the one the spectrum was trained on."""
    out: Path | None = None
    """Folder of the result; None makes one named after the spectrum."""
    count: int = Field(default=8, ge=1, le=1000)
    """Noised pictures for every stage."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of noise and timesteps."""
    device: str = "auto"
    """Where to run."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision."""


class _FixedVectors(nn.Module):
    """Vectors `(S, V, D)` that are not learned; see StageVectors."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", matrix)

    def stages_of(self, stages: Sequence[int]) -> Tensor:
        """Vectors `(U, V, D)`."""
        return self.vectors[list(stages)]

    def matrix(self) -> Tensor:
        """Vectors `(S, V, D)`."""
        return self.vectors


def evaluate_spectrum(settings: EvaluateSpectrumSettings, on_progress: ProgressReport | None = None) -> Path:
    """Write `evaluation.json` and `index.html`; the path of the page.

    Raises:
        BestiaryError: the spectrum has layers, words or silent stages, fits another model, or pictures cannot be read.
    """
    spectrum = load_spectrum(settings.spectrum)
    if spectrum.layers or spectrum.words or spectrum.counts:
        raise BestiaryError(
            f"{settings.spectrum} has vectors per layer, words or silent stages; only spectra as they were trained can be judged"
        )
    setup = _setup(settings, spectrum)
    check_spectrum_backbone(settings.spectrum.name, spectrum, setup.denoiser.backbone)
    losses = stage_losses(setup, spectrum, settings.count, on_progress)
    folder = settings.out or Path(f"{settings.spectrum.name.split('.')[0]}-evaluation")
    record = {
        "spectrum": settings.spectrum.name,
        "pictures": list(setup.pictures.names),
        "seed": settings.seed,
        "count": settings.count,
        "noise_loss": losses,
        "mean": {name: sum(values) / len(values) for name, values in losses.items()},
    }
    write_text(folder / "evaluation.json", json.dumps(record, indent=1) + "\n")
    return _write_page(folder, spectrum, record)


def _setup(settings: EvaluateSpectrumSettings, spectrum: PromptSpectrum) -> SpectrumSetup:
    folder = settings.out or Path(f"{settings.spectrum.name.split('.')[0]}-evaluation")
    values = {
        "images.source": settings.images, "images.cache": folder / "latents", "base.path": settings.base or base_of(spectrum),
        "method.boundaries": spectrum.bounds.fractions[1:-1], "method.vectors": spectrum.vectors,
        "method.initial_words": spectrum.initial_words, "run.seed": settings.seed, "run.device": settings.device,
        "run.dtype": settings.dtype, "optimizer.batch_size": 1, "run.out": folder,
    }  # fmt: skip
    if spectrum.stages == 1:
        values |= {"method.boundaries": (), "method.stages": 1}
    return prepare_spectrum(load_spectrum_recipe(None, values), keep_decoder=False)


@torch.no_grad()
def stage_losses(
    setup: SpectrumSetup, spectrum: PromptSpectrum, count: int, on_progress: ProgressReport | None = None
) -> dict[str, list[float]]:
    """Mean noise loss of every stage, by what stands in the prompt: the spectrum, its mean, its words, shuffled stages."""
    matrix = spectrum.matrix()  # (S, V, D)
    told = {"spectrum": matrix, "mean": matrix.mean(0, keepdim=True).expand_as(matrix)}
    if (neutral := spectrum.neutral_matrix()) is not None:
        told["words"] = neutral.expand_as(matrix)
    # every stage gets the vectors of the one half the way round
    told["shuffled"] = matrix.roll(max(1, spectrum.stages // 2), 0)
    losses: dict[str, list[float]] = {}
    total, done = len(told) * count * spectrum.stages, 0
    for name, vectors in told.items():
        setup.objective.table = _FixedVectors(vectors.contiguous().to(setup.denoiser.device))
        sums = torch.zeros(spectrum.stages, dtype=torch.float64)  # (S,)
        # stages take turns, so `count` rounds serve each of them equally often with the same noise for all
        for step in range(count * spectrum.stages):
            sums += (
                setup.objective(setup.batches.draw(step, 0)).curves["stage_loss"].nan_to_num(0).sum(0).double().cpu()
            )
            done += 1
            if on_progress:
                on_progress(done, total)
        losses[name] = [round(value, 6) for value in (sums / count).tolist()]
    return losses


def _write_page(folder: Path, spectrum: PromptSpectrum, record: dict[str, object]) -> Path:
    losses: dict[str, list[float]] = record["noise_loss"]
    rows = [
        [stage + 1, f"{spectrum.bounds.fractions[stage]:.3g}", *(f"{values[stage]:.5f}" for values in losses.values())]
        for stage in range(spectrum.stages)
    ]
    rows.append(["all", "", *(f"{value:.5f}" for value in record["mean"].values())])
    text = (
        f"Mean squared error of the predicted noise, {record['count']} noised pictures for every stage, seed {record['seed']}; "
        "lower is better, all columns saw the same noise."
    )
    body = paragraph(text) + section("By stage", table(["stage", "begins at", *losses], rows))
    return write_page(folder / "index.html", f"Spectrum {record['spectrum']}", body)
